"""Rows of MariaDB's text protocol as typed objects, straight from the packets.

PyMySQL makes an object per packet, a descriptor per column and a tuple per row; of all this a read whose columns are
known needs the bytes only (https://mariadb.com/kb/en/result-set-packets/). docs/decisions/0017 has the figures.
"""

from collections.abc import Callable
from operator import methodcaller
from typing import Any, TypeVar

import sqlalchemy as sa
from pymysql import err
from pymysql.constants import COMMAND, CR

from zcompute.db.schema import TABLES
from zcompute.db.tables import TableCodec
from zcompute.objects.base import VersionedObject

T = TypeVar("T", bound=VersionedObject)

CHUNK_BYTES = 65_536
PACKET_BYTES_MAX = 0xFFFFFF  # a packet of this size is continued in the next
_HEADER = 4
_ERROR, _EOF, _OK, _LOCAL_FILE = 0xFF, 0xFE, 0x00, 0xFB
_EOF_BYTES_MAX = 8
_NULL, _TWO, _THREE, _EIGHT = 251, 252, 253, 254  # in place of a length

Converter = Callable[[bytes], Any]


class _Packets:
    """The packets of one answer, read in large pieces."""

    __slots__ = ("_at", "_data", "_number", "_read")

    def __init__(self, raw: Any) -> None:
        self._read = raw._rfile.read1
        self._data = b""
        self._at = 0
        self._number = 1

    def next(self) -> bytes:
        """The next packet's payload. Raises MySQLError for an error packet or a stream that ends."""
        payload, size = self._one()
        while size == PACKET_BYTES_MAX:
            more, size = self._one()
            payload += more
        if payload[:1] == b"\xff":
            err.raise_mysql_exception(payload)
        return payload

    def _one(self) -> tuple[bytes, int]:
        data, at = self._data, self._at
        if len(data) - at < _HEADER:
            data, at = self._more(_HEADER)
        size = data[at] | data[at + 1] << 8 | data[at + 2] << 16
        if data[at + 3] != self._number:
            raise err.OperationalError(CR.CR_SERVER_LOST, f"packet {data[at + 3]} instead of {self._number}")
        self._number = (self._number + 1) & 0xFF
        start = at + _HEADER
        end = start + size
        if len(data) < end:
            data, at = self._more(_HEADER + size)
            start, end = at + _HEADER, at + _HEADER + size
        self._at = end
        return data[start:end], size

    def _more(self, wanted: int) -> tuple[bytes, int]:
        """At least ``wanted`` bytes from the present place on; returns data and place."""
        pieces = [self._data[self._at :]]
        have = len(pieces[0])
        while have < wanted:
            piece = self._read(max(CHUNK_BYTES, wanted - have))
            if not piece:
                raise err.OperationalError(CR.CR_SERVER_LOST, "the server closed the connection")
            pieces.append(piece)
            have += len(piece)
        self._data, self._at = b"".join(pieces), 0
        return self._data, 0


def select_packets(raw: Any, statement: bytes) -> list[bytes]:
    """Send a SELECT over PyMySQL's connection; returns the packet of each row. Raises MySQLError, OSError."""
    raw._execute_command(COMMAND.COM_QUERY, statement)
    raw._result = None
    if raw._current_timeout != raw._read_timeout:
        raw._sock.settimeout(raw._read_timeout)
        raw._current_timeout = raw._read_timeout
    packets = _Packets(raw)
    first = packets.next()
    if first[0] in (_OK, _LOCAL_FILE):
        raise err.OperationalError(CR.CR_MALFORMED_PACKET, "expected rows, found none")
    columns = first[0] if first[0] < _NULL else int.from_bytes(first[1:3], "little")
    for _ in range(columns + 1):  # their descriptions, and the end of these
        packets.next()
    rows: list[bytes] = []
    while True:
        payload = packets.next()
        if payload[0] == _EOF and len(payload) <= _EOF_BYTES_MAX:
            return rows
        rows.append(payload)


def cells(payload: bytes) -> list[bytes | None]:
    """The values of a row, as the server wrote them."""
    found: list[bytes | None] = []
    at, ends_at = 0, len(payload)
    while at < ends_at:
        size = payload[at]
        at += 1
        if size == _NULL:
            found.append(None)
            continue
        if size > _NULL:
            at, size = _long(payload, at, size)
        found.append(payload[at : at + size])
        at += size
    return found


def _long(payload: bytes, at: int, mark: int) -> tuple[int, int]:
    """Where a longer value begins, and its length."""
    width = 2 if mark == _TWO else 3 if mark == _THREE else 8
    return at + width, int.from_bytes(payload[at : at + width], "little")


_readers: dict[str, Callable[[bytes], Any]] = {}


def reader_of(table: TableCodec[T]) -> Callable[[bytes], T]:
    """row_reader, made once a table."""
    found = _readers.get(table.name)
    if found is None:
        found = _readers[table.name] = row_reader(table)
    return found


def row_reader(table: TableCodec[T]) -> Callable[[bytes], T]:
    """A function that makes the object of a row's packet; the row has all ``table.columns`` in their order."""
    converters = [_converter(TABLES[table.name].c[name].type) for name in table.columns]
    attributes: list[str | None] = [None] * len(converters)
    for attribute, start, end, decode in table.readers:
        if end - start > 1:
            return _general_reader(table, converters)
        attributes[start] = attribute
        if decode is bool:
            converters[start] = methodcaller("__ne__", b"0")
        elif decode is not None:
            converters[start] = decode
    if None in attributes:  # partition_id, which is no field
        skipped = attributes.index(None)
        converters[skipped] = bytes
    names = ["" if name is None else name for name in attributes]
    kind = table.kind

    def read(payload: bytes) -> T:
        fields: dict[str, Any] = {}
        at = 0
        for name, convert in pairs:
            size = payload[at]
            at += 1
            if size == _NULL:
                fields[name] = None
                continue
            if size > _NULL:
                at, size = _long(payload, at, size)
            end = at + size
            fields[name] = convert(payload[at:end])
            at = end
        fields.pop("", None)
        return kind(**fields)

    pairs = list(zip(names, converters, strict=True))
    return read


def _general_reader(table: TableCodec[T], converters: list[Converter]) -> Callable[[bytes], T]:
    """For tables with fields of several columns."""

    def read(payload: bytes) -> T:
        values = cells(payload)
        return table.from_row(
            tuple([None if v is None else convert(v) for v, convert in zip(values, converters, strict=True)])
        )

    return read


def _converter(kind: sa.types.TypeEngine[Any]) -> Converter:
    if isinstance(kind, sa.LargeBinary):
        return bytes
    if isinstance(kind, sa.String):
        return bytes.decode
    if isinstance(kind, sa.Float):
        return float
    if isinstance(kind, sa.Integer | sa.Boolean):
        return int
    raise TypeError(f"a column of {kind!r} has no reader")
