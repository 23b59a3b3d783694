"""What every versioned object shares: its name, its version, and its stored form.

Inside a message an object travels as a plain msgpack map: the interface's version, exchanged at the hello, says what
both sides understand. What outlives a process (a column, a task's body, an outbox record) is packed with its name and
version, because the reader may be of another release.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from zcompute.objects.errors import ObjectVersionUnsupported, StoredObjectInvalid

Fields = dict[str, Any]
"""An object's fields as they are encoded: by their wire names, without those at their defaults."""

Rule = Callable[[Fields], None]
"""Takes an object's fields from one minor version to the one before, in place (zcompute.objects.lowering)."""


KINDS: "list[type[VersionedObject]]" = []
"""Every kind of object that the process has loaded, in the order of their classes."""


class VersionedObject(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """Base of all objects. ``VERSION`` is (major, minor): a minor adds optional fields, a major changes meaning.

    ``LOWER`` has a rule for each minor that an older reader would misread. Objects are trees, never part of a cycle:
    the garbage collector, which would walk a conductor's whole cache again and again, passes them over.
    """

    VERSION: ClassVar[tuple[int, int]] = (1, 0)
    LOWER: ClassVar[Mapping[int, Rule]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        KINDS.append(cls)


T = TypeVar("T", bound=VersionedObject)

_ENCODER = msgspec.msgpack.Encoder()
_STORED = msgspec.msgpack.Decoder(tuple[str, int, int, msgspec.Raw])
_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}


def pack(stored: VersionedObject, fields: Any = None, version: tuple[int, int] | None = None) -> bytes:
    """The stored form: msgpack of [name, major, minor, fields]; of an older version, with the fields as it has them."""
    major, minor = version or stored.VERSION
    return _ENCODER.encode((type(stored).__name__, major, minor, stored if fields is None else fields))


def unpack(data: bytes, kind: type[T]) -> T:
    """Read a stored object back.

    Raises ObjectVersionUnsupported for another major (unknown minor fields are ignored), StoredObjectInvalid for
    anything that is not a stored object of this kind.
    """
    try:
        name, major, minor, fields = _STORED.decode(data)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise StoredObjectInvalid(f"expected a stored {kind.__name__}, found {len(data)} bytes: {error}") from error
    if name != kind.__name__:
        raise StoredObjectInvalid(f"expected a stored {kind.__name__}, found {name}")
    if major != kind.VERSION[0]:
        raise ObjectVersionUnsupported(
            f"{name} is stored in version {major}.{minor}, this release reads {kind.VERSION[0]}.x: "
            "run the release that wrote it, or migrate the row",
        )
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        decoded: T = decoder.decode(fields)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise StoredObjectInvalid(f"the stored {name} {major}.{minor} does not decode: {error}") from error
    return decoded
