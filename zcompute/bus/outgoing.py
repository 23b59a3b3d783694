"""What waits to be sent on one link, and how a frame is filled from it. No I/O, no clock."""

from zcompute.bus.envelope import Call, Cancel, Cast, Envelope, Error, Event, Reply
from zcompute.bus.errors import Busy
from zcompute.bus.limits import Limits
from zcompute.bus.reports import ReportSender

ENVELOPE_OVERHEAD_BYTES = 64


class StateEvents:
    """State events waiting: the newest version per (topic, key)."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._events: dict[tuple[str, str], Event] = {}

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


class Outgoing:
    """Three classes of envelopes: control first, then work (calls, replies, casts), then bulk (reports, events).

    Bulk keeps a share of each frame, so that a storm of calls does not stop reports.
    """

    def __init__(self, limits: Limits, reports: ReportSender) -> None:
        self._limits = limits
        self._reports = reports
        self._control: list[Envelope] = []
        self._work: list[Envelope] = []
        self._work_bytes = 0
        self.events = StateEvents(limits.state_events_max)

    def __bool__(self) -> bool:
        return bool(self._work or self._control or self.events or self._reports.ready)

    @property
    def queued(self) -> int:
        """Envelopes of work waiting."""
        return len(self._work)

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

    def add_work(self, envelope: Call | Cast | Cancel | Reply | Error, size: int) -> None:
        """Queue a call, cast or reply with a payload of `size` bytes. Raises Busy at the queue's limit."""
        limits = self._limits
        if len(self._work) >= limits.queue_envelopes_max or self._work_bytes > limits.queue_bytes_max:
            raise Busy(
                f"expected at most {limits.queue_envelopes_max} envelopes and {limits.queue_bytes_max} bytes queued, "
                f"found {len(self._work)} and {self._work_bytes}: try again later",
                retry_after_ms=limits.retry_after_ms,
            )
        self._work.append(envelope)
        self._work_bytes += size + ENVELOPE_OVERHEAD_BYTES

    def take(self, now: float) -> list[Envelope]:
        """The envelopes of the next frame, empty when nothing waits."""
        bulk_waits = bool(self.events) or self._reports.ready
        if (
            not bulk_waits
            and not self._control
            and len(self._work) <= self._limits.batch_envelopes
            and self._work_bytes <= self._limits.batch_bytes
        ):
            frame, self._work = self._work, []
            self._work_bytes = 0
            return frame
        frame = self._control[: self._limits.batch_envelopes]
        del self._control[: len(frame)]
        share = self._limits.bulk_share if bulk_waits else 0
        size = self._take_work(frame, self._limits.batch_envelopes - share)
        if bulk_waits:
            self._take_bulk(frame, size, now)
        return frame

    def _take_work(self, frame: list[Envelope], envelopes_max: int) -> int:
        size = taken = 0
        for envelope in self._work:
            grown = size + _payload_size(envelope) + ENVELOPE_OVERHEAD_BYTES
            if len(frame) >= envelopes_max or (frame and grown > self._limits.batch_bytes):
                break
            frame.append(envelope)
            size = grown
            taken += 1
        del self._work[:taken]
        self._work_bytes = self._work_bytes - size if self._work else 0
        return size

    def _take_bulk(self, frame: list[Envelope], size: int, now: float) -> None:
        limits = self._limits
        room = max(0, limits.batch_bytes - size)
        if self._reports.ready and len(frame) < limits.batch_envelopes and (room or not frame):
            batch = self._reports.take(now, room)
            if batch is not None:
                frame.append(batch)
                room -= sum(len(report.payload) for report in batch.reports)
        while self.events and len(frame) < limits.batch_envelopes and (room > 0 or not frame):
            event = self.events.take()
            frame.append(event)
            room -= len(event.payload) + ENVELOPE_OVERHEAD_BYTES

    def clear(self) -> tuple[set[int], int]:
        """Drop everything; returns the ids of calls that were never sent, and how many casts were lost."""
        unsent = {envelope.call_id for envelope in self._work if isinstance(envelope, Call)}
        casts = sum(1 for envelope in self._work if isinstance(envelope, Cast))
        self._control.clear()
        self._work.clear()
        self._work_bytes = 0
        self.events.clear()
        return unsent, casts


def _payload_size(envelope: Envelope) -> int:
    payload = getattr(envelope, "payload", b"")
    return len(payload)
