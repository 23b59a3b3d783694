"""libzmq, simulated: ROUTERs, DEALERs and their monitors over a seeded network, at the seam of `zmq.Context`.

What the bus relies on is kept: a DEALER connects again and again, a ROUTER names routes and refuses those it does not
know, a frame arrives whole and in its order or not at all, what was queued when a connection ended is lost, and the
kernel knows when something last came in. CURVE is left out: its handshake is a delay.
"""

import errno
import random
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import gevent
import zmq

from tests.simulation.cell.loop import Handle, Process, VirtualLoop

FRAMES_IN_FLIGHT_MAX = 128  # both high-water marks; what the kernels hold beside is small against it
RECONNECT_S = (0.03, 0.3)
POLLIN, POLLOUT, FD, EVENTS, RCVMORE, SNDMORE, SRCFD = map(
    int, (zmq.POLLIN, zmq.POLLOUT, zmq.FD, zmq.EVENTS, zmq.RCVMORE, zmq.SNDMORE, zmq.SRCFD)
)  # as plain numbers: enums reckon slowly
CONNECTED, HANDSHAKEN, DISCONNECTED, CLOSED = map(
    int, (zmq.EVENT_CONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED)
)
CONNECT_S = (0.0005, 0.004)


@dataclass
class Weather:
    """How the network is: seconds a frame takes, and how often one takes longer."""

    delay_s: tuple[float, float] = (0.0001, 0.0008)
    slow: float = 0.01
    slow_s: tuple[float, float] = (0.005, 0.1)


