"""How one attribute of an object becomes columns of a row and back: the parts of which a table's codec is made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from zcompute.objects.base import VersionedObject, unpack
from zcompute.objects.flavor import Amounts
from zcompute.objects.stored import Pack

STRINGS = msgspec.msgpack.Decoder(list[str])
STRING_MAP = msgspec.msgpack.Decoder(dict[str, str])
ALIKE_MAX = 4096  # packed objects that are shared

_BLOBS = msgspec.msgpack.Decoder(list[bytes])
_ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True)
class Field:
    """One attribute of an object: the columns it fills, and the ways there and back (None: as it is)."""

    attribute: str
    columns: tuple[str, ...]
    paths: tuple[str, ...]
    encode: Callable[[Any, Pack], Any] | None = None
    decode: Callable[..., Any] | None = None


def plain(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name, (name,), (name,)) for name in names)


def flags(*names: str) -> tuple[Field, ...]:
    return tuple(Field(name, (name,), (name,), decode=bool) for name in names)


def packed(name: str, kind: type[VersionedObject]) -> tuple[Field, ...]:
    def encode(value: VersionedObject | None, pack: Pack) -> bytes | None:
        return None if value is None else pack(value)

    def decode(data: bytes | None) -> VersionedObject | None:
        return None if data is None else unpack(data, kind)

    return (Field(name, (name,), (name,), encode, decode),)


def blob(name: str, decoder: msgspec.msgpack.Decoder[Any]) -> tuple[Field, ...]:
    return (Field(name, (name,), (name,), lambda value, _: _ENCODER.encode(value), decoder.decode),)


def packed_alike(name: str, kind: type[VersionedObject]) -> tuple[Field, ...]:
    """A packed object of which many rows have the very same: read once, shared by the rows (they are immutable by
    agreement), up to a limit."""
    (one,) = packed(name, kind)
    known: dict[bytes | None, Any] = {}

    def decode(data: bytes | None) -> Any:
        found = known.get(data)
        if found is None and one.decode is not None:
            found = one.decode(data)
            if len(known) < ALIKE_MAX:
                known[data] = found
        return found

    return (Field(name, (name,), (name,), one.encode, decode),)


def packed_list(name: str, kind: type[VersionedObject]) -> tuple[Field, ...]:
    def encode(items: list[VersionedObject], pack: Pack) -> bytes:
        return _ENCODER.encode([pack(item) for item in items])

    def decode(data: bytes) -> list[VersionedObject]:
        return [unpack(item, kind) for item in _BLOBS.decode(data)]

    return (Field(name, (name,), (name,), encode, decode),)


def amounts(name: str, prefix: str) -> tuple[Field, ...]:
    parts = ("vcpus", "memory_mb", "disk_gb")

    def decode(vcpus: int, memory_mb: int, disk_gb: int) -> Amounts:
        return Amounts(vcpus=vcpus, memory_mb=memory_mb, disk_gb=disk_gb)

    columns = tuple(f"{prefix}{part}" for part in parts)
    return (Field(name, columns, tuple(f"{name}.{part}" for part in parts), decode=decode),)
