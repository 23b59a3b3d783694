"""Reports over one link: numbering, gap detection, go-back-N and credit. No I/O, no clock.

A report is kept until its durable ack. Within a link number the reports carry consecutive sequences from 0; the
receiver's cumulative `received` means only that they arrived. Credit is absolute (as in QUIC's MAX_DATA): the sender
may use sequences below `limit`, so a lost or repeated credit does no harm. Within it each lane of the receiver has a
credit of its own, counted in unacknowledged reports.
"""

from collections import deque

from zcompute.bus.envelope import Ack, AckBatch, Credit, Nak, Report, ReportBatch
from zcompute.bus.lanes import ReceiverLanes, SenderLanes
from zcompute.bus.limits import Limits

REPORT_OVERHEAD_BYTES = 64


class ReportSender:
    """The sending side: unacknowledged reports, the window of those not known as received, and the credit."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.lanes = SenderLanes(limits)
        self.unacked: dict[tuple[str, int], Report] = {}
        self._fresh: deque[Report] = deque()
        self._window: dict[int, Report] = {}
        self._on_way: set[tuple[str, int]] = set()  # names of those two
        self._withdrawn: set[tuple[str, int]] = set()  # of them, those that nobody waits for
        self._link_number = 0
        self._base = 0  # first sequence not known as received
        self._cursor = 0  # next sequence to put on the wire
        self._next = 0  # next sequence to be given
        self._limit = 0
        self._progress_at = 0.0

    @property
    def credit(self) -> int:
        """Reports that may be offered now."""
        by_peer = self._limit - self._next - len(self._fresh)
        return max(0, min(by_peer, self._limits.unacked_reports_max - len(self.unacked)))

    @property
    def ready(self) -> bool:
        """True when `take` would give something."""
        return self._cursor < self._next or (bool(self._fresh) and self._next < self._limit)

    @property
    def waiting(self) -> bool:
        """True while the retransmission timer is needed."""
        return bool(self._window)

    def open(self, link_number: int, credit: int, lane_credit: int = 0, *, same_peer: bool) -> int:
        """Begin a link number; returns how many reports will be resent. Another incarnation's reports are dropped."""
        if not same_peer:
            self.unacked.clear()
        for name in self._withdrawn:
            self.unacked.pop(name, None)
        self._withdrawn.clear()
        self.lanes.open(lane_credit, credit, (key for key, _ in self.unacked), same_peer=same_peer)
        self._fresh = deque(self.unacked.values())
        self._on_way = set(self.unacked)
        self._window.clear()
        self._link_number = link_number
        self._base = self._cursor = self._next = 0
        self._limit = credit
        return len(self._fresh)

    def close(self) -> None:
        """The link is down: nothing may be sent, what is unacknowledged is kept."""
        self._fresh.clear()
        self._on_way.clear()
        self._window.clear()
        self._base = self._cursor = self._next = self._limit = 0

    def offer(self, reports: list[Report]) -> int:
        """Take reports up to the credit, and up to the first whose lane has none; returns how many.

        One that is on its way is not queued twice; one that has arrived and whose ack is missing goes again: the
        application missed its answer for too long.
        """
        taken = 0
        for report in reports[: self.credit]:
            name = (report.key, report.seq)
            self._withdrawn.discard(name)
            if name not in self._on_way:
                if name not in self.unacked and not self.lanes.take(report.key):
                    break
                self._on_way.add(name)
                self.unacked[name] = report
                self._fresh.append(report)
            taken += 1
        return taken

    def take(self, now: float, bytes_max: int) -> ReportBatch | None:
        """The next consecutive reports to put on the wire, None when there is nothing or no credit."""
        first = self._cursor
        batch: list[Report] = []
        size = 0
        while len(batch) < self._limits.report_batch and (not batch or size < bytes_max):
            report = self._window.get(self._cursor)
            if report is None:
                if not self._fresh or self._next >= self._limit:
                    break
                report = self._window[self._next] = self._fresh.popleft()
                self._next += 1
            batch.append(report)
            self._cursor += 1
            size += len(report.payload) + REPORT_OVERHEAD_BYTES
        if not batch:
            return None
        if first == self._base:
            self._progress_at = now
        return ReportBatch(self._link_number, first, batch)

    def on_received(self, link_number: int, received: int, limit: int, now: float) -> bool:
        """The peer told what it awaits and grants. False when the numbers cannot be (they are then ignored)."""
        if link_number != self._link_number:
            return True  # a late word of an earlier link number
        if received > self._next:
            return False
        if received > self._base:
            for sequence in range(self._base, received):
                report = self._window.pop(sequence, None)
                if report is not None:
                    self._arrived((report.key, report.seq))
            self._base = received
            self._cursor = max(self._cursor, received)
            self._progress_at = now
        self._limit = max(self._limit, limit)
        return True

    def _arrived(self, name: tuple[str, int]) -> None:
        self._on_way.discard(name)
        if name in self._withdrawn:
            self._withdrawn.discard(name)
            self._forget(name)

    def withdraw(self, key: str, seq: int) -> None:
        """The application owes this report no more, or owes it to another: it is neither sent again nor counted."""
        name = (key, seq)
        if name in self._on_way:
            self._withdrawn.add(name)
        else:
            self._forget(name)

    def _forget(self, name: tuple[str, int]) -> None:
        if self.unacked.pop(name, None) is not None:
            self.lanes.give_back(name[0])

    def on_nak(self, nak: Nak, now: float) -> bool:
        """Go back to the missing sequence. False when it never was sent."""
        if nak.link_number != self._link_number or nak.expected < self._base:
            return True
        if nak.expected > self._next:
            return False
        self.on_received(nak.link_number, nak.expected, self._limit, now)
        self._cursor = nak.expected
        self._progress_at = now
        return True

    def on_ack(self, ack: Ack) -> None:
        """An outcome arrived: the report needs no resending by us any more."""
        self._forget((ack.key, ack.seq))
        self.lanes.learn(ack.key, ack.lane)

    def lane_room(self, lane: int) -> int:
        """Reports of this lane that may be offered now."""
        return min(self.credit, self.lanes.room(lane)) if self.lanes.credit else self.credit

    def tick(self, now: float) -> bool:
        """Go back to the window's start when nothing was confirmed for `retransmit_ms`; True when that happened."""
        if not self._window or now - self._progress_at < self._limits.retransmit_ms / 1000:
            return False
        self._cursor = self._base
        self._progress_at = now
        return True


