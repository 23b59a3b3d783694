"""What is put aside before it is purged for good."""

from typing import Any

import msgspec

from zcompute.objects.base import VersionedObject

_ENCODER = msgspec.msgpack.Encoder()
_BODY = msgspec.msgpack.Decoder(dict[str, Any])


class ArchivedRow(VersionedObject):
    """A row that left its table ``source`` at ``archived_at_us``; ``body`` is msgpack of its columns by name (packed
    objects in them keep their versions). ``row_key`` is its key there, joined by '/'."""

    partition_id: int
    archived_at_us: int
    source: str
    row_key: str
    body: bytes

    def columns(self) -> dict[str, Any]:
        """The row as it was, by column."""
        return _BODY.decode(self.body)


def archived_body(columns: dict[str, Any]) -> bytes:
    """A row's columns as an archived row's body."""
    return _ENCODER.encode(columns)
