"""The file of a backup: a header, pages of rows, an end; each a frame of its own, checked on reading.

Frame: length and CRC-32 of its payload (two big-endian u32), then the payload: zlib of msgpack. The header names the
format, the end carries the rows of each table and the SHA-256 over all payloads before it: a file without its end was
cut short.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from zcompute.db.errors import BackupInvalid

FORMAT = 1
MAGIC = "zcompute backup"
FRAME_BYTES_MAX = 256 << 20
COMPRESSION = 1

_HEAD = struct.Struct(">II")
_ENCODER = msgspec.msgpack.Encoder()


class Header(msgspec.Struct, kw_only=True):
    """What was backed up, and when (the primary's UTC time)."""

    kind: str
    cell: str
    expand: str
    contract: str | None
    level: str
    release: str
    taken_at_us: int
    magic: str = MAGIC
    format: int = FORMAT


class Page(msgspec.Struct):
    """Rows of one table, in the order of its key."""

    table: str
    columns: list[str]
    rows: list[list[Any]]


class End(msgspec.Struct):
    """How many rows each table has, and what the payloads before sum up to."""

    rows: dict[str, int]
    sha256: str


_HEADER = msgspec.msgpack.Decoder(Header)
_PAGE = msgspec.msgpack.Decoder(Page)
_END = msgspec.msgpack.Decoder(End)


class Writer:
    """Writes beside the file, which appears whole at ``end``. Raises OSError."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._sum = hashlib.sha256()
        self.rows: dict[str, int] = {}
        self._frame(header)

    def page(self, page: Page) -> None:
        """The next page."""
        self._frame(page)
        self.rows[page.table] = self.rows.get(page.table, 0) + len(page.rows)

    def end(self) -> None:
        """Everything is written: make it durable, then visible."""
        self._frame(End(self.rows, self._sum.hexdigest()))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.rename(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _frame(self, content: Any) -> None:
        payload = zlib.compress(_ENCODER.encode(content), COMPRESSION)
        self._file.write(_HEAD.pack(len(payload), zlib.crc32(payload)))
        self._file.write(payload)
        self._sum.update(payload)


def read(path: Path) -> tuple[Header, Iterator[Page]]:
    """The header, and the pages as they are asked for; the last one is followed by a check of the whole.

    Raises BackupInvalid (the iterator too), OSError.
    """
    file = path.open("rb")
    summed = hashlib.sha256()
    try:
        payload = _next(file, path)
        header = _decoded(_HEADER, payload, path)
        if header.magic != MAGIC or header.format != FORMAT:
            raise BackupInvalid(f"{path}: expected a backup of format {FORMAT}, found {header.magic} {header.format}")
    except BaseException:
        file.close()
        raise
    summed.update(payload)
    return header, _pages(file, path, summed)


def _pages(file: BinaryIO, path: Path, summed: Any) -> Iterator[Page]:
    counts: dict[str, int] = {}
    with file:
        while True:
            payload = _next(file, path)
            content = zlib.decompress(payload)
            try:
                page = _PAGE.decode(content)
            except msgspec.ValidationError:
                break
            summed.update(payload)
            counts[page.table] = counts.get(page.table, 0) + len(page.rows)
            yield page
        end = _decoded(_END, payload, path)
        if end.sha256 != summed.hexdigest() or end.rows != counts:
            raise BackupInvalid(f"{path}: the checksum over the whole does not hold: use another backup")


def _next(file: BinaryIO, path: Path) -> bytes:
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise BackupInvalid(f"{path}: it ends in the middle: the backup was cut short")
    length, crc = _HEAD.unpack(head)
    if length > FRAME_BYTES_MAX:
        raise BackupInvalid(f"{path}: this is no backup, or a damaged one: a frame of {length} bytes")
    payload = file.read(length)
    if len(payload) < length:
        raise BackupInvalid(f"{path}: it ends in the middle: the backup was cut short")
    if zlib.crc32(payload) != crc:
        raise BackupInvalid(f"{path}: a frame's checksum does not hold: the file is damaged, use another backup")
    return payload


def _decoded(decoder: msgspec.msgpack.Decoder[Any], payload: bytes, path: Path) -> Any:
    try:
        return decoder.decode(zlib.decompress(payload))
    except (msgspec.MsgspecError, zlib.error) as error:
        raise BackupInvalid(f"{path}: this is no backup: {error}") from error
