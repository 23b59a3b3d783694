"""The ledger: decides changes in memory, writes them in batches, and lets no verdict out before its commit.

The owner of a partition is the only writer of its rows, so a decision is made against the newest decided row, whether
its batch has committed or not: a lane commits in order, and a verdict leaves only when a batch of that lane which
began after the decision has committed. At any doubt the whole incarnation ends and the cache goes with it.

Greenlets: ``submit``, ``decide`` and everything that changes the cache or an ownership run without yielding; the
yield points are the lane's commit, the loader's fetch and the waiting of callers.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import gevent

from zcompute.conductor.cache import Entry, RowCache, RowKey, Rows
from zcompute.conductor.change import QUEUED, SETTLED, Change, Keys, Ticket
from zcompute.conductor.deciding import Decider
from zcompute.conductor.errors import (
    LedgerMisuse,
    WrongPartition,
    busy,
    database_away,
    deadline_exceeded,
    invalid_row,
    not_owner,
)
from zcompute.conductor.lane import Lane
from zcompute.conductor.loader import Loaded, Loader
from zcompute.conductor.meter import LaneMeter
from zcompute.conductor.settings import LedgerLimits
from zcompute.conductor.verdicts import ToldCallback, Verdicts
from zcompute.db.store import Store
from zcompute.objects.partition import PartitionMap

__all__ = ["Change", "Held", "Keys", "Ledger", "Ticket"]

R = TypeVar("R")
PartitionsCallback = Callable[[list[int]], None]
MapCallback = Callable[[PartitionMap], None]


def _named(rows: Rows, keys: Keys) -> dict[RowKey, Entry] | None:
    """These rows, None when one is missing."""
    if len(keys) == 1:  # an observation's
        ((table, key),) = keys
        rowkey = (table.name, key)
        entry = rows.get(rowkey)
        if entry is None:
            return None
        entry.used = True
        return {rowkey: entry}
    named: dict[RowKey, Entry] = {}
    for table, key in keys:
        rowkey = (table.name, key)
        entry = rows.get(rowkey)
        if entry is None:
            return None
        entry.used = True
        named[rowkey] = entry
    return named


class Held:
    """One ownership of one partition: from the gain to the loss, on one lane, under one epoch."""

    __slots__ = ("lane", "leaving", "owner_epoch", "partition", "rows", "waiting")

    def __init__(self, partition: int, owner_epoch: int, lane: Lane, cache: RowCache) -> None:
        self.partition = partition
        self.owner_epoch = owner_epoch
        self.lane = lane
        self.rows = cache.rows(partition)
        self.leaving = False
        self.waiting: deque[Ticket] = deque()


class Ledger:
    """The face of the ledger for tasks, claims, reports and root intake. One a life of a conductor (incarnation)."""

    def __init__(
        self, store: Store, cell: str, limits: LedgerLimits, now_us: Callable[[], int],
        refused: Counter[str] | None = None,
    ) -> None:  # fmt: skip
        self.map = PartitionMap(cell=cell)
        self.ended = ""
        self.refused = refused if refused is not None else Counter()  # Busy, by the limit that was reached
        self._limits = limits
        self._now_us = now_us
        self._decider = Decider(cell, limits, now_us)
        self._verdicts = Verdicts(self._held_here)
        self.settled, self.undo = self._verdicts.settled, self._verdicts.undo  # for lanes
        self.write_at = self._decider.write_at
        self._cache = RowCache(limits.cache_rows_max, limits.evict_scan_max)
        self._loader = Loader(store, limits, self._missing, self._loaded)
        self._held: dict[int, Held] = {}
        self._meters: dict[int, LaneMeter] = {}  # by lane, of those on which something was gained
        self._waiting = 0
        self._gained: list[PartitionsCallback] = []
        self._lost: list[PartitionsCallback] = []
        self._mapped: list[MapCallback] = []
        self._on_end: list[Callable[[str], None]] = []

    # -- for callers --------------------------------------------------------------------------------------------

    def owns(self, partition: int) -> bool:
        """Whether decisions on the partition are made here now."""
        held = self._held.get(partition)
        return held is not None and not held.leaving

    def owned(self) -> list[int]:
        """The partitions decided here now."""
        return sorted(partition for partition, held in self._held.items() if not held.leaving)

    def owner_epoch(self, partition: int) -> int:
        """The map version at which this conductor took the partition. Raises NotOwner."""
        return self._holding(partition).owner_epoch

    def owner_epochs(self, partitions: Iterable[int]) -> dict[int, int]:
        """The map versions at which those of them were taken that are decided here now."""
        held = [(partition, self._held.get(partition)) for partition in partitions]
        return {partition: one.owner_epoch for partition, one in held if one is not None and not one.leaving}

    def last_n(self, partition: int) -> int:
        """The number of the partition's last committed notification. Raises NotOwner."""
        return self._holding(partition).lane.last_n[partition]

    def lane_of(self, partition: int) -> int:
        """The number of the lane that writes the partition's changes, 0 when they are not decided here now."""
        held = self._held.get(partition)
        return 0 if held is None or held.leaving else held.lane.lane_id

    def commit_ms(self) -> float:
        """What the last batch of the slowest lane took; 0.0 before the first."""
        return max([meter.last_ms() for meter in self._meters.values()], default=0.0)

    @property
    def decisions(self) -> int:
        """Made in this life."""
        return self._decider.decisions

    @property
    def waiting_decisions(self) -> int:
        """Decisions that wait for rows to be read."""
        return self._waiting

    def waiting_oldest_s(self, now_s: float) -> float:
        """How long ago the oldest of them was asked for; 0.0 when none waits."""
        heads = [held.waiting[0].asked_at_s for held in self._held.values() if held.waiting]
        return now_s - min(heads) if heads else 0.0

    @property
    def cached_rows(self) -> int:
        """Rows in memory."""
        return len(self._cache)

    def now_us(self) -> int:
        """The primary's UTC time in microseconds, as far as it is known here."""
        return self._now_us()

    def commit(self, partition: int, keys: Keys, decide: Callable[[Change], R], *, timeout_ms: int) -> R:
        """Decide on the named rows and wait until the decision is durable; returns what ``decide`` returned.

        ``decide`` must not yield; what it raises is a verdict too: nothing it put is kept, and it is raised here once
        a batch that began after the decision has committed. Raises NotOwner (lost meanwhile: outcome unknown),
        DeadlineExceeded (outcome unknown, unless the rows were still being read: then nothing is decided any more),
        Busy (a queue is full), InvalidRequest (the database refuses the rows).
        """
        ticket = self.submit(partition, keys, decide)
        try:
            return cast(R, ticket.wait(timeout_ms))
        finally:
            if ticket.state == QUEUED:
                ticket.finish(deadline_exceeded(f"reading rows of partition {partition}", timeout_ms))

    def submit(self, partition: int, keys: Keys, decide: Callable[[Change], Any]) -> Ticket:
        """The same without waiting. Decisions of one partition are made in the order of submission.

        Raises NotOwner and Busy at once; everything later is the ticket's.
        """
        ticket = Ticket(partition, keys, decide)
        self.take(ticket)
        return ticket

    def take(self, ticket: Ticket) -> None:
        """Submit the caller's own ticket, in which partition, keys, decide and the time are filled in."""
        partition, keys = ticket.partition, ticket.keys
        held = self._holding(partition)
        if self._decider.deciding:
            raise LedgerMisuse("the ledger was called from within a decide function, or one yielded")
        full = held.lane.full(ticket.asked_at_s)
        if full is not None:
            self.refused[full[0]] += 1
            raise busy(full[0], full[1], self._limits.busy_retry_ms)
        if held.lane.meter.lost_since_s or self._loader.lost_since_s:
            self._check_database(held, keys)
        if len(keys) > self._limits.decision_keys_max:
            raise invalid_row(keys[0][0].name, f"{len(keys)} rows named, at most {self._limits.decision_keys_max}")
        if not held.waiting and (named := _named(held.rows, keys)) is not None:
            self._decide(held, ticket, named)
            return
        if self._waiting >= self._limits.waiting_decisions_max:
            limit = self._limits.waiting_decisions_max
            self.refused["waiting_decisions_max"] += 1
            raise busy("waiting_decisions_max", limit, self._limits.busy_retry_ms)
        self._waiting += 1
        held.waiting.append(ticket)
        self._want(held, keys)

    def on_gain(self, callback: PartitionsCallback) -> None:
        """Call with the partitions gained, in a greenlet of its own, when decisions on them may begin."""
        self._gained.append(callback)

    def on_lose(self, callback: PartitionsCallback) -> None:
        """Call with the partitions lost, in a greenlet of its own."""
        self._lost.append(callback)

    def on_map(self, callback: MapCallback) -> None:
        """Call with every newer partition map, in a greenlet of its own; order by ``version``, not by arrival."""
        self._mapped.append(callback)

    def on_told(self, callback: ToldCallback) -> None:
        """Call with (partition, first n, notes) once notifications have committed, per partition in their order.

        Must not block. What comes after a loss, or before a gain, is in the table.
        """
        self._verdicts.listeners.append(callback)

    def on_decided(self, callback: Callable[[Change], None]) -> None:
        """Call with every change that put rows, before it is rendered, without yielding; it may notify and append.

        What it raises is the verdict of the change.
        """
        self._decider.listeners.append(callback)

    def on_end(self, callback: Callable[[str], None]) -> None:
        """Call with the reason, without yielding, when this ledger ends."""
        self._on_end.append(callback)

    # -- deciding -----------------------------------------------------------------------------------------------

    def _holding(self, partition: int) -> Held:
        held = self._held.get(partition)
        if held is None or held.leaving:
            raise not_owner(partition, self.map.version)
        return held

    def _check_database(self, held: Held, keys: Keys) -> None:
        """Raises Busy when the lane, or a read that would be needed, has met no database for away_ms_max."""
        lost_ms = held.lane.meter.lost_ms()
        if self._loader.lost_since_s and _named(held.rows, keys) is None:
            lost_ms = max(lost_ms, int((time.monotonic() - self._loader.lost_since_s) * 1000))
        if lost_ms > self._limits.away_ms_max:
            self.refused["away_ms_max"] += 1
            raise database_away(lost_ms, self._limits.away_retry_ms)

    def _want(self, held: Held, keys: Keys) -> None:
        for table, key in keys:
            if (table.name, key) not in held.rows:
                self._loader.want(held, table, key)

    def _decide(self, held: Held, ticket: Ticket, named: dict[RowKey, Entry]) -> None:
        self._decider.decide(ticket, held.partition, held.owner_epoch, held.rows, named)
        held.lane.add(ticket)

    def _held_here(self, partition: int) -> bool:
        return partition in self._held

    def _missing(self, token: object, rowkey: RowKey) -> bool:
        held = cast(Held, token)
        return self._held.get(held.partition) is held and rowkey not in held.rows

    # -- rows that were read ------------------------------------------------------------------------------------

    def _loaded(self, results: list[Loaded]) -> None:
        """Runs in the loader's greenlet: cache what is still wanted, then decide what waited for it."""
        touched: dict[int, Held] = {}
        failed: dict[tuple[int, RowKey], Exception] = {}
        for result in results:
            for key, tokens in result.wanted.items():
                for token in tokens:
                    held = cast(Held, token)
                    if self._held.get(held.partition) is not held:
                        continue
                    touched[held.partition] = held
                    error = result.failed.get(key) or self._remember(held, result, key)
                    if error is not None:
                        failed[(held.partition, (result.table.name, key))] = error
        for held in touched.values():
            self._advance(held, failed)

    def _remember(self, held: Held, result: Loaded, key: tuple[Any, ...]) -> Exception | None:
        row = result.rows.get(key)
        if row is not None:
            home = result.table.home_of(row)
            if home != held.partition:
                return WrongPartition(
                    f"{result.table.name} {key} belongs to partition {home}, it was asked for in {held.partition}"
                )
        revision = 0 if row is None else int(getattr(row, "revision", 0))
        self._cache.add(held.partition, (result.table.name, key), row, revision)
        return None

    def _advance(self, held: Held, failed: dict[tuple[int, RowKey], Exception]) -> None:
        """Decide in order of submission until a row is missing; then ask for it (again, if it was evicted)."""
        turn = 0
        while held.waiting:
            ticket = held.waiting[0]
            if ticket.state != QUEUED:  # its caller has given up
                self._leave_queue(held)
                continue
            error = next(
                (e for t, key in ticket.keys if (e := failed.get((held.partition, (t.name, key)))) is not None), None
            )
            if error is not None:
                self._leave_queue(held)
                ticket.finish(error)
                continue
            named = _named(held.rows, ticket.keys)
            if named is None:
                self._want(held, ticket.keys)
                return
            self._leave_queue(held)
            self._decide(held, ticket, named)
            turn += 1
            if turn % self._limits.decisions_per_turn_max == 0:
                gevent.sleep(0)  # others run; newcomers queue behind, and a loss empties the queue

    def _leave_queue(self, held: Held) -> None:
        held.waiting.popleft()
        self._waiting -= 1

    # -- ownership, driven by the incarnation -------------------------------------------------------------------

    def run_loader(self) -> None:
        """The greenlet that reads rows."""
        self._loader.run()

    def gain(self, owned: Iterable[tuple[int, int, Lane, int]]) -> None:
        """Begin to decide on (partition, owner_epoch, lane, last_n); the lane has committed a barrier since the
        take-over, and last_n was read with the very row that shows the partition on the lane."""
        if self.ended:
            return
        gained = []
        for partition, owner_epoch, lane, last_n in owned:
            lane.last_n[partition] = last_n
            self._meters[lane.lane_id] = lane.meter
            self._held[partition] = Held(partition, owner_epoch, lane, self._cache)
            gained.append(partition)
        self._notify(self._gained, gained)

    def leave(self, partitions: Iterable[int]) -> None:
        """No further decision on these, before they are handed over; what has not been decided is answered NotOwner."""
        for partition in partitions:
            held = self._held.get(partition)
            if held is not None:
                held.leaving = True
                self._dismiss(held)

    def stay(self, partitions: Iterable[int]) -> None:
        """The hand-over did not happen. Told as a gain: who met NotOwner meanwhile has let go of its work."""
        stayed = []
        for partition in partitions:
            held = self._held.get(partition)
            if held is not None:
                held.leaving = False
                stayed.append(partition)
        self._notify(self._gained, stayed)

    def lose(self, partitions: Iterable[int]) -> None:
        """These are others' now; all that was decided here has committed before."""
        lost = []
        for partition in partitions:
            held = self._held.pop(partition, None)
            if held is not None:
                self._dismiss(held)
                self._cache.drop(partition)
                held.lane.last_n.pop(partition, None)
                lost.append(partition)
        self._notify(self._lost, lost)

    def publish(self, new_map: PartitionMap) -> None:
        """A newer partition map was read."""
        if new_map.version < self.map.version or new_map == self.map:
            return
        self.map = new_map
        for callback in self._mapped:
            gevent.spawn(callback, new_map)

    def end(self, reason: str, lanes: Iterable[Lane]) -> None:
        """Doubt or the planned end: no verdict leaves that is not committed, nothing in memory is believed."""
        if self.ended:
            return
        self.ended = reason
        undecided = [ticket for lane in lanes for ticket in lane.end()]
        lost = sorted(self._held)
        held, self._held = self._held, {}
        self._cache.clear()
        for ownership in held.values():
            self._dismiss(ownership)
        version = self.map.version
        for ticket in undecided:
            if ticket.state < SETTLED:
                ticket.finish(not_owner(ticket.partition, version))
        self._notify(self._lost, lost)
        for callback in self._on_end:
            callback(reason)

    def _dismiss(self, held: Held) -> None:
        while held.waiting:
            ticket = held.waiting[0]
            self._leave_queue(held)
            ticket.finish(not_owner(held.partition, self.map.version))

    def _notify(self, callbacks: Iterable[PartitionsCallback], partitions: list[int]) -> None:
        if partitions:
            for callback in callbacks:
                gevent.spawn(callback, list(partitions))