class ReportReceiver:
    """The receiving side: what is awaited, what was granted, and when to tell it."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.lanes = ReceiverLanes(limits)
        self._link_number = 0
        self.expected = 0
        self._acked = 0
        self._limit = 0
        self._told = 0
        self._untold_since = 0.0
        self._naked: int | None = None
        self.repeated = 0
        self.over_credit = 0

    def open(self, link_number: int) -> None:
        """Begin a link number, with the credit that the hello or welcome granted."""
        self._link_number = link_number
        self.expected = self._acked = self._told = 0
        self._limit = self._limits.report_credit
        self._naked = None

    @property
    def unacked(self) -> int:
        """Reports that were received and have no durable ack yet."""
        return self.expected - self._acked

    @property
    def untold(self) -> bool:
        """True while the peer does not know all that was received."""
        return self._told < self.expected

    def receive(self, batch: ReportBatch, now: float) -> tuple[list[Report], Nak | None]:
        """The reports that are new, and a nak when some before them are missing (asked for once per gap)."""
        if batch.link_number != self._link_number:
            self.repeated += len(batch.reports)
            return [], None
        if batch.sequence > self.expected:
            if self._naked == self.expected:
                return [], None
            self._naked = self.expected
            return [], Nak(self._link_number, self.expected)
        skip = self.expected - batch.sequence
        room = self._limit - self.expected
        fresh = batch.reports[skip:] if skip else batch.reports
        self.repeated += min(skip, len(batch.reports))
        if skip:
            self._told = min(self._told, max(0, self.expected - 1))  # the peer repeats itself: tell it again
        if len(fresh) > room:
            self.over_credit += len(fresh) - room
            fresh = fresh[:room]
        if not self.untold or (skip and not fresh):
            self._untold_since = now
        self.expected += len(fresh)
        return fresh, None

    def acknowledge(self, acks: list[Ack]) -> AckBatch:
        """The envelope for durable acks; each gives one report of credit back."""
        self._acked = min(self.expected, self._acked + len(acks))
        self._limit = max(self._limit, self._acked + self._limits.report_credit)
        self._told = self.expected
        return AckBatch(self._link_number, self.expected, self._limit, acks)

    def credit(self) -> Credit:
        """What is received and granted, by itself."""
        self._told = self.expected
        return Credit(self._link_number, self.expected, self._limit)

    @property
    def credit_due_at(self) -> float:
        """When the peer will have waited `received_ack_ms` for word of its reports, while it is `untold`."""
        return self._untold_since + self._limits.received_ack_ms / 1000

    def credit_due(self, now: float) -> bool:
        """True when it has."""
        return self.untold and now >= self.credit_due_at
