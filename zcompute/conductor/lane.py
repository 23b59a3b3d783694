"""A writer lane: one connection, one sequence of numbered batches, one batch in flight while the next fills.

The decisions of a lane commit in the order in which they were made, so a prefix of them is always consistent. A batch
that the database refuses for its data is therefore narrowed down by halves: what comes before the bad change commits,
the bad change fails alone, and what was decided upon its rows fails with it.
"""

import itertools
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence

import gevent
from gevent.event import Event

from zcompute.conductor.batching import changes_of, numbered, purges_of, take_prefix
from zcompute.conductor.cache import RowKey
from zcompute.conductor.change import DECIDED, Put, Ticket
from zcompute.conductor.errors import IncarnationEnded, busy, invalid_row
from zcompute.conductor.meter import LaneMeter
from zcompute.conductor.outage import Outage
from zcompute.conductor.settings import LedgerLimits
from zcompute.db.batch import NONCE_MAX, Batch, HandOver
from zcompute.db.batch import Change as RowChange
from zcompute.db.errors import (
    AlreadyApplied,
    BadRow,
    ConnectionLost,
    DatabaseBusy,
    Fenced,
    GuardFailed,
    ReceiverDead,
)
from zcompute.db.store import LaneConnection
from zcompute.failpoints import failpoint

log = logging.getLogger(__name__)


