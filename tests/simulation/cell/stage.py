"""Makes one process fit for a whole simulated cell: clock, ids, chance, sockets, threads and databases are replaced.

Only entry points of the simulation come here: what is replaced stays so for the life of the process. A second stage
in the same process replaces the first, whose life is over; its greenlets are kept, or their ``finally`` would run.
"""

import gc
import itertools
import logging
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gevent
import zmq
from gevent import hub as gevent_hub
from gevent._hub_local import set_hub

from tests.simulation.cell.loop import BEGIN_S, VirtualLoop
from tests.simulation.cell.wire import Network, SimContext

TICK_MS = 100  # four times the bus' own: half of a life's callbacks were ticks
REREAD_MS = 600_000  # a simulated socket misses no edge
WALL_S = 1_800_000_000.0


class Clocks:
    """The clocks of the life that is lived. They are put in the place of the real ones once, before anything of the
    services is imported: what takes a clock as a default argument keeps the one that it finds."""

    loop: VirtualLoop

    @staticmethod
    def monotonic_s() -> float:
        loop = Clocks.loop
        process = loop.process
        return loop.now_s if process is None else loop.now_s + process.ahead_s

    @staticmethod
    def wall_s() -> float:
        return WALL_S + Clocks.loop.now_s

    @staticmethod
    def wall_ns() -> int:
        return int((WALL_S + Clocks.loop.now_s) * 1e9)


def replace_clocks() -> None:
    """See Clocks. The clock stands still until there is a life."""
    Clocks.loop = VirtualLoop(0)
    time.monotonic, time.time, time.time_ns = Clocks.monotonic_s, Clocks.wall_s, Clocks.wall_ns


class Inline:
    """Stands for the hub's thread pool: what it is given is done at once."""

    def spawn(self, work: Callable[..., Any], *args: Any) -> "Inline":
        work(*args)
        return self

    def wait(self, timeout: float | None = None) -> None:
        """It is done already."""


class NativeThreads:
    """Stands for gevent.monkey in the lease: a native thread is a greenlet that a stalled hub does not hold up."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def get_original(self, module: str, name: str) -> Callable[..., Any]:
        return gevent.sleep if name == "sleep" else self._start

    def _start(self, body: Callable[..., Any], args: tuple[Any, ...]) -> None:
        process = self._loop.process
        self._loop.spawn(None if process is None else process.native, body, *args)


class Knocking:
    """Stands for gevent.socket in the lease's probe of a port."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def create_connection(self, place: tuple[str, int], timeout: float) -> "Knocking":
        network = self._network
        gevent.sleep(network.delay_s())
        if (network.running(), place[0]) in network.blocked or (place[0], network.running()) in network.blocked:
            gevent.sleep(timeout)
            raise TimeoutError(f"{place[0]} does not answer")
        if f"tcp://{place[0]}:{place[1]}" not in network.listeners:
            raise ConnectionRefusedError(f"{place[0]} refuses")
        return self

    def close(self) -> None:
        """It was only asked whether somebody is there."""


class NoWatch:
    """Stands for the watch over key files: there are none."""

    def __init__(self, *_: Any) -> None:
        self.keys = None

    def start(self) -> None:
        """Nothing to follow."""

    stop = start


def set_stage(seed: int, crashed: Callable[[str], None]) -> tuple[VirtualLoop, Network]:
    """Replace the world of this process. ``crashed`` hears of greenlets that died of what nobody foresaw."""
    loop = VirtualLoop(seed)
    hub = gevent_hub.Hub(loop=loop)
    set_hub(hub)
    hub._threadpool = Inline()
    quiet = (*hub.SYSTEM_ERROR, *hub.NOT_ERROR, *_expected())

    def handle_error(context: Any, kind: Any, value: Any, trace: Any) -> None:
        if not issubclass(kind, quiet):
            crashed(f"{context!r}: {kind.__name__}: {value}")
        elif issubclass(kind, hub.SYSTEM_ERROR):
            hub.parent.throw(value)

    hub.handle_error = handle_error
    Clocks.loop = loop
    random.seed(seed)
    ids = random.Random(f"{seed} ids")
    uuid.uuid4 = lambda: uuid.UUID(int=ids.getrandbits(128), version=4)
    network = Network(loop, seed)
    SimContext.network = network
    zmq.Context = SimContext
    _replace_seams(loop, network)
    return loop, network


def _expected() -> tuple[type[BaseException], ...]:
    """What may end a greenlet whose waiter deals with it."""
    from zcompute.bus import BusError
    from zcompute.db.errors import StoreError

    return BusError, StoreError


def _kernel(network: Network) -> dict[str, Callable[..., Any]]:
    """What the bus asks of the kernel and of pyzmq beside the sockets themselves, by the names it imports."""
    return {
        "silent_s": network.silent_s,
        "unread_bytes": network.unread_bytes,
        "far_end": network.far_end,
        "cut": network.shut,
        "answers": network.answers,
        "sender_of": lambda socket: socket.send,
    }


def _replace_seams(loop: VirtualLoop, network: Network) -> None:
    from zcompute.bus import dialler, listener, route
    from zcompute.bus.endpoint import Endpoint
    from zcompute.bus.limits import Limits
    from zcompute.bus.link import Link
    from zcompute.cells.router import PartitionRouter
    from zcompute.conductor import cpu, lease, service
    from zcompute.conductor.tasks.run import TaskRun

    slow: dict[str, Any] = {"tick_ms": TICK_MS, "events_reread_ms": REREAD_MS, "io_beside_share_max": 0.0}
    Endpoint.__init__.__kwdefaults__["limits"] = Limits(**slow)
    service.LIMITS = replace(service.LIMITS, **slow)
    cpu.cpu_s = cpu.cpu_wait_s = lambda: 0.0
    for module in (dialler, listener, route):
        for name, stand_in in _kernel(network).items():
            if hasattr(module, name):
                setattr(module, name, stand_in)
    lease.monkey = NativeThreads(loop)
    lease.socket = Knocking(network)
    service.KeyWatch = NoWatch
    for kind in (Link, PartitionRouter, TaskRun):
        _number(kind)


_numbered: dict[type, Callable[..., None]] = {}


def _number(kind: type) -> None:
    """Sets of these are walked in the order of their hashes: let that be the same in every run."""
    numbers = itertools.count(1)
    former = _numbered.setdefault(kind, kind.__init__)

    def begin(self: Any, *args: Any, **named: Any) -> None:
        self.__dict__["_simulated_number"] = next(numbers)
        former(self, *args, **named)

    kind.__init__ = begin
    kind.__hash__ = lambda self: self.__dict__["_simulated_number"]


class _Stamp(logging.Formatter):
    """Lines begin with the virtual second and the process."""

    def __init__(self, network: Network) -> None:
        super().__init__("%(levelname).1s %(name)s %(message)s")
        self._network = network

    def format(self, record: logging.LogRecord) -> str:
        loop = self._network.loop
        return f"{loop.now_s - BEGIN_S:9.4f} {self._network.running():4} {super().format(record)}"


def speak(network: Network) -> None:
    """Let the services log, for one seed that is looked at."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Stamp(network))
    logging.basicConfig(level=logging.DEBUG, handlers=[handler])


def quieten(verbose: bool) -> None:
    """Logs cost more than what they tell of; cycles are collected by nobody in so short a life."""
    if not verbose:
        logging.disable(logging.CRITICAL)
    gc.disable()
