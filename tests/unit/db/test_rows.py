"""Rows from the packets of MariaDB's text protocol, however the stream is cut into pieces."""

import io

import pytest
from pymysql.constants import CR
from pymysql.err import OperationalError, ProgrammingError

from zcompute.db.native.rows import PACKET_BYTES_MAX, cells, select_packets


def packet(number: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number % 256]) + payload


EOF = b"\xfe\x00\x00\x02\x00"


def answer(*rows: bytes) -> bytes:
    payloads = [b"\x02", b"first column", b"second column", EOF, *rows, EOF]
    return b"".join(packet(number, payload) for number, payload in enumerate(payloads, 1))


class Stream(io.RawIOBase):
    """Gives at most so many bytes at once, then the end."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._data = io.BytesIO(data)
        self._piece = piece

    def read1(self, size: int) -> bytes:
        return self._data.read(min(size, self._piece))


class Raw:
    """As much of PyMySQL's connection as a SELECT needs."""

    _current_timeout = _read_timeout = 1.0
    _result = None

    def __init__(self, data: bytes, piece: int = 65_536) -> None:
        self._rfile = Stream(data, piece)

    def _execute_command(self, command: int, statement: bytes) -> None:
        self.sent = statement


LONG = b"x" * 300
ROW = b"\x01a" + b"\xfb"
LONG_ROW = b"\xfc" + len(LONG).to_bytes(2, "little") + LONG + b"\x00"


@pytest.mark.parametrize("piece", [1, 3, 7, 50, 65_536])
def test_rows_are_the_same_however_the_stream_is_cut(piece: int) -> None:
    rows = select_packets(Raw(answer(ROW, LONG_ROW), piece), b"SELECT 1")
    assert [cells(row) for row in rows] == [[b"a", None], [LONG, b""]]


def test_more_rows_than_packet_numbers() -> None:
    assert len(select_packets(Raw(answer(*[ROW] * 1000)), b"SELECT 1")) == 1000


def test_a_row_of_several_packets() -> None:
    value = b"y" * PACKET_BYTES_MAX
    row = b"\x01a\xfe" + len(value).to_bytes(8, "little") + value
    payloads = [b"\x02", b"1", b"2", EOF, row[:PACKET_BYTES_MAX], row[PACKET_BYTES_MAX:], EOF]
    data = b"".join(packet(number, payload) for number, payload in enumerate(payloads, 1))
    (found,) = select_packets(Raw(data), b"SELECT 1")
    assert cells(found) == [b"a", value]


def test_an_error_packet_is_the_servers_error() -> None:
    refused = b"\xff" + (1146).to_bytes(2, "little") + b"#42S02no such table"
    with pytest.raises(ProgrammingError) as error:
        select_packets(Raw(packet(1, refused)), b"SELECT 1")
    assert error.value.args == (1146, "no such table")


@pytest.mark.parametrize("data", [b"", answer(ROW)[:-3], b"\x05\x00\x00\x07\x02"])
def test_a_stream_that_ends_or_has_lost_a_packet_is_a_lost_connection(data: bytes) -> None:
    with pytest.raises(OperationalError) as error:
        select_packets(Raw(data), b"SELECT 1")
    assert error.value.args[0] == CR.CR_SERVER_LOST


def test_a_statement_without_rows_is_refused() -> None:
    with pytest.raises(OperationalError, match="expected rows"):
        select_packets(Raw(packet(1, b"\x00\x00\x00\x02\x00\x00\x00")), b"UPDATE t")
