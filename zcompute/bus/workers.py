"""Pools of reused worker greenlets.

A worker takes jobs one after another without going back to the hub, and before each job asks the hub to wake another
worker if jobs remain. That wake-up runs only when this worker blocks (or has had its share), so jobs that never block
cost no switch at all and jobs that do block run side by side.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent
from gevent.hub import Waiter

log = logging.getLogger(__name__)


class WorkerPool:
    """Up to `workers_max` greenlets working on a queue of at most `queue_max` jobs."""

    def __init__(self, name: str, workers_max: int, queue_max: int, run_max: int) -> None:
        self.name = name
        self._workers_max = workers_max
        self._queue_max = queue_max
        self._run_max = run_max
        self._queue: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._idle: list[Any] = []
        self._workers = 0
        self._kicked = False
        self._closed = False
        self._loop = gevent.get_hub().loop

    @property
    def queued(self) -> int:
        """Jobs that no worker has taken yet."""
        return len(self._queue)

    def submit(self, job: Callable[..., None], *args: Any) -> bool:
        """Queue a job; False at the limit or after close. Callable from the hub."""
        if len(self._queue) >= self._queue_max or self._closed:
            return False
        self._queue.append((job, args))
        if not self._kicked:
            self._kick()
        return True

    def close(self) -> None:
        """Drop what is queued and let idle workers end; running jobs end by themselves."""
        self._closed = True
        self._queue.clear()
        for waiter in self._idle:
            self._loop.run_callback(waiter.switch, None)
        self._idle.clear()

    def _kick(self) -> None:
        self._kicked = True
        self._loop.run_callback(self._feed)

    def _feed(self) -> None:
        self._kicked = False
        if not self._queue:
            return
        if self._idle:
            self._idle.pop().switch(None)
        elif self._workers < self._workers_max:
            self._workers += 1
            gevent.spawn(self._work)

    def _work(self) -> None:
        waiter = Waiter()
        try:
            while not self._closed:
                self._run_some()
                self._idle.append(waiter)
                waiter.get()
                waiter.clear()
        finally:
            self._workers -= 1
            if waiter in self._idle:
                self._idle.remove(waiter)
            if self._queue and not self._kicked:
                self._kick()

    def _run_some(self) -> None:
        queue = self._queue
        for _ in range(self._run_max):
            if not queue:
                return
            job, args = queue.popleft()
            if queue and not self._kicked:
                self._kick()
            try:
                job(*args)
            except Exception:
                log.exception("job failed pool=%s", self.name)
        if queue and not self._kicked:
            self._kick()
