"""A network that can be unplugged: TCP and unix connections through a process that may stop passing bytes on.

    python -m loadtest.chaos.wires < ORDERS        (JSON lines: [name, listen, target] ..., then cuts and mends)

A cut wire is a black hole: nothing is refused, nothing arrives, nothing is lost either once it is mended, as TCP would
send it again. Each direction may be cut alone. A wire that refuses is what a REJECT rule with a TCP reset makes of it:
its connections are reset, new ones refused. A long wire delays each direction, and stalls as TCP does where a packet
is lost: what is behind the lost one waits for its retransmission. Addresses are ``tcp://host:port`` or paths of unix
sockets.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import random  # noqa: E402
import socket  # noqa: E402
import struct  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import msgspec  # noqa: E402
from gevent import Timeout  # noqa: E402
from gevent.event import Event  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402
from gevent.queue import Queue  # noqa: E402
from gevent.server import StreamServer  # noqa: E402
from gevent.socket import create_connection  # noqa: E402

CHUNK_BYTES = 65536
CONNECT_S = 5.0
CHUNKS_ON_THE_WAY = 1024  # of one direction: a window of 64 MiB at most
PACKET_BYTES = 1448
FAST_RETRANSMIT_PACKETS = 3
RETRANSMIT_MS_MIN = 200.0  # Linux' TCP_RTO_MIN
TOWARDS, BACK = "towards", "back"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close resets


class Wire(msgspec.Struct, frozen=True):
    """Whoever connects to ``listen`` reaches ``target``."""

    name: str
    listen: str
    target: str


class Order(msgspec.Struct):
    """Wires to lay, directions of wires to cut or mend, or wires that are to refuse, or to accept again."""

    lay: list[Wire] = []
    cut: list[str] = []
    mend: list[str] = []
    refuse: list[str] = []
    accept: list[str] = []
    directions: tuple[str, ...] = (TOWARDS, BACK)
    lengthen: list[str] = []
    one_way_ms: float = 0.0
    loss: float = 0.0  # share of packets


class Length:
    """How long a wire is: a delay, and the share of packets that are lost. A loss stalls its direction for a
    retransmission: one round trip where enough follows (fast retransmit), else Linux' shortest timeout as well."""

    def __init__(self) -> None:
        self.one_way_ms = 0.0
        self.loss = 0.0

    def delay_s(self, size_bytes: int, draw: Callable[[], float] = random.random) -> float:
        """For one chunk of so many bytes."""
        packets = max(1, -(-size_bytes // PACKET_BYTES))
        lost = self.loss > 0 and draw() >= (1 - self.loss) ** packets
        stall_ms = 2 * self.one_way_ms + (0 if packets > FAST_RETRANSMIT_PACKETS else RETRANSMIT_MS_MIN)
        return (self.one_way_ms + (stall_ms if lost else 0.0)) / 1000


def place(address: str) -> tuple[int, Any]:
    """The socket family and address."""
    if address.startswith("tcp://"):
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        return socket.AF_INET, (host, int(port))
    return socket.AF_UNIX, address


class LaidWire:
    """One listening wire and its gates."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.gates = {TOWARDS: Event(), BACK: Event()}
        for gate in self.gates.values():
            gate.set()
        self.length = Length()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._server: StreamServer | None = None
        self.accept()

    def accept(self) -> None:
        """Listen."""
        family, address = place(self._wire.listen)
        if family == socket.AF_UNIX:
            Path(address).unlink(missing_ok=True)
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
        self._server = StreamServer(listener, self._connected)
        self._server.start()

    def refuse(self) -> None:
        """Listen no more, and reset what is connected."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for sides in list(self._pairs):
            for side in sides:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                side.close()

    def _connected(self, near: socket.socket, _: Any) -> None:
        self.gates[TOWARDS].wait()
        self.gates[BACK].wait()
        family, address = place(self._wire.target)
        far = socket.socket(family, socket.SOCK_STREAM)
        far.settimeout(CONNECT_S)
        try:
            far.connect(address)
        except OSError:
            near.close()
            far.close()
            return
        far.settimeout(None)
        for side in (near, far):
            if side.family == socket.AF_INET:
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.add((near, far))
        towards = gevent.spawn(self._pump, near, far, self.gates[TOWARDS])
        back = gevent.spawn(self._pump, far, near, self.gates[BACK])
        gevent.joinall([towards, back])
        self._pairs.discard((near, far))
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, gate: Event) -> None:
        """Chunks leave in the order in which they came, each when it is due: one that is late keeps those behind it."""
        on_the_way: Queue = Queue(CHUNKS_ON_THE_WAY)
        arriving = gevent.spawn(self._deliver, on_the_way, sink, gate)
        due = 0.0
        try:
            while data := source.recv(CHUNK_BYTES):
                due = max(due, time.monotonic() + self.length.delay_s(len(data)))
                on_the_way.put((due, data))
        except OSError:
            gate.wait()
        on_the_way.put(None)
        arriving.join()
        gate.wait()
        for side in (source, sink):
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    @staticmethod
    def _deliver(on_the_way: "Queue", sink: socket.socket, gate: Event) -> None:
        broken = False
        while (chunk := on_the_way.get()) is not None:
            due, data = chunk
            gevent.sleep(max(0.0, due - time.monotonic()))
            gate.wait()
            try:
                if not broken:
                    sink.sendall(data)
            except OSError:
                broken = True  # the rest is taken and dropped, as by a host that is gone


def obey(order: Order, laid: dict[str, LaidWire]) -> None:
    """Do what an order says."""
    for wire in order.lay:
        laid[wire.name] = LaidWire(wire)
    for name in order.refuse:
        laid[name].refuse()
    for name in order.accept:
        laid[name].accept()
    for name in order.lengthen:
        laid[name].length.one_way_ms, laid[name].length.loss = order.one_way_ms, order.loss
    for direction in order.directions:
        for name in order.cut:
            laid[name].gates[direction].clear()
        for name in order.mend:
            laid[name].gates[direction].set()


def redirect(path: Path) -> None:
    """From now on this process dials, and knocks, by the table in this file: address to address.

    Called before a service starts."""
    from zcompute.bus import Endpoint
    from zcompute.conductor import lease

    table = json.loads(path.read_text(encoding="utf-8"))

    def knock(door: tuple[str, int], timeout: float) -> Any:
        """A wire accepts before it knows whether its target does: a listener greets, and who hangs up has refused."""
        address = f"tcp://{door[0]}:{door[1]}"
        visitor = create_connection(place(table.get(address, address))[1], timeout)
        with Timeout(timeout, False):
            if not visitor.recv(1):
                visitor.close()
                raise ConnectionRefusedError(address)
        return visitor

    vars(lease)["socket"] = SimpleNamespace(create_connection=knock)
    plain = Endpoint.dial

    def dial(endpoint: Endpoint, address: str, server_public_key: str = "") -> Any:
        return plain(endpoint, table.get(address, address), server_public_key)

    Endpoint.dial = dial  # type: ignore[method-assign]


def main() -> None:
    """Obey orders until standard input ends; each is answered by a line."""
    laid: dict[str, LaidWire] = {}
    for line in FileObject(sys.stdin.buffer, "rb"):
        obey(msgspec.json.decode(line, type=Order), laid)
        print("done", flush=True)


if __name__ == "__main__":
    main()
