"""Greenlets that run commands: so many at once, one at a time for each instance, in the order of submission."""

import logging
from collections import deque
from collections.abc import Callable, Hashable

import gevent
from gevent.event import Event

from zcompute.compute.ending import end_all
from zcompute.compute.errors import WorkersFull

log = logging.getLogger(__name__)

Work = Callable[[], None]


class Workers:
    """``workers_max`` pieces of work at once, ``waiting_max`` more that wait."""

    def __init__(self, workers_max: int, waiting_max: int) -> None:
        self._workers_max = workers_max
        self._waiting_max = waiting_max
        self._chains: dict[Hashable, deque[Work]] = {}
        self._ready: deque[tuple[Hashable, Work]] = deque()
        self._greenlets: set[gevent.Greenlet] = set()
        self._waiting = 0
        self._stopped = False
        self._idle = Event()
        self._idle.set()

    def __len__(self) -> int:
        """Pieces of work that run or wait."""
        return len(self._greenlets) + self._waiting

    def busy(self, key: Hashable) -> bool:
        """Whether work of this key runs or waits."""
        return key in self._chains

    def submit(self, key: Hashable, work: Work) -> None:
        """Run the work after all earlier work of the same key. Raises WorkersFull, also once stopped."""
        if self._stopped:
            raise WorkersFull("the agent is stopping")
        chain = self._chains.get(key)
        must_wait = chain is not None or len(self._greenlets) >= self._workers_max
        if must_wait and self._waiting >= self._waiting_max:
            raise WorkersFull(f"{self._waiting} commands wait for one of {self._workers_max} workers")
        self._idle.clear()
        if chain is not None:
            chain.append(work)
            self._waiting += 1
            return
        self._chains[key] = deque()
        if must_wait:
            self._ready.append((key, work))
            self._waiting += 1
        else:
            self._start(key, work)

    def stop(self, timeout_s: float) -> bool:
        """Begin nothing more, wait for what runs, then kill it. True: nothing had to be killed."""
        self._stopped = True
        self._waiting -= len(self._ready)
        self._ready.clear()
        for chain in self._chains.values():
            self._waiting -= len(chain)
            chain.clear()
        ended = bool(self._idle.wait(timeout_s)) if self._greenlets else True
        return end_all(self._greenlets, "work under way") and ended

    def _start(self, key: Hashable, work: Work) -> None:
        greenlet = gevent.Greenlet(self._run, key, work)
        self._greenlets.add(greenlet)
        greenlet.start()

    def _run(self, key: Hashable, work: Work) -> None:
        current = gevent.getcurrent()
        try:
            while True:
                try:
                    work()
                except Exception:
                    log.exception("work failed key=%s", key)
                following = self._next(key)
                if following is None:
                    return
                key, work = following
        finally:
            self._chains.pop(key, None)
            self._greenlets.discard(current)
            if not self._greenlets:
                self._idle.set()

    def _next(self, key: Hashable) -> tuple[Hashable, Work] | None:
        chain = self._chains[key]
        if chain:
            self._waiting -= 1
            return key, chain.popleft()
        del self._chains[key]
        if self._ready:
            self._waiting -= 1
            return self._ready.popleft()
        return None
