"""What waits to be sent on one link, and how a frame is filled from it. No I/O, no clock."""

from collections.abc import Iterable, Mapping
from enum import Enum

from zcompute.bus.envelope import Call, Cancel, Cast, Envelope, Error, Event, Reply, StreamBatch
from zcompute.bus.errors import Busy
from zcompute.bus.limits import Limits
from zcompute.bus.method import Priority
from zcompute.bus.reports import ReportSender
from zcompute.bus.streams import StreamSender

ENVELOPE_OVERHEAD_BYTES = 64


class StateEvents:
    """State events waiting: the newest version per (topic, key)."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._events: dict[tuple[str, str], Event] = {}

    @property
    def waiting(self) -> Mapping[tuple[str, str], Event]:
        """What waits, by (topic, key); the mapping itself, which stays the same."""
        return self._events

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> bool:
        """Keep the event unless a newer one waits; False when it is one key too many."""
        name = (event.topic, event.key)
        waiting = self._events.get(name)
        if waiting is not None:
            if event.version >= waiting.version:
                self._events[name] = event
            return True
        if len(self._events) >= self._keys_max:
            return False
        self._events[name] = event
        return True

    def take(self) -> Event:
        """The event whose key has waited longest. Raises KeyError when none waits."""
        name = next(iter(self._events), None)
        if name is None:
            raise KeyError("no event waits")
        return self._events.pop(name)

    def clear(self) -> None:
        """Forget all (a snapshot follows at the next link up)."""
        self._events.clear()


QUEUE_PARTS = (1.25, 1.0, 0.5)
"""How much of the link's queue, as a part of its limit, may be full for one more of each class to be let in: a storm of
reads leaves room for calls, and calls leave room for control."""


class Source(Enum):
    """Where the envelopes of a frame come from, in the order in which they are asked."""

    PROTOCOL = "protocol"
    CONTROL = "control"
    REPORTS = "reports"
    CALLS = "calls"
    EVENTS = "events"
    READS = "reads"


_ORDER = tuple(Source)
_WORK = {Source.CONTROL: Priority.CONTROL, Source.CALLS: Priority.CALLS, Source.READS: Priority.READS}
_SHARES = {
    Source.PROTOCOL: 1 / 8,
    Source.CONTROL: 1 / 8,
    Source.REPORTS: 1 / 8,
    Source.CALLS: 1 / 4,
    Source.EVENTS: 1 / 8,
    Source.READS: 1 / 8,
}
"""The part of a frame's places and bytes that is kept for a class while it waits."""


class Frame:
    """A frame being filled. It is closed by the envelope that takes it to `batch_bytes`: with the largest payload
    allowed it stays under `frame_bytes_max`."""

    __slots__ = ("bytes_max", "envelopes", "envelopes_max", "size")

    def __init__(self, limits: Limits) -> None:
        self.envelopes: list[Envelope] = []
        self.envelopes_max = limits.batch_envelopes
        self.bytes_max = limits.batch_bytes
        self.size = 0

    def has_room(self, envelopes_max: int, bytes_max: int) -> bool:
        """True while neither is reached."""
        return len(self.envelopes) < envelopes_max and self.size < bytes_max

    def add(self, envelope: Envelope, weight: int) -> None:
        """Put one envelope in."""
        self.envelopes.append(envelope)
        self.size += weight


