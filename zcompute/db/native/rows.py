"""The rows of an answer in MariaDB's text protocol, as packets and as values.

PyMySQL makes an object per packet, a descriptor per column and a tuple per row; of all this a read whose columns are
known (zcompute.db.native.reader) needs the bytes only (https://mariadb.com/kb/en/result-set-packets/).
docs/decisions/0017 has the figures.
"""

from collections.abc import Callable, Iterator
from typing import Any

from pymysql import err
from pymysql.constants import COMMAND, CR

CHUNK_BYTES = 65_536
PACKET_BYTES_MAX = 0xFFFFFF  # a packet of this size is continued in the next
_HEADER = 4
_ERROR, _EOF, _OK, _LOCAL_FILE = 0xFF, 0xFE, 0x00, 0xFB
_EOF_BYTES_MAX = 8
NULL, _TWO, _THREE, _EIGHT = 251, 252, 253, 254  # in place of a length


def _packets(raw: Any) -> Iterator[bytes]:
    """The payloads of one answer, read in large pieces. Raises MySQLError for an error packet or a stream that ends."""
    read = raw._rfile.read1
    data, at, have, number = b"", 0, 0, 1
    while True:
        start = at + _HEADER
        if start > have:
            data, at, start = _filled(read, data[at:], _HEADER), 0, _HEADER
            have = len(data)
        size = data[at] | data[at + 1] << 8 | data[at + 2] << 16
        if data[at + 3] != number:
            raise err.OperationalError(CR.CR_SERVER_LOST, f"packet {data[at + 3]} instead of {number}")
        number = (number + 1) & 0xFF
        end = start + size
        if end > have:
            data, start, end = _filled(read, data[start:], size), 0, size
            have = len(data)
        at = end
        payload = data[start:end]
        if size and data[start] == _ERROR:
            err.raise_mysql_exception(payload)
        yield payload


def _filled(read: Callable[[int], bytes], data: bytes, wanted: int) -> bytes:
    """``data`` and what comes behind it, ``wanted`` bytes at least."""
    pieces, have = [data], len(data)
    while have < wanted:
        piece = read(max(CHUNK_BYTES, wanted - have))
        if not piece:
            raise err.OperationalError(CR.CR_SERVER_LOST, "the server closed the connection")
        pieces.append(piece)
        have += len(piece)
    return b"".join(pieces)


def _whole(packets: Iterator[bytes], payload: bytes) -> bytes:
    """A payload that is continued in further packets."""
    parts = [payload]
    while len(parts[-1]) == PACKET_BYTES_MAX:
        parts.append(next(packets))
    return b"".join(parts)


def select_packets(raw: Any, statement: bytes) -> list[bytes]:
    """Send a SELECT over PyMySQL's connection; returns the packet of each row. Raises MySQLError, OSError."""
    raw._execute_command(COMMAND.COM_QUERY, statement)
    raw._result = None
    if raw._current_timeout != raw._read_timeout:
        raw._sock.settimeout(raw._read_timeout)
        raw._current_timeout = raw._read_timeout
    packets = _packets(raw)
    first = next(packets)
    if first[0] in (_OK, _LOCAL_FILE):
        raise err.OperationalError(CR.CR_MALFORMED_PACKET, "expected rows, found none")
    columns = first[0] if first[0] < NULL else int.from_bytes(first[1:3], "little")
    for _ in range(columns + 1):  # their descriptions, and the end of these
        next(packets)
    rows: list[bytes] = []
    for payload in packets:
        if payload[0] == _EOF and len(payload) <= _EOF_BYTES_MAX:
            break
        rows.append(payload if len(payload) < PACKET_BYTES_MAX else _whole(packets, payload))
    return rows


def cells(payload: bytes) -> list[bytes | None]:
    """The values of a row, as the server wrote them."""
    found: list[bytes | None] = []
    at, ends_at = 0, len(payload)
    while at < ends_at:
        size = payload[at]
        at += 1
        if size == NULL:
            found.append(None)
            continue
        if size > NULL:
            at, size = long_value(payload, at, size)
        found.append(payload[at : at + size])
        at += size
    return found


def long_value(payload: bytes, at: int, mark: int) -> tuple[int, int]:
    """Where a longer value begins, and its length."""
    width = 2 if mark == _TWO else 3 if mark == _THREE else 8
    return at + width, int.from_bytes(payload[at : at + width], "little")