class Lane:
    """Commits tickets in order. ``settled(tickets)`` is called after each commit, ``undo(puts)`` for refused ones
    (with the puts whose former row comes back), ``fail(reason)`` when this incarnation must end."""

    def __init__(
        self,
        lane_id: int,
        term: int,
        connection: LaneConnection,
        limits: LedgerLimits,
        *,
        settled: Callable[[list[Ticket]], None],
        undo: Callable[[int, Sequence[Put], set[RowKey]], None],
        fail: Callable[[str], None],
        outage: Outage | None = None,
    ) -> None:
        self.lane_id = lane_id
        self.term = term
        self.applied = 0
        self.queued_rows = 0
        self.queued_bytes = 0
        self.batches = 0
        self.meter = LaneMeter()
        self.last_n: dict[int, int] = {}  # by partition of this lane: the number of its last committed notification
        self._part = f"lane {lane_id}"
        self._outage = outage or Outage()
        self._connection = connection
        self._limits = limits
        self._settled = settled
        self._undo = undo
        self._fail = fail
        self._queue: deque[Ticket] = deque()
        self._in_flight: list[Ticket] = []
        self._refused: dict[Ticket, BaseException] = {}
        self._wake = Event()
        self._ended = False

    # -- what the ledger does, without yielding -----------------------------------------------------------------

    def add(self, ticket: Ticket) -> None:
        """A decision that has just been made; it goes out with the next batch, whether it has rows or not."""
        ticket.state = DECIDED
        self.queued_rows += ticket.rows
        self.queued_bytes += ticket.size_bytes
        if not self._queue:
            self._wake.set()
        self._queue.append(ticket)

    def barrier(self) -> Ticket:
        """A ticket that is done when a batch that begins after this call has committed."""
        ticket = Ticket(-1, (), None)
        self.add(ticket)
        return ticket

    def hand_over(self, hand_over: HandOver) -> Ticket:
        """The last word of this lane on these partitions, in a batch of its own, behind all that was decided.

        The ticket fails with ReceiverDead when the receiving lane is not alive; nothing has moved then.
        """
        ticket = Ticket(-1, (), None)
        ticket.hand_over = hand_over
        self.add(ticket)
        return ticket

    @property
    def queued_decisions(self) -> int:
        return len(self._queue)

    def oldest_s(self, now_s: float) -> float:
        """How long ago the oldest change that has not committed was asked for; 0.0 when none is here."""
        oldest = self._in_flight[:1] or list(itertools.islice(self._queue, 1))
        return now_s - oldest[0].asked_at_s if oldest else 0.0

    def full(self, now_s: float) -> tuple[str, int] | None:
        """The limit that is reached, by name and value."""
        limits = self._limits
        if self.queued_rows >= limits.filling_rows_max:
            return "filling_rows_max", limits.filling_rows_max
        if self.queued_bytes >= limits.filling_bytes_max:
            return "filling_bytes_max", limits.filling_bytes_max
        if len(self._queue) >= limits.filling_decisions_max:
            return "filling_decisions_max", limits.filling_decisions_max
        if self._queue and now_s - self._queue[0].asked_at_s > limits.batch_age_ms_max / 1000:
            return "batch_age_ms_max", limits.batch_age_ms_max
        return None

    def end(self) -> list[Ticket]:
        """No batch begins after this; returns what has no verdict yet (of a batch in flight nobody knows)."""
        self._ended = True
        left = [*self._in_flight, *self._refused, *self._queue]
        self._queue.clear()
        self._wake.set()
        return left

    def close(self) -> None:
        self._connection.close()

    # -- the greenlet -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Commit batches until the end; anything unforeseen ends the incarnation."""
        try:
            while not self._ended:
                if not self._queue:
                    self._wake.clear()
                    self._wake.wait()
                    continue
                gevent.sleep(0)  # what has arrived goes along: a transaction costs more than this turn of the hub
                if not self._ended:
                    self._turn()
        except IncarnationEnded as ended:
            self._fail(ended.reason)
        except Exception as error:  # a lane in doubt must fence itself, whatever the doubt is
            log.exception("lane failed lane=%s", self.lane_id)
            self._fail(f"lane {self.lane_id} failed: {type(error).__name__}: {error}")

    def _turn(self) -> None:
        tickets = self._in_flight = take_prefix(self._queue, self._limits)
        hand_over = tickets[0].hand_over
        if hand_over is None:
            self._resolve(tickets)
        else:
            self._move(tickets[0], hand_over)
        self._in_flight = []

    def _move(self, ticket: Ticket, hand_over: HandOver) -> None:
        try:
            failpoint("lane.before_hand_over")
            self._commit([], hand_over)
            failpoint("lane.after_hand_over")
        except ReceiverDead as error:
            self.meter.refused()
            ticket.finish(error)
        else:
            self._settled([ticket])

    def _resolve(self, tickets: list[Ticket]) -> None:
        chunks: deque[list[Ticket]] = deque([tickets])
        while chunks:
            chunk = chunks.popleft()
            if not chunk:
                continue
            try:
                self._commit(chunk, None)
            except BadRow as error:
                self.meter.refused()
                if len(chunk) == 1:
                    self._refuse(chunk[0], error, chunks)
                else:
                    chunks.extendleft(reversed(_split(chunk, error)))
                continue
            self._account(chunk)
            self._settle(chunk)
        if self._refused:
            self._commit([], None)
            self._settle([])

    def _settle(self, chunk: list[Ticket]) -> None:
        refused, self._refused = self._refused, {}
        for ticket, error in refused.items():
            ticket.error = error
            ticket.result = None
        failpoint("lane.before_verdicts")
        self._settled([*refused, *chunk])
        failpoint("lane.after_verdicts")

    def _account(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self.queued_rows -= ticket.rows
            self.queued_bytes -= ticket.size_bytes

    # -- a change that the database refuses ---------------------------------------------------------------------

    def _refuse(self, ticket: Ticket, error: BadRow, chunks: deque[list[Ticket]]) -> None:
        """Fail the bad change, and all decided upon its rows since, here and in the queue; their rows go back."""
        log.warning("row refused lane=%s partition=%s error=%s", self.lane_id, ticket.partition, error)
        spoilt: set[RowKey] = set()
        self._take_back(ticket, invalid_row(error.table, error.reason), spoilt)
        retry_ms = self._limits.dependent_retry_ms
        for others in (*chunks, self._queue):
            for other in others:
                if other.partition == ticket.partition and not spoilt.isdisjoint(other.touched):
                    what = "a change that this one was decided upon was refused: changes to undo"
                    self._take_back(other, busy(what, 1, retry_ms), spoilt)
        for place, chunk in enumerate(chunks):
            chunks[place] = [other for other in chunk if other not in self._refused]
        kept = [other for other in self._queue if other not in self._refused]
        self._queue.clear()
        self._queue.extend(kept)

    def _take_back(self, ticket: Ticket, error: BaseException, spoilt: set[RowKey]) -> None:
        self._undo(ticket.partition, ticket.puts, spoilt)
        spoilt.update(put.rowkey for put in ticket.puts)
        self._account([ticket])
        ticket.puts = ticket.notes = ticket.purges = ()
        ticket.rows = ticket.size_bytes = 0
        self._refused[ticket] = error

    # -- one batch ----------------------------------------------------------------------------------------------

    def _commit(self, tickets: Sequence[Ticket], hand_over: HandOver | None) -> None:
        """Returns when the batch has committed and its verdicts may leave. Raises BadRow and ReceiverDead (certainly
        rolled back: the number is free again); everything else ends the incarnation."""
        batch = self._batch(changes_of(tickets), hand_over)
        told, batch.numberings = numbered(tickets, self.last_n)
        batch.changes += told
        batch.purges = purges_of(tickets)
        self.meter.began(len(tickets))
        failpoint("lane.before_commit")
        found_applied = self._send(batch)
        failpoint("lane.after_commit")
        self.applied = batch.number
        for numbering in batch.numberings:
            self.last_n[numbering.partition_id] = numbering.after
        while found_applied:
            # Found committed over a new connection: its own primary may not have had it acknowledged by a replica.
            barrier = self._batch([], None)
            found_applied = self._send(barrier)
            self.applied = barrier.number
        self.meter.ended(batch.rows())

    def _batch(self, changes: list[RowChange], hand_over: HandOver | None) -> Batch:
        return Batch(
            lane_id=self.lane_id,
            term=self.term,
            number=self.applied + 1,
            nonce=random.randint(1, NONCE_MAX),
            changes=changes,
            hand_over=hand_over,
        )

    def _send(self, batch: Batch) -> bool:
        """Send until the outcome is known; True when it was found applied by a resend."""
        give_up_at_s = 0.0
        pause_ms = float(self._limits.retry_ms_min)
        while True:
            self._check()
            try:
                self._connection.commit(batch)
                self._outage.back(self._part)
                self.batches += 1
                return False
            except AlreadyApplied:
                self._outage.back(self._part)
                self.batches += 1
                return True
            except Fenced as error:
                raise IncarnationEnded(f"lane {self.lane_id} is fenced at batch {batch.number}: {error}") from error
            except GuardFailed as error:
                raise IncarnationEnded(f"lane {self.lane_id} batch {batch.number} met another row: {error}") from error
            except (ConnectionLost, DatabaseBusy) as error:
                now_s = time.monotonic()
                give_up_at_s = give_up_at_s or now_s + self._limits.lane_retry_s_max
                self._outage.lost(self._part, error)
                self.meter.failed(lost=isinstance(error, ConnectionLost))
                self._recover(isinstance(error, ConnectionLost), give_up_at_s, pause_ms)
                pause_ms = min(pause_ms * 2, self._limits.retry_ms_max)

    def _recover(self, reconnect: bool, give_up_at_s: float, pause_ms: float) -> None:
        while True:
            left_s = give_up_at_s - time.monotonic()
            if left_s <= 0:
                limit_s = self._limits.lane_retry_s_max
                raise IncarnationEnded(f"lane {self.lane_id} found no database within {limit_s:.0f} s")
            gevent.sleep(min(pause_ms / 1000 * random.uniform(0.5, 1.0), left_s))
            self._check()
            if not reconnect:
                return
            try:
                self._connection.reconnect(int(min(left_s * 1000, self._limits.reconnect_ms_max)))
                return
            except (ConnectionLost, DatabaseBusy) as error:
                self._outage.lost(self._part, error)
                pause_ms = min(pause_ms * 2, self._limits.retry_ms_max)

    def _check(self) -> None:
        if self._ended:
            raise IncarnationEnded(f"lane {self.lane_id} was ended")


def _split(chunk: list[Ticket], error: BadRow) -> list[list[Ticket]]:
    """Smaller prefixes: round the first change of the row that the error names, else by halves."""
    if error.key is not None:
        named = (error.table, tuple(error.key))
        for place, ticket in enumerate(chunk):
            if any(put.rowkey == named for put in ticket.puts):
                parts = [chunk[:place], chunk[place : place + 1], chunk[place + 1 :]]
                return [part for part in parts if part]
    middle = len(chunk) // 2
    return [chunk[:middle], chunk[middle:]]