class Outgoing:
    """What waits to be sent, in classes: the protocol's own, control, reports, calls, events, reads.

    A class goes before those behind it, but each class that waits has a share of every frame, in envelopes and bytes:
    none is starved by those before it.
    """

    def __init__(self, limits: Limits, reports: ReportSender, streams: StreamSender) -> None:
        self._limits = limits
        self._reports = reports
        self._streams = streams
        self._control: list[Envelope] = []
        self._work: tuple[list[Envelope], list[Envelope], list[Envelope]] = ([], [], [])
        self.queued = 0  # envelopes of work waiting
        self._work_bytes = 0
        self.drained = False  # the last frame took all that waited
        self._first: Source | None = None  # a class that got nothing of the last frame
        self.events = StateEvents(limits.state_events_max)
        self._waiting_events = self.events.waiting  # these two are asked about with every frame
        self._waiting_streams = streams.ready
        self._batch_envelopes = limits.batch_envelopes
        self._batch_bytes = limits.batch_bytes
        self._queue_limits = tuple(
            (limits.queue_envelopes_max * part, limits.queue_bytes_max * part) for part in QUEUE_PARTS
        )

    def __bool__(self) -> bool:
        return bool(self.queued) or self._waits_beside_work()

    def _waits_beside_work(self) -> bool:
        return bool(self._control or self._waiting_events or self._waiting_streams or self._reports.ready)

    @property
    def queued_bytes(self) -> int:
        """Their size, with overhead."""
        return self._work_bytes

    @property
    def queued_control(self) -> int:
        """Acks, credits, naks and other envelopes of the protocol's own waiting."""
        return len(self._control)

    @property
    def control_full(self) -> bool:
        """True when the peer asks for more answers than it reads."""
        return len(self._control) > self._limits.queue_control_max

    def add_control(self, envelope: Envelope) -> None:
        """Queue an envelope of the protocol's own; see `control_full`."""
        self._control.append(envelope)

    def add_controls(self, envelopes: Iterable[Envelope]) -> None:
        """Queue several."""
        self._control.extend(envelopes)

    def add_work(
        self, envelope: Call | Cast | Cancel | Reply | Error, size: int, priority: Priority = Priority.CALLS
    ) -> None:
        """Queue a call, cast or reply with a payload of `size` bytes. Raises Busy at the queue's limit."""
        envelopes_max, bytes_max = self._queue_limits[priority]
        if self.queued >= envelopes_max or self._work_bytes > bytes_max:
            raise Busy(
                f"expected at most {int(envelopes_max)} envelopes and {int(bytes_max)} bytes queued before one of "
                f"class {priority.name.lower()}, found {self.queued} and {self._work_bytes}: try again later",
                retry_after_ms=self._limits.retry_after_ms,
            )
        self._work[priority].append(envelope)
        self.queued += 1
        self._work_bytes += size + ENVELOPE_OVERHEAD_BYTES

    def take(self, now: float) -> list[Envelope]:
        """The envelopes of the next frame, empty when nothing waits."""
        if self.queued > self._batch_envelopes or self._work_bytes > self._batch_bytes or self._waits_beside_work():
            if not (self.queued or self._waiting_events or self._waiting_streams):
                reports_wait = self._reports.ready
                if not reports_wait and len(self._control) <= self._batch_envelopes:
                    self.drained = True  # acks and credit: most frames of a listener
                    answers, self._control = self._control, []
                    return answers
                if reports_wait and not self._control:  # most frames of an agent
                    return self._take_reports_alone(now)
            self.drained = False
            return self._take_shares(now)
        self.drained = True
        control, calls, reads = self._work  # all of it fits one frame
        frame = control + calls + reads if control or reads else calls
        self._work = ([], [], [])
        self.queued = self._work_bytes = 0
        return frame

    def _take_reports_alone(self, now: float) -> list[Envelope]:
        self._first = None
        batch = self._reports.take(now, self._batch_bytes)
        self.drained = not self._reports.ready
        return [] if batch is None else [batch]

    def _take_shares(self, now: float) -> list[Envelope]:
        frame = Frame(self._limits)
        waiting = [source for source in _ORDER if self._waits(source)]
        if self._first in waiting:  # one envelope of it, whatever waits before
            self._take(self._first, frame, 1, frame.bytes_max, now)
        shares = {source: max(1, int(frame.envelopes_max * _SHARES[source])) for source in waiting}
        kept = sum(shares.values())
        starved = None
        for source in waiting:
            kept -= shares[source]
            before = len(frame.envelopes)
            room = max(0, frame.envelopes_max - kept)
            self._take(source, frame, room, frame.bytes_max * room // frame.envelopes_max, now)
            if len(frame.envelopes) == before and source is not self._first:
                starved = starved or source
        self._first = starved
        return frame.envelopes

    def _waits(self, source: Source) -> bool:
        if source is Source.PROTOCOL:
            return bool(self._control)
        if source is Source.REPORTS:
            return self._reports.ready
        if source is Source.EVENTS:
            return bool(self.events or self._streams)
        return bool(self._work[_WORK[source]])

    def _take(self, source: Source, frame: Frame, envelopes_max: int, bytes_max: int, now: float) -> None:
        """Fill the frame up to so many envelopes and bytes in all; the last envelope may go beyond the bytes."""
        if source is Source.REPORTS:
            self._take_reports(frame, envelopes_max, bytes_max, now)
            return
        if source is Source.EVENTS:
            self._take_events(frame, envelopes_max, bytes_max, now)
            return
        queue = self._control if source is Source.PROTOCOL else self._work[_WORK[source]]
        taken = size = 0
        for envelope in queue:
            if not frame.has_room(envelopes_max, bytes_max):
                break
            weight = _payload_size(envelope) + ENVELOPE_OVERHEAD_BYTES
            frame.add(envelope, weight)
            size += weight
            taken += 1
        del queue[:taken]
        if source is not Source.PROTOCOL:
            self.queued -= taken
            self._work_bytes -= size

    def _take_reports(self, frame: Frame, envelopes_max: int, bytes_max: int, now: float) -> None:
        if self._reports.ready and frame.has_room(envelopes_max, bytes_max):
            batch = self._reports.take(now, bytes_max - frame.size)
            if batch is not None:
                frame.add(batch, sum(len(report.payload) for report in batch.reports) + ENVELOPE_OVERHEAD_BYTES)

    def _take_events(self, frame: Frame, envelopes_max: int, bytes_max: int, now: float) -> None:
        """State events and streams by turns."""
        while (self.events or self._streams) and frame.has_room(envelopes_max, bytes_max):
            if self.events:
                event = self.events.take()
                frame.add(event, len(event.payload) + ENVELOPE_OVERHEAD_BYTES)
            if self._streams and frame.has_room(envelopes_max, bytes_max):
                envelope = self._streams.take(now, bytes_max - frame.size)
                if envelope is not None:
                    frame.add(envelope, _payload_size(envelope) + ENVELOPE_OVERHEAD_BYTES)

    def clear(self) -> tuple[set[int], int]:
        """Drop everything; returns the ids of calls that were never sent, and how many casts were lost."""
        work = [envelope for queue in self._work for envelope in queue]
        unsent = {envelope.call_id for envelope in work if isinstance(envelope, Call)}
        casts = sum(1 for envelope in work if isinstance(envelope, Cast))
        self._control.clear()
        self._work = ([], [], [])
        self.queued = self._work_bytes = 0
        self.events.clear()
        return unsent, casts


def _payload_size(envelope: Envelope) -> int:
    if isinstance(envelope, StreamBatch):
        return sum(map(len, envelope.payloads))
    return len(getattr(envelope, "payload", b""))
