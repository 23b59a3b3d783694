"""The corpus: what each release put on the wire and into stores, in bytes, and what those meant.

A directory per release. ``frames.jsonl``, ``payloads.jsonl`` and ``stored.jsonl`` hold an entry a line: its name, its
bytes in hex, its meaning as JSON. ``fingerprints.json`` is the release's. ``SEALED`` has the checksum of each file: it
is written with the release, and from then on nothing in the directory may change.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from tests.upgrade import declared, samples
from zcompute.bus.envelope import encode_frame
from zcompute.objects.base import pack

DIRECTORY = Path(__file__).with_name("corpus")
SEAL = "SEALED"


class Entry(msgspec.Struct, kw_only=True):
    """One line: ``means`` is the decoded object with all its fields, bytes as base64."""

    name: str
    hex: str
    means: Any

    @property
    def data(self) -> bytes:
        """The bytes that the release wrote."""
        return bytes.fromhex(self.hex)


def meaning(decoded: Any) -> Any:
    """An object as plain JSON, by the names of its fields."""
    if isinstance(decoded, msgspec.Struct):
        return {field.name: meaning(getattr(decoded, field.name)) for field in msgspec.structs.fields(decoded)}
    if isinstance(decoded, list | tuple):
        return [meaning(one) for one in decoded]
    if isinstance(decoded, dict):
        return {str(key): meaning(value) for key, value in decoded.items()}
    return msgspec.to_builtins(decoded)


def frames() -> list[Entry]:
    """A frame of each envelope, and one of all of them."""
    made = {kind.__name__: samples.full(kind) for kind in declared.envelopes().values()}
    entries = [Entry(name=name, hex=encode_frame([one]).hex(), means=[meaning(one)]) for name, one in made.items()]
    every = list(made.values())
    return [*entries, Entry(name="all", hex=encode_frame(every).hex(), means=[meaning(one) for one in every])]


def payloads() -> list[Entry]:
    """Each request, reply, event and report: with every field, and with the required ones only."""
    return [
        Entry(name=f"{name} {how.__name__}", hex=msgspec.msgpack.encode(one).hex(), means=meaning(one))
        for name, kind in sorted(declared.payloads().items())
        for how in (samples.full, samples.bare)
        for one in [how(kind)]
    ]


def stored() -> list[Entry]:
    """The stored form of each object, in the same two ways."""
    return [
        Entry(name=f"{name} {how.__name__}", hex=pack(one).hex(), means=meaning(one))
        for name, kind in sorted(declared.objects().items())
        for how in (samples.full, samples.bare)
        for one in [how(kind)]
    ]


def releases() -> list[str]:
    """Those with a directory, sealed or not."""
    return sorted(path.name for path in DIRECTORY.iterdir() if path.is_dir())


def read(release: str, name: str) -> list[Entry]:
    """The entries of one file."""
    lines = (DIRECTORY / release / name).read_text(encoding="utf-8").splitlines()
    return [msgspec.json.decode(line, type=Entry) for line in lines]


def checksums(release: str) -> dict[str, str]:
    """SHA-256 of each file of a release but the seal."""
    directory = DIRECTORY / release
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
        if path.name != SEAL
    }


def sealed(release: str) -> bool:
    """True once the release is out."""
    return (DIRECTORY / release / SEAL).exists()