class Network:
    """All sockets, connections and faults. Pairs of process names in ``blocked`` hear nothing of one another, in the
    one direction (from, to)."""

    def __init__(self, loop: VirtualLoop, seed: int) -> None:
        self.loop = loop
        self.dice = random.Random(f"{seed} wire")
        self.weather = Weather()
        self.listeners: dict[str, SimRouter] = {}
        self.connections: dict[int, Connection] = {}
        self.severed: list[Connection] = []  # one end has closed, the other cannot hear of it
        self.blocked: set[tuple[str, str]] = set()
        self.numbers = 0

    def delay_s(self) -> float:
        weather = self.weather
        spread = weather.slow_s if self.dice.random() < weather.slow else weather.delay_s
        return self.dice.uniform(*spread)

    def running(self) -> str:
        """The name of the process that runs now."""
        process = self.loop.process
        return "" if process is None else process.name

    def mute(self, source: str, target: str) -> bool:
        return (source, target) in self.blocked

    def of(self, process: Process) -> list["Connection"]:
        return [c for c in self.connections.values() if process in (c.dealer.process, c.router.process)]

    # -- faults -------------------------------------------------------------------------------------------------

    def block(self, source: str, target: str) -> None:
        """Nothing from ``source`` reaches ``target``, and nobody is told."""
        self.blocked.add((source, target))

    def heal(self, source: str, target: str) -> None:
        """What was held back arrives, where the connection still is."""
        self.blocked.discard((source, target))
        self._release()

    def heal_all(self) -> None:
        self.blocked.clear()
        self._release()

    def _release(self) -> None:
        severed, self.severed = self.severed, []
        for connection in [*self.connections.values(), *severed]:
            connection.release()
            if connection.to_router.ended or connection.to_dealer.ended:
                self.severed.append(connection)

    # -- what the kernel knows (zcompute.bus.connections) -----------------------------------------------------------

    def silent_s(self, descriptor: int) -> float | None:
        connection = self.connections.get(descriptor // 2)
        return None if connection is None else connection.pipe_to(descriptor).silent_s(self.loop.now_s)

    def unread_bytes(self, descriptor: int) -> int:
        connection = self.connections.get(descriptor // 2)
        return int(connection is not None and connection.pipe_to(descriptor).unread(self.loop.now_s))

    def far_end(self, descriptor: int) -> str:
        return f"connection {descriptor // 2}" if descriptor // 2 in self.connections else ""

    def shut(self, descriptor: int, other_end: str) -> bool:
        connection = self.connections.get(descriptor // 2)
        if connection is None or other_end != self.far_end(descriptor):
            return False
        connection.shut(descriptor)
        return True

    def answers(self, address: str, timeout_s: float) -> bool:
        """A hub that is stalled has I/O threads that go on; a stopped process has none."""
        gevent.sleep(self.delay_s())
        router = self.listeners.get(address)
        me = self.running()
        if router is None:
            return False
        native = router.process.native or router.process
        other = router.process.name
        if native.held is None and not self.mute(me, other) and not self.mute(other, me):
            return True
        gevent.sleep(timeout_s)
        return False

    def died(self, process: Process) -> None:
        """The kernel closes its sockets; what had not left its buffers is lost."""
        for address, router in list(self.listeners.items()):
            if router.process is process:
                del self.listeners[address]
        for connection in self.of(process):
            connection.lose_tail(process)
            connection.finish(process)


@dataclass
class _Pipe:
    """One direction: frames under way, in order."""

    source: "SimSocket"
    target: "SimSocket"
    frames: int = 0
    last_s: float = 0.0  # when the last frame comes in
    heard_s: float = 0.0  # when the target's kernel last got something that its process has taken
    coming: deque[float] = field(default_factory=deque)  # when each frame under way comes in
    held: list[bytes] = field(default_factory=list)
    ended: bool = False  # its end waits behind a block
    lost_after: float = float("inf")

    def unread(self, now_s: float) -> bool:
        """Whether the target's kernel holds what its process has not taken."""
        return bool(self.coming) and self.coming[0] <= now_s

    def silent_s(self, now_s: float) -> float:
        """Seconds since the target's kernel got something."""
        last_s = next((due_s for due_s in reversed(self.coming) if due_s <= now_s), self.heard_s)
        return now_s - last_s


class Connection:
    """A DEALER and a ROUTER that have found each other."""

    def __init__(self, network: Network, dealer: "SimDealer", router: "SimRouter") -> None:
        network.numbers += 1
        self.number = network.numbers
        self.route_id = b"\0" + self.number.to_bytes(4, "big")
        self.network = network
        self.dealer = dealer
        self.router = router
        self.up = True
        now_s = network.loop.now_s
        self.to_router = _Pipe(dealer, router, heard_s=now_s)
        self.to_dealer = _Pipe(router, dealer, heard_s=now_s)
        network.connections[self.number] = self

    def room(self, pipe: _Pipe) -> bool:
        return pipe.frames < FRAMES_IN_FLIGHT_MAX

    def send(self, pipe: _Pipe, frame: bytes) -> None:
        pipe.frames += 1
        network = self.network
        if pipe.held or network.mute(pipe.source.process.name, pipe.target.process.name):
            pipe.held.append(frame)
            return
        self._carry(pipe, frame)

    def _carry(self, pipe: _Pipe, frame: bytes) -> None:
        loop = self.network.loop
        due_s = pipe.last_s = max(pipe.last_s, loop.now_s + self.network.delay_s())
        pipe.coming.append(due_s)
        loop.later(due_s - loop.now_s, pipe.target.process, self._arrive, pipe, frame, loop.now_s)

    def _arrive(self, pipe: _Pipe, frame: bytes, sent_s: float) -> None:
        full = not self.room(pipe)
        pipe.frames -= 1
        pipe.heard_s = pipe.coming.popleft()
        if not self.up or sent_s >= pipe.lost_after or pipe.target.closed:
            return
        pipe.target.took(self, frame)
        if full:
            self.network.loop.soon(pipe.source.process, pipe.source.handle.signal)

    def release(self) -> None:
        """Frames that were held back by a block go on."""
        for pipe in (self.to_router, self.to_dealer):
            if not self.network.mute(pipe.source.process.name, pipe.target.process.name):
                held, pipe.held = pipe.held, []
                for frame in held:
                    self._carry(pipe, frame)
                if pipe.ended:
                    self._tell_end(pipe)

    def lose_tail(self, process: Process) -> None:
        """A suffix of what this process has sent never leaves its memory."""
        loop, dice = self.network.loop, self.network.dice
        pipe = self.to_router if self.dealer.process is process else self.to_dealer
        pipe.held.clear()
        pipe.lost_after = loop.now_s - dice.choice((0.0, 0.0, 0.0002, 0.001))

    def cut(self) -> None:
        """Both sides lose it; what was under way is lost."""
        if self.up:
            self.up = False
            self.network.connections.pop(self.number, None)
            loop = self.network.loop
            loop.soon(self.dealer.process, self.dealer.disconnected, self)
            loop.soon(self.router.process, self.router.disconnected, self)

    def pipe_to(self, descriptor: int) -> _Pipe:
        """What comes in at one of the two ends: the DEALER's descriptor is even, the ROUTER's odd."""
        return self.to_router if descriptor % 2 else self.to_dealer

    def shut(self, descriptor: int) -> None:
        """One end is shut down: it loses what is under way to it, the other hears of it behind what was sent."""
        pipe = self.pipe_to(descriptor)
        self.finish(pipe.target.process)
        pipe.lost_after = float("-inf")
        self.network.loop.soon(pipe.target.process, pipe.target.disconnected, self)

    def finish(self, process: Process) -> None:
        """This side has closed: the other hears of it behind what was sent."""
        network = self.network
        if self.number not in network.connections:
            return
        del network.connections[self.number]
        pipe = self.to_router if self.dealer.process is process else self.to_dealer
        if pipe.held or network.mute(pipe.source.process.name, pipe.target.process.name):
            pipe.ended = True
            network.severed.append(self)
        else:
            self._tell_end(pipe)

    def _tell_end(self, pipe: _Pipe) -> None:
        network = self.network
        pipe.ended = False
        after_s = max(pipe.last_s - network.loop.now_s, 0.0) + network.delay_s()
        network.loop.later(after_s, pipe.target.process, self._finished, pipe.target)

    def _finished(self, other: "SimSocket") -> None:
        self.up = False
        other.disconnected(self)


class SimMonitor:
    """A monitor socket."""

    def __init__(self) -> None:
        self.handle = Handle()
        self.events: deque[bytes] = deque()
        self.closed = False

    def tell(self, event: int, value: int) -> None:
        self.events.append(struct.pack("=Hi", event, value))
        self.handle.signal()

    def getsockopt(self, option: int) -> Any:
        return self.handle if option == FD else (POLLIN if self.events else 0)

    def recv_multipart(self, flags: int = 0) -> list[bytes]:
        return [self.events.popleft(), b""]

    def close(self, linger: int = 0) -> None:
        self.closed = True


class SimFrame:
    """A received message with its connection's properties."""

    more = False

    def __init__(self, data: bytes, connection: Connection) -> None:
        self.bytes = data
        self._connection = connection

    def get(self, name: Any) -> Any:
        if name == SRCFD:
            return self._connection.number * 2 + 1
        return self._connection.dealer.process.name


class SimSocket:
    """What both kinds share."""

    def __init__(self, network: Network) -> None:
        process = network.loop.process
        if process is None:
            raise RuntimeError("a simulated socket belongs to a process: open it under one")
        self.network = network
        self.process: Process = process
        self.handle = Handle()
        self.monitor: SimMonitor | None = None
        self.inbox: deque[tuple[Connection, bytes]] = deque()
        self.closed = False
        self._part: bytes | None = None
        self._mask = 0

    def setsockopt(self, option: int, value: Any) -> None:
        """Every option that the bus sets is as this network behaves."""

    def getsockopt(self, option: int) -> Any:
        if option == EVENTS:
            return POLLIN | POLLOUT if self.inbox or self._part is not None else POLLOUT
        if option == RCVMORE:
            return int(self._part is not None)
        return self.handle

    def get_monitor_socket(self, mask: int) -> SimMonitor:
        self._mask = int(mask)
        self.monitor = SimMonitor()
        return self.monitor

    def disable_monitor(self) -> None:
        self.monitor = None

    def tell(self, event: int, value: int) -> None:
        if self.monitor is not None and event & self._mask:
            self.monitor.tell(event, value)

    def took(self, connection: Connection, frame: bytes) -> None:
        self.inbox.append((connection, frame))
        self.handle.signal()

    def disconnected(self, connection: Connection) -> None:
        """The connection is gone."""
        raise NotImplementedError


class SimDealer(SimSocket):
    """A DEALER with ZMQ_IMMEDIATE: connects for ever, queues nothing while it is not connected."""

    connection: Connection | None = None
    _address = ""

    def connect(self, address: str) -> None:
        self._address = address
        self._try_after(self.network.dice.uniform(*CONNECT_S))

    def _try_after(self, after_s: float) -> None:
        self.network.loop.later(after_s, None, self._try)

    def _try(self) -> None:
        network = self.network
        if self.closed or self.connection is not None or self.process.dead:
            return
        router = network.listeners.get(self._address)
        again_s = network.dice.uniform(*RECONNECT_S)
        if router is None:
            network.loop.soon(self.process, self.tell, CLOSED, 0)
            self._try_after(again_s)
            return
        names = (self.process.name, router.process.name)
        if names in network.blocked or names[::-1] in network.blocked or router.process.held or self.process.held:
            self._try_after(again_s)
            return
        self.connection = Connection(network, self, router)
        network.loop.later(network.delay_s(), self.process, self._connected, self.connection)

    def _connected(self, connection: Connection) -> None:
        if not self.closed and connection.up and self.connection is connection:
            self.tell(CONNECTED, connection.number * 2)
            self.tell(HANDSHAKEN, connection.number * 2)
            self.handle.signal()

    def send(self, frame: bytes, flags: int = 0) -> None:
        connection = self.connection
        if connection is None or not connection.room(connection.to_router):
            raise zmq.Again
        connection.send(connection.to_router, bytes(frame))

    def recv(self, flags: int = 0, copy: bool = True) -> Any:
        connection, frame = self.inbox.popleft()
        return frame if copy else SimFrame(frame, connection)

    def disconnected(self, connection: Connection) -> None:
        if self.connection is connection:
            self.connection = None
            self.tell(DISCONNECTED, connection.number * 2)
            if not self.closed:
                self._try_after(self.network.dice.uniform(*RECONNECT_S))

    def close(self, linger: int | None = 0) -> None:
        if not self.closed:
            self.closed = True
            if self.connection is not None:
                self.connection.finish(self.process)
                self.connection = None


class SimRouter(SimSocket):
    """A ROUTER with ZMQ_ROUTER_MANDATORY."""

    _to: bytes | None = None

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._addresses: list[str] = []

    def bind(self, address: str) -> None:
        if address in self.network.listeners:
            raise zmq.ZMQError(errno.EADDRINUSE)
        self.network.listeners[address] = self
        self._addresses.append(address)

    def _route(self, route_id: bytes) -> Connection | None:
        connection = self.network.connections.get(int.from_bytes(route_id[1:], "big"))
        return connection if connection is not None and connection.router is self else None

    def send(self, data: bytes, flags: int = 0) -> None:
        if flags & SNDMORE:
            connection = self._route(data)
            if connection is None:
                raise zmq.ZMQError(errno.EHOSTUNREACH)
            if not connection.room(connection.to_dealer):
                raise zmq.Again
            self._to = data
            return
        route_id, self._to = self._to, None
        connection = self._route(route_id or b"")
        if connection is not None:
            connection.send(connection.to_dealer, bytes(data))

    def recv(self, flags: int = 0, copy: bool = True) -> Any:
        if self._part is None:
            connection, frame = self.inbox.popleft()
            self._part, self._of = frame, connection
            return connection.route_id
        frame, self._part = self._part, None
        return frame if copy else SimFrame(frame, self._of)

    def disconnected(self, connection: Connection) -> None:
        self.tell(DISCONNECTED, connection.number * 2 + 1)

    def close(self, linger: int | None = 0) -> None:
        if self.closed:
            return
        self.closed = True
        for address in self._addresses:
            if self.network.listeners.get(address) is self:
                del self.network.listeners[address]
        for connection in [c for c in self.network.connections.values() if c.router is self]:
            connection.finish(self.process)


class SimContext:
    """Stands for `zmq.Context`; `network` is set by the world."""

    network: Network

    def __init__(self, io_threads: int = 1) -> None:
        self.closed = False

    def set(self, option: int, value: int) -> None:
        """Every option that the bus sets is as this network behaves."""

    def socket(self, kind: int) -> SimSocket:
        return SimRouter(self.network) if kind == zmq.ROUTER else SimDealer(self.network)

    def term(self) -> None:
        self.closed = True
