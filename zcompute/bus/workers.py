"""Pools of reused worker greenlets.

A worker takes jobs one after another without going back to the hub, and before each job asks the hub to wake another
worker if jobs remain. That wake-up runs only when this worker blocks (or has had its share), so jobs that never block
cost no switch at all and jobs that do block run side by side.

Jobs belong to an owner, the link that brought them. Owners are served by turns, a job each, so one that fills the
queue delays nobody else. The jobs of the owner whose turn it is are at hand in one queue: as long as nobody else waits,
that is the only one there is, and turns cost nothing.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import gevent
from gevent import getcurrent

log = logging.getLogger(__name__)

Jobs: TypeAlias = deque[tuple[Callable[..., None], tuple[Any, ...]]]


class WorkerPool:
    """Up to `workers_max` greenlets working on a queue of at most `queue_max` jobs.

    A full queue still takes a job of an owner that holds less than its even share of the places: in all it never holds
    more than twice its limit, and a job for each owner. `soon` runs a function in the hub, soon: the loop's
    `run_callback` unless told otherwise.
    """

    def __init__(
        self, name: str, workers_max: int, queue_max: int, run_max: int, soon: Callable[..., object] | None = None
    ) -> None:
        self.name = name
        self._workers_max = workers_max
        self._queue_max = queue_max
        self._run_max = run_max
        self.jobs: Jobs = deque()  # of the owner whose turn it is; none only if nobody waits
        self.jobs_beside = 0  # those of all others
        self._owner: object = None  # whose turn it is
        self._others: dict[object, Jobs] = {}  # owners that wait for their turn, in its order
        self._idle: dict[Any, None] = {}  # workers without a job, the last to have had one last
        self._workers = 0
        self._taken = 0  # jobs that workers took so far
        self.marked: deque[tuple[float, int]] = deque()  # (time, jobs submitted until then), those not all taken
        self._kicked = False
        self._closed = False
        self._hub = gevent.get_hub()
        self._soon = soon if soon is not None else self._hub.loop.run_callback

    @property
    def queued(self) -> int:
        """Jobs that no worker has taken yet."""
        return len(self.jobs) + self.jobs_beside

    @property
    def running(self) -> int:
        """Workers with a job in hand."""
        return self._workers - len(self._idle)

    @property
    def workers_max(self) -> int:
        """How many jobs may run at once."""
        return self._workers_max

    def mark(self, now: float) -> None:
        """Note the time for `oldest_age_s`; called at each tick, so that a job costs no clock read.

        A mark is kept while a job submitted before it waits, and made only when jobs came since the last: there are
        never more marks than jobs.
        """
        marks = self.marked
        while marks and marks[0][1] <= self._taken:
            marks.popleft()
        submitted = self._taken + self.queued
        if self.jobs and (not marks or marks[-1][1] < submitted):
            marks.append((now, submitted))

    def oldest_age_s(self, now: float) -> float:
        """How long a job has waited, less at most the time between two marks; 0 when none waits.

        Counted as though all were taken in the order in which they came: an owner with many waits longer.
        """
        return next((now - at for at, submitted in self.marked if submitted > self._taken), 0.0)

    @property
    def runnable(self) -> int:
        """Jobs that wait for nothing but the hub; 0 when all workers are blocked in their jobs."""
        return self.queued if self._kicked and (self._idle or self._workers < self._workers_max) else 0

    def submit(self, owner: object, job: Callable[..., None], *args: Any) -> bool:
        """Queue a job; False at the limit or after close. Callable from the hub."""
        jobs = self.jobs
        if self._closed or (len(jobs) + self.jobs_beside >= self._queue_max and not self._below_share(owner)):
            return False
        if owner is self._owner:
            jobs.append((job, args))
        elif not jobs:
            self._owner = owner
            jobs.append((job, args))
        else:
            self.jobs_beside += 1
            self._others.setdefault(owner, deque()).append((job, args))
        if not self._kicked:
            self._kick()
        return True

    def _below_share(self, owner: object) -> bool:
        """Whether an owner holds less than its part, were the places dealt out evenly to those who wait and to it."""
        own = self.jobs if owner is self._owner else self._others.get(owner, ())
        owners = len(self._others) + 1 + (not own)
        return len(own) < self._queue_max // owners or (not own and owners > 1)

    def _turn_over(self) -> None:
        """The next owner's turn; there is one."""
        jobs, owner = self.jobs, self._owner
        self._owner = following = next(iter(self._others))
        self.jobs = self._others.pop(following)
        self.jobs_beside += len(jobs) - len(self.jobs)
        if jobs:
            self._others[owner] = jobs

    def close(self) -> None:
        """Drop what is queued and let idle workers end; running jobs end by themselves."""
        self._closed = True
        self.jobs.clear()
        self._others.clear()
        self.jobs_beside = 0
        for worker in self._idle:
            self._soon(worker.switch)
        self._idle.clear()

    def _kick(self) -> None:
        self._kicked = True
        self._soon(self._feed)

    def _feed(self) -> None:
        self._kicked = False
        if not self.jobs:
            return
        if self._idle:
            self._idle.popitem()[0].switch()
        elif self._workers < self._workers_max:
            self._workers += 1
            gevent.spawn(self._work)

    def _work(self) -> None:
        worker, idle = getcurrent(), self._idle
        try:
            while not self._closed:
                self._run_some()
                idle[worker] = None
                while worker in idle:
                    self._hub.switch()
        finally:
            self._workers -= 1
            idle.pop(worker, None)
            if self.jobs and not self._kicked:
                self._kick()

    def _run_some(self) -> None:
        others = self._others
        for _ in range(self._run_max):
            if not self.jobs:
                return
            job, args = self.jobs.popleft()
            self._taken += 1
            if others:
                self._turn_over()
            if self.jobs and not self._kicked:
                self._kick()
            try:
                job(*args)
            except Exception:
                log.exception("job failed pool=%s", self.name)
        if self.jobs and not self._kicked:
            self._kick()
