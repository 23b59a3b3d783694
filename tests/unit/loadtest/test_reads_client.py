"""The load generator of reads: what it takes for right, and how it reads answers that come in pieces."""

import json
import socket

import pytest

from loadtest.reads.client import Check, Connection, WrongAnswer
from loadtest.reads.orders import Order

PAGE = [["a", "b"]]


def order(status: str = "ACTIVE") -> Order:
    return Order(
        port=1, tokens=["t"], targets=["/"], connections=1, seconds=1.0, rows=2, uuids=PAGE, status=status
    )  # fmt: skip


def body(uuids: list[str], status: str = "ACTIVE") -> bytes:
    return json.dumps({"servers": [{"id": each, "status": status} for each in uuids]}, separators=(",", ":")).encode()


def test_the_right_servers_in_the_right_order_and_state_are_right() -> None:
    Check(order()).look(0, body(["a", "b"]))


@pytest.mark.parametrize(
    "wrong",
    [body(["a"]), body(["a", "b", "c"]), body(["a", "c"]), body(["b", "a"]), body(["a", "b"], "ERROR"), b"{}"],
    ids=["fewer", "more", "another", "another order", "another state", "nothing"],
)
def test_anything_else_is_not(wrong: bytes) -> None:
    with pytest.raises((WrongAnswer, KeyError)):
        Check(order()).look(0, wrong)


def test_an_answer_in_pieces_is_put_together_and_another_status_is_refused() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    connection = Connection(listener.getsockname()[1])
    server, _ = listener.accept()
    with listener, server, connection.socket:
        server.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
        assert connection.receive() is None
        server.sendall(b"ngth: 6\r\nX: y\r\n\r\nabc")
        assert connection.receive() is None
        server.sendall(b"def")
        assert connection.receive() == b"abcdef"
        server.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(WrongAnswer, match="503"):
            connection.receive()
