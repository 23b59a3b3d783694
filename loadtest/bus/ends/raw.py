"""Raw pyzmq: opaque bytes over DEALER and ROUTER with blocking sockets, no codec, no CURVE, no deadlines, no limits.

python -m loadtest.bus.ends.raw serve | drive ADDRESS
"""

import sys
import time
from collections.abc import Callable

import msgspec
import zmq

from loadtest.bus import payload
from loadtest.bus.orders import CALLS, CASTS, PACED_CALLS_PER_SECOND, Done, Order, paced, read_order, to_line

CALL, CAST, COUNT = b"q", b"c", b"n"
HELD_FRAMES_HWM = 10_000


Receive = Callable[[], bytes]
POLL_MS = 60_000


def receiver(socket: "zmq.Socket[bytes]", how: str) -> Receive:
    """How to wait for the first part of the next message."""
    if how == "blocking":
        return socket.recv
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)

    def polled() -> bytes:
        while not poller.poll(POLL_MS):
            continue
        return socket.recv(zmq.NOBLOCK)

    return polled


def serve(how: str) -> None:
    """Echo calls, count casts."""
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.setsockopt(zmq.RCVHWM, HELD_FRAMES_HWM)
    port = socket.bind_to_random_port("tcp://127.0.0.1", 20000, 26000)
    print(f"tcp://127.0.0.1:{port}", flush=True)
    casts = 0
    recv = receiver(socket, how)
    while True:
        route = recv()
        frame = socket.recv()
        kind = frame[:1]
        if kind == CAST:
            casts += 1
        elif kind == CALL:
            socket.send(route, zmq.SNDMORE)
            socket.send(frame)
        else:
            socket.send(route, zmq.SNDMORE)
            socket.send(b"%d" % casts)


class Client:
    """Keeps so many calls open on one DEALER, or sends casts as fast as it takes them."""

    def __init__(self, how: str, address: str) -> None:
        self._socket = zmq.Context().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, HELD_FRAMES_HWM)
        self._socket.connect(address)
        self._recv = receiver(self._socket, how)

    def do(self, order: Order) -> Done:
        """Carry out one order."""
        body = msgspec.msgpack.encode(payload.make(order.payload))
        if order.kind == CALLS:
            return self._calls(CALL + body, order)
        if order.kind == CASTS:
            return self._casts(CAST + body, order)
        return self._paced(CALL + body, order)

    def _calls(self, frame: bytes, order: Order) -> Done:
        send, recv, clock = self._socket.send, self._recv, time.monotonic
        started = clock()
        end = started + order.seconds
        count = 0
        for _ in range(order.in_flight):
            send(frame)
        while clock() < end:
            if len(recv()) != len(frame):
                raise RuntimeError("wrong echo")
            count += 1
            send(frame)
        for _ in range(order.in_flight):
            recv()
        return Done(count + order.in_flight, clock() - started)

    def _casts(self, frame: bytes, order: Order) -> Done:
        send, clock = self._socket.send, time.monotonic
        before = self._count()
        started = clock()
        end = started + order.seconds
        count = 0
        while clock() < end:
            for _ in range(64):
                send(frame)
            count += 64
        received = self._count() - before
        if received != count:
            raise RuntimeError(f"{received} of {count} casts arrived")
        return Done(count, clock() - started)

    def _paced(self, frame: bytes, order: Order) -> Done:
        started = time.monotonic()
        taken = []
        for number in range(int(order.seconds * PACED_CALLS_PER_SECOND)):
            due = started + number / PACED_CALLS_PER_SECOND
            time.sleep(max(0.0, due - time.monotonic()))
            sent = time.monotonic()
            self._socket.send(frame)
            self._recv()
            taken.append(time.monotonic() - sent)
        return paced(taken, time.monotonic() - started)

    def _count(self) -> int:
        self._socket.send(COUNT)
        return int(self._recv())


def main() -> None:
    """Serve, or drive the server at the address given."""
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
        return
    client = Client(sys.argv[2], sys.argv[3])
    print("ready", flush=True)
    for line in sys.stdin:
        print(to_line(client.do(read_order(line))), flush=True)


if __name__ == "__main__":
    main()
