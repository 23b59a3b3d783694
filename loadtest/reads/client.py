"""The load generator, in a process of its own: raw sockets, keep-alive, one selector; orders in, outcomes out.

python -m loadtest.reads.client       (one JSON line each way; see loadtest/reads/orders.py)
"""

import json
import select
import socket
import sys
import time

import msgspec

from loadtest.reads.orders import Order, Outcome

READ_WHOLE_EVERY = 20
ANSWER_S_MAX = 30.0
_RECEIVE_BYTES = 262_144
_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


class WrongAnswer(Exception):
    """A response that is not what was asked for."""


class Connection:
    """One socket, one request at a time."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.asked = 0
        self.asked_at = 0.0
        self._parts: list[bytes] = []
        self._missing = -1  # bytes of the body, -1: the head is not there yet

    def ask(self, number: int, request: bytes, now: float) -> None:
        """Send it."""
        self.asked, self.asked_at = number, now
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """The body, once it is whole. Raises WrongAnswer."""
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise WrongAnswer("the connection was closed")
        if self._missing < 0:
            data = b"".join([*self._parts, data])
            end = data.find(_END)
            if end < 0:
                self._parts = [data]
                return None
            head = data[:end].lower()
            if not data.startswith(b"HTTP/1.1 200 "):
                raise WrongAnswer(data[:600].decode(errors="replace"))
            at = head.index(_LENGTH) + len(_LENGTH)
            line_end = head.find(b"\r\n", at)
            self._missing = int(head[at : line_end if line_end > 0 else end])
            self._parts, data = [], data[end + 4 :]
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return None
        body = b"".join(self._parts)
        self._parts, self._missing = [], -1
        return body


class Check:
    """Whether bodies are right. Every body is counted through, some are decoded and compared."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._at = 0
        self.read_whole = 0

    def look(self, number: int, body: bytes) -> None:
        """Raises WrongAnswer."""
        order = self._order
        uuids = order.uuids[number % len(order.uuids)] if order.uuids else []
        rows = 1 if order.rows is None else order.rows
        marks = body.count(b'"status":"%s"' % order.status.encode()) if order.status else body.count(b'"rel":"self"')
        if marks != rows or (uuids and uuids[-1].encode() not in body):
            raise WrongAnswer(f"expected {rows} servers up to {uuids[-1:]}, found {marks} in {body[:300]!r}")
        self._at += 1
        if self._at % READ_WHOLE_EVERY != 1:
            return
        self.read_whole += 1
        document = json.loads(body)
        found = [document["server"]] if order.rows is None else document["servers"]
        if uuids and [each["id"] for each in found] != uuids:
            raise WrongAnswer(f"expected {uuids[:3]}.., found {[each['id'] for each in found][:3]}..")
        if order.status and {each["status"] for each in found} != {order.status}:
            raise WrongAnswer(f"expected {order.status}, found {[each['status'] for each in found][:3]}..")


class Load:
    """One order."""

    def __init__(self, order: Order) -> None:
        ports = [order.port, *order.ports]
        self._order = order
        self._check = Check(order)
        self._idle = [Connection(ports[at % len(ports)]) for at in range(order.connections)]
        self._by_fd = {each.socket.fileno(): each for each in self._idle}
        self._from_s = self._due_s = 0.0
        self._requests = [
            f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\nX-Auth-Token: "
            f"{order.tokens[at % len(order.tokens)]}\r\nAccept: application/json\r\n\r\n".encode()
            for at, target in enumerate(order.targets)
        ]
        self._next = 0
        self._taken_ms: list[float] = []
        self._bytes = 0
        self._answers = 0

    def run(self) -> Outcome:
        """Until its time is over; what is open then is not counted."""
        order = self._order
        poller = select.epoll()
        for fd in self._by_fd:
            poller.register(fd, select.EPOLLIN)
        self._due_s = began_s = time.monotonic()
        self._from_s = began_s + order.warm_up_s
        try:
            self._turn(poller, until_s=self._from_s)
            cpu_s = time.process_time()
            self._turn(poller, until_s=self._from_s + order.seconds)
            return self._outcome(time.process_time() - cpu_s)
        except (WrongAnswer, OSError) as error:
            return Outcome(wrong=str(error) or type(error).__name__)
        finally:
            poller.close()
            for connection in self._by_fd.values():
                connection.socket.close()

    def _turn(self, poller: "select.epoll", until_s: float) -> None:
        """Ask and receive. Raises WrongAnswer, OSError."""
        paced = self._order.per_second
        while (now_s := time.monotonic()) < until_s:
            while self._idle and (not paced or self._due_s <= now_s):
                self._ask(self._idle.pop(), self._due_s if paced else now_s)
                self._due_s += 1 / paced if paced else 0.0
            next_s = min(until_s, self._due_s) if paced and self._idle else until_s
            for fd, _ in poller.poll(max(0.0, next_s - now_s)):
                self._receive(self._by_fd[fd])

    def _receive(self, connection: Connection) -> None:
        body = connection.receive()
        if body is None:
            return
        now_s = time.monotonic()
        self._check.look(connection.asked, body)
        self._answers += 1
        if now_s >= self._from_s:
            self._taken_ms.append((now_s - connection.asked_at) * 1000)
            self._bytes += len(body)
        if self._order.per_second:
            self._idle.append(connection)
        else:
            self._ask(connection, now_s)

    def _ask(self, connection: Connection, due: float) -> None:
        number = self._next % len(self._requests)
        self._next += 1
        connection.ask(number, self._requests[number], due)

    def _outcome(self, spent_s: float) -> Outcome:
        taken = sorted(self._taken_ms) or [0.0]
        answers = len(self._taken_ms)
        return Outcome(
            answers=answers,
            all_answers=self._answers,
            seconds=self._order.seconds,
            cpu_s=spent_s,
            p50_ms=taken[len(taken) // 2],
            p99_ms=taken[len(taken) * 99 // 100],
            bytes_each=self._bytes // max(1, answers),
            read_whole=self._check.read_whole,
        )


def main() -> None:
    """One order after the other, until the end of input."""
    decoder, encoder = msgspec.json.Decoder(Order), msgspec.json.Encoder()
    for line in sys.stdin.buffer:
        order: Order = decoder.decode(line)
        try:
            outcome = Load(order).run()
        except OSError as error:
            outcome = Outcome(wrong=f"{type(error).__name__}: {error}")
        print(encoder.encode(outcome).decode(), flush=True)


if __name__ == "__main__":
    main()
