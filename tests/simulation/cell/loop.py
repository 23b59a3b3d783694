"""gevent's event loop under a virtual clock: production code runs unchanged, and a second takes as long as its work.

Callbacks run in the order in which they were asked for; when none is left, the clock jumps to the next timer. Every
callback and timer belongs to the process (`Process`) under which it was asked for, so that a process can be frozen
(what is its own waits) and killed (what is its own never runs again), while its peers go on.

The loop has what gevent asks of a loop and no more: timers, callbacks, and io watchers on `Handle`s, which the
simulated sockets signal. Nothing here reads a real clock or a real file descriptor.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from typing import Any

import gevent

STALL_CALLBACKS_MAX = 400_000  # callbacks at one instant; more is a loop that never lets time pass
BEGIN_S = 1000.0  # what the clock shows at the beginning
TIMER_LATE_S_MAX = 0.0003  # a timer of a real process is never exactly on time


class Stalled(Exception):
    """Virtual time does not go on."""


class Process:
    """What can be frozen and killed as one. ``held`` None: it runs."""

    __slots__ = ("ahead_s", "dead", "held", "kept", "name", "native")

    def __init__(self, name: str, *, native: bool = True) -> None:
        self.name = name
        self.held: list[Callback] | None = None
        self.ahead_s = 0.0  # of its clock, behind leaps
        self.dead = False
        self.native = Process(f"{name}/native", native=False) if native else None
        self.kept: list[Any] = []

    @property
    def frozen(self) -> bool:
        return self.held is not None and not self.dead

    def _parts(self) -> Iterable["Process"]:
        return (self,) if self.native is None else (self, self.native)

    def freeze(self, *, hub_only: bool = False) -> None:
        """SIGSTOP; or, ``hub_only``, a hub that is kept from turning while native threads go on."""
        for part in (self,) if hub_only else self._parts():
            if part.held is None:
                part.held = []

    def thaw(self, loop: "VirtualLoop") -> None:
        """SIGCONT: all that has come due runs now, in its order."""
        if self.dead:
            return
        for part in self._parts():
            held, part.held = part.held, None
            loop.first(held or ())

    def leap(self, loop: "VirtualLoop", by_s: float) -> None:
        """Its clock jumps forward, as that of a virtual machine may: what it waits for comes so much earlier."""
        for part in self._parts():
            part.ahead_s += by_s
        loop.bring_forward(set(self._parts()), by_s)

    def kill(self) -> None:
        """SIGKILL: nothing of it runs any more. Its greenlets are kept, or their ``finally`` would run."""
        for part in self._parts():
            part.dead = True
            part.held = part.held or []


class Callback:
    """One call to be made, as gevent's loops hand them out."""

    __slots__ = ("args", "callback", "process")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], process: Process | None) -> None:
        self.callback: Callable[..., Any] | None = callback
        self.args: tuple[Any, ...] | None = args
        self.process = process

    def stop(self) -> None:
        self.callback = None
        self.args = None

    close = stop

    def __bool__(self) -> bool:
        return self.args is not None

    @property
    def pending(self) -> bool:
        return self.callback is not None


class Timer:
    """A timer watcher."""

    __slots__ = ("_after_s", "_args", "_callback", "_loop", "_planned", "_process", "_repeat_s", "active")

    pending = False
    ref = True

    def __init__(self, loop: "VirtualLoop", after_s: float, repeat_s: float) -> None:
        self._loop = loop
        self._after_s = after_s
        self._repeat_s = repeat_s
        self._callback: Callable[..., Any] | None = None
        self._args: tuple[Any, ...] = ()
        self._process: Process | None = None
        self._planned: Callback | None = None
        self.active = False

    def start(self, callback: Callable[..., Any], *args: Any, update: bool = False) -> None:
        if self._planned is not None:
            self._planned.stop()
        self._callback, self._args, self._process = callback, args, self._loop.process
        self.active = True
        self._planned = self._loop.plan(self._after_s, self._process, self._fire)

    def again(self, callback: Callable[..., Any], *args: Any, update: bool = False) -> None:
        self.start(callback, *args)

    def _fire(self) -> None:
        callback = self._callback
        if callback is None:
            return
        if self._repeat_s:
            self._planned = self._loop.plan(self._repeat_s, self._process, self._fire)
        else:
            self.active = False
        callback(*self._args)

    def stop(self) -> None:
        self.active = False
        if self._planned is not None:
            self._planned.stop()
            self._planned = None
        self._callback = None
        self._args = ()

    close = stop

    def __enter__(self) -> "Timer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Handle:
    """Stands for a file descriptor: `signal` runs what watches it."""

    __slots__ = ("watchers",)

    def __init__(self) -> None:
        self.watchers: list[Io] = []

    def signal(self) -> None:
        for watcher in self.watchers:
            watcher.ready()


class Io:
    """An io watcher on a handle."""

    active = pending = False

    def __init__(self, loop: "VirtualLoop", handle: Handle) -> None:
        self._loop = loop
        self._handle = handle
        self._callback: Callable[..., Any] | None = None
        self._args: tuple[Any, ...] = ()
        self._process: Process | None = None
        self._signalled = False

    def start(self, callback: Callable[..., Any], *args: Any, **_: Any) -> None:
        self._callback, self._args, self._process = callback, args, self._loop.process
        self._handle.watchers.append(self)

    def ready(self) -> None:
        if not self._signalled:
            self._signalled = True
            self._loop.soon(self._process, self._run)

    def _run(self) -> None:
        self._signalled = False
        if self._callback is not None:
            self._callback(*self._args)

    def stop(self) -> None:
        if self._callback is not None:
            self._callback = None
            self._handle.watchers.remove(self)

    close = stop


