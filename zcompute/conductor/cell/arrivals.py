"""Reports that come before their partition: the map says that it is ours, and our lanes have not begun it yet.

At a planned hand-over the agents and the new owner hear of the new map at the same moment; the owner still has to
read it from the database and commit a barrier. Refused meanwhile, every agent would wait out a back-off for nothing.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

import gevent

from zcompute.cells.router import PartitionRouter
from zcompute.conductor.ledger import Ledger

T = TypeVar("T")

SWEEP_S_MIN = 0.005  # never without time passing: clocks round


@dataclass(frozen=True)
class ArrivalLimits:
    """How many wait at most, and how long."""

    waiting_max: int = 5_000
    wait_ms_max: int = 1_000


class Arrivals(Generic[T]):
    """``take(item)`` is called when the item's partition is ours, ``refuse(item, partition)`` when that lasts too
    long; both without yielding."""

    def __init__(
        self,
        ledger: Ledger,
        router: PartitionRouter,
        me: str,
        take: Callable[[T], None],
        refuse: Callable[[T, int], None],
        limits: ArrivalLimits | None = None,
    ) -> None:
        self._ledger = ledger
        self._router = router
        self._me = me
        self._take = take
        self._refuse = refuse
        self._limits = limits or ArrivalLimits()
        self._waiting: dict[int, list[T]] = {}  # by partition
        self._since_s: dict[int, float] = {}
        self._count = 0
        self._sweeping: gevent.Greenlet | None = None

    def start(self) -> None:
        """Hear of gains."""
        self._ledger.on_gain(self.gained)

    def stop(self) -> None:
        """Nobody is answered any more."""
        self._waiting.clear()
        self._since_s.clear()
        self._count = 0
        if self._sweeping is not None:
            self._sweeping.kill(block=False)

    def expected(self, partition: int) -> bool:
        """Whether a map newer than the one that we act upon says that the partition comes to us, and there is room."""
        announced, known = self._router.map, self._ledger.map
        if announced.version <= known.version or announced.owners[partition] != self._me:
            return False
        return known.owners[partition] != self._me and self._count < self._limits.waiting_max

    def wait(self, partition: int, item: T) -> None:
        """Keep it until the partition is ours, or until it has waited for too long."""
        self._waiting.setdefault(partition, []).append(item)
        self._since_s.setdefault(partition, time.monotonic())
        self._count += 1
        if self._sweeping is None or self._sweeping.dead:
            self._sweeping = gevent.spawn(self._sweep)

    def gained(self, partitions: Iterable[int]) -> None:
        """These are ours now: what waited for them is taken in the order in which it came."""
        for partition in partitions:
            for item in self._pop(partition):
                self._take(item)

    def _pop(self, partition: int) -> list[T]:
        self._since_s.pop(partition, None)
        items = self._waiting.pop(partition, [])
        self._count -= len(items)
        return items

    def _sweep(self) -> None:
        while self._since_s:
            oldest_s = min(self._since_s.values())
            gevent.sleep(max(SWEEP_S_MIN, oldest_s + self._limits.wait_ms_max / 1000 - time.monotonic()))
            limit_s = time.monotonic() - self._limits.wait_ms_max / 1000
            for partition in [partition for partition, since_s in self._since_s.items() if since_s <= limit_s]:
                for item in self._pop(partition):
                    self._refuse(item, partition)