class _Nothing:
    """A watcher that never fires (signals, children, prepare and check)."""

    active = pending = False
    ref = False

    def start(self, *_: Any, **__: Any) -> None:
        """Nothing to watch."""

    def stop(self) -> None:
        """Nothing to end."""

    close = send = stop


class VirtualLoop:
    """gevent's loop. ``now_s`` is the clock of every process; ``process`` whoever runs now (None: the world)."""

    default = True
    approx_timer_resolution = 0.00001
    error_handler: Any = None

    def __init__(self, seed: int) -> None:
        self.now_s = BEGIN_S
        self.process: Process | None = None
        self.steps = 0
        self.ends_at_s = float("inf")
        self._ready: deque[Callback] = deque()
        self._timers: list[tuple[float, int, Callback]] = []
        self._count = 0
        self._late = random.Random(seed).random

    # -- for the world ------------------------------------------------------------------------------------------

    def soon(self, process: Process | None, callback: Callable[..., Any], *args: Any) -> None:
        """Call under this process."""
        self._ready.append(Callback(callback, args, process))

    def later(self, after_s: float, process: Process | None, callback: Callable[..., Any], *args: Any) -> None:
        """Call under this process, exactly then."""
        self._count += 1
        heappush(self._timers, (self.now_s + after_s, self._count, Callback(callback, args, process)))

    def first(self, entries: Iterable[Callback]) -> None:
        """Run these before all that waits."""
        self._ready.extendleft(reversed(list(entries)))

    def spawn(self, process: Process | None, callback: Callable[..., Any], *args: Any) -> None:
        """A greenlet of this process."""
        self.soon(process, lambda: gevent.spawn(callback, *args))

    def plan(self, after_s: float, process: Process | None, callback: Callable[[], None]) -> Callback:
        """A timer of a process: never early, a little late."""
        self._count += 1
        due_s = self.now_s + (after_s + self._late() * TIMER_LATE_S_MAX if after_s > 0 else 0.0)
        entry = Callback(callback, (), process)
        heappush(self._timers, (due_s, self._count, entry))
        return entry

    def bring_forward(self, processes: set[Process], by_s: float) -> None:
        """The timers of these come earlier; what is under way to them does not."""
        now_s = self.now_s
        for place, (due_s, count, entry) in enumerate(self._timers):
            if entry.process in processes and getattr(entry.callback, "__func__", None) is Timer._fire:
                self._timers[place] = (max(now_s, due_s - by_s), count, entry)
        heapify(self._timers)

    # -- gevent's side ------------------------------------------------------------------------------------------

    def run(self, nowait: bool = False, once: bool = False) -> None:
        ready, timers = self._ready, self._timers
        take, put = ready.popleft, ready.append
        while True:
            steps = 0
            while ready:
                entry = take()
                callback = entry.callback
                if callback is None:
                    continue
                process = entry.process
                if process is not None and process.held is not None:
                    process.held.append(entry)
                    continue
                entry.callback = None
                self.process = process
                try:
                    callback(*entry.args or ())
                except BaseException as error:  # noqa: BLE001  # as gevent's own loops do: the hub decides
                    self.handle_error(entry, type(error), error, error.__traceback__)
                entry.args = None
                steps += 1
                if steps > STALL_CALLBACKS_MAX:
                    raise Stalled(f"{steps} callbacks at {self.now_s:.6f}")
            self.steps += steps
            if not timers:
                return
            if timers[0][0] > self.now_s:
                self.now_s = timers[0][0]
            now_s = self.now_s
            while timers and timers[0][0] <= now_s:
                entry = heappop(timers)[2]
                if entry.callback is not None:
                    put(entry)

    def run_callback(self, func: Callable[..., Any], *args: Any) -> Callback:
        entry = Callback(func, args, self.process)
        self._ready.append(entry)
        return entry

    run_callback_threadsafe = run_callback

    def timer(self, after: float, repeat: float = 0.0, ref: bool = True, priority: Any = None) -> Timer:
        return Timer(self, after, repeat)

    def io(self, fd: Any, events: int, ref: bool = True, priority: Any = None) -> Io:
        if not isinstance(fd, Handle):
            raise TypeError(f"expected a simulated socket's handle, found {fd!r}: real descriptors do not belong here")
        return Io(self, fd)

    def _nothing(self, *_: Any, **__: Any) -> _Nothing:
        return _Nothing()

    signal = idle = prepare = check = fork = async_ = child = stat = closing_fd = _nothing

    def handle_error(self, context: Any, kind: Any, value: Any, trace: Any) -> None:
        if self.error_handler is None:
            raise value
        self.error_handler.handle_error(context, kind, value, trace)

    def now(self) -> float:
        return self.now_s

    def update_now(self) -> None:
        """The clock moves by itself."""

    update = update_now

    def install_sigchld(self) -> None:
        """There are no children."""

    def destroy(self) -> None:
        """Nothing to give back."""

    def _format(self) -> str:
        return f"virtual now={self.now_s:.6f}"
