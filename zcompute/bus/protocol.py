"""The state machine of one link, without I/O: time and frames go in, frames and happenings come out.

The same core serves both ends. A dialler begins with `begin_hello`; a listener that admitted a hello calls `accept`.
`receive` takes a frame, `take_frame` gives the next one, `tick` is called every few tens of milliseconds while
`active`, and at `reports_in.credit_due_at` while that is `untold`. What was lost with a link (calls, casts, reports) is
settled in `lost` and at the next hello.
"""

from collections.abc import Callable, Mapping
from typing import Any

from zcompute.bus.calls import UP, Calls
from zcompute.bus.calls import State as State
from zcompute.bus.counters import Counters
from zcompute.bus.envelope import (
    Ack,
    AckBatch,
    Bye,
    Call,
    Cancel,
    Cast,
    Credit,
    Envelope,
    Error,
    Event,
    Follow,
    Hello,
    HelloRequired,
    Nak,
    Reply,
    Report,
    ReportBatch,
    StreamBatch,
    StreamCredit,
    StreamGap,
    Welcome,
    decode_frame,
    encode_frame,
)
from zcompute.bus.errors import (
    BusError,
    DeadlineExceeded,
    Forbidden,
    FrameRefused,
    from_wire,
)
from zcompute.bus.following import StreamReceiver, StreamSkip
from zcompute.bus.greeting import peer_of as peer_of
from zcompute.bus.happenings import (
    AcksArrived,
    Happening,
    HelloRefused,
    LinkLost,
    LinkUp,
    Refused,
    ReportsArrived,
)
from zcompute.bus.identity import Peer, VersionRange
from zcompute.bus.limits import Limits
from zcompute.bus.method import Priority
from zcompute.bus.outgoing import Outgoing
from zcompute.bus.reports import ReportReceiver, ReportSender
from zcompute.bus.streams import Streams, StreamSender

STREAM_MINOR = 1
"""The minor version of the protocol that brought the streams."""


class LinkCore(Calls):
    """One link's protocol state; see the module's text. All times are seconds of one monotonic clock."""

    def __init__(
        self,
        limits: Limits,
        counters: Counters | None = None,
        *,
        verify: Callable[[Peer], None] | None = None,
        interfaces: Callable[[], Mapping[str, VersionRange]] = dict,
        streams: Streams | None = None,
        priority_of: Callable[[str], Priority] = lambda method: Priority.CALLS,
    ) -> None:
        reports_out = ReportSender(limits)
        streams_out = StreamSender(limits, streams if streams is not None else Streams(limits))
        super().__init__(
            limits,
            counters if counters is not None else Counters(),
            Outgoing(limits, reports_out, streams_out),
            interfaces,
            priority_of,
        )
        self.link_number = 0
        self.reports_out = reports_out
        self.reports_in = ReportReceiver(limits)
        self.streams_out = streams_out
        self.streams_in = StreamReceiver(limits)
        self.bytes_received = 0
        self.reports_only = False  # the last frame had one envelope, of reports
        self.lost_at = 0.0
        self.hello_at = 0.0
        self._verify = verify
        self._notice_at = 0.0
        self._listens = False

    # Hello

    def begin_hello(self, hello: Hello, now: float) -> bytes:
        """Raise the link number and give the frame of the hello, which goes out before anything else."""
        self.link_number += 1
        hello.link_number = self.link_number
        self.state = State.HELLO_SENT
        self.hello_at = now
        return encode_frame([hello])

    def accept(self, hello: Hello, peer: Peer, welcome: Welcome, now: float) -> list[Happening]:
        """Listener: the hello was admitted; queue the welcome, the link is up."""
        happenings: list[Happening] = []
        if self.state is UP:
            happenings += self.lost("new hello", now)
        self._listens = True
        self.link_number = welcome.link_number = hello.link_number
        self.outgoing.add_control(welcome)
        return happenings + self._come_up(peer, hello, now)

    def _come_up(self, peer: Peer, greeting: Hello | Welcome, now: float) -> list[Happening]:
        same = self.peer is not None and self.peer.incarnation == peer.incarnation
        if not same:
            self.cancel_serving()
        self.peer = peer
        self.peer_minor = greeting.protocol_minor
        self.state = UP
        resent = self.reports_out.open(self.link_number, greeting.report_credit, greeting.lane_credit, same_peer=same)
        self.reports_in.open(self.link_number)
        self.counters["reports_resent"] += resent
        self._calls_settled = True
        happenings: list[Happening] = [LinkUp(peer, same, resent), *self._resend_calls(peer, now)]
        if len(self.streams_in) and self.peer_minor < STREAM_MINOR:
            happenings.append(Refused("streams_unspoken", f"the peer speaks protocol 1.{self.peer_minor}"))
        else:
            self.outgoing.add_controls(self.streams_in.reopen(now))
        return happenings

    def lost(self, reason: str, now: float) -> list[Happening]:
        """The link is gone: what cannot be sent again fails, idempotent calls wait `call_grace_ms` for its return."""
        was_up = self.state is UP
        if self.state is not State.CLOSED:
            self.state = State.DOWN
        if not was_up:
            return []
        self.lost_at = now
        self._calls_settled = False
        unsent, casts = self.outgoing.clear()
        self.counters["casts_lost"] += casts
        self.reports_out.close()
        self.streams_out.clear()
        happenings: list[Happening] = [LinkLost(reason)]
        for open_call in [open_call for open_call in self.calls.values() if not open_call.idempotent]:
            sent = open_call.call.call_id not in unsent
            happenings.append(self._settle(open_call, open_call.loss(reason, sent=sent)))
        return happenings

    def close(self, reason: str, now: float) -> list[Happening]:
        """The end of this link."""
        happenings = self.lost(reason, now) + self.fail_calls(reason)
        self.cancel_serving()
        self.state = State.CLOSED
        return happenings

    # Sending

    def report(self, reports: list[Report]) -> int:
        """Queue reports up to the credit; returns how many were taken."""
        return self.reports_out.offer(reports) if self.state is UP else 0

    def ack(self, acks: list[Ack]) -> None:
        """Send durable acks, and with them credit. On a link that is down they are dropped: the peer resends."""
        if self.state is not UP:
            self.counters["acks_dropped"] += len(acks)
            return
        step = self.limits.acks_per_envelope_max
        for start in range(0, len(acks), step):
            self.outgoing.add_control(self.reports_in.acknowledge(acks[start : start + step]))

    def event(self, event: Event) -> bool:
        """Queue a state event; False when too many distinct keys wait (the link must then be reset)."""
        return self.state is not UP or self.outgoing.events.put(event)

    def follow(self, topic: str, key: str, cursor: int, now: float) -> None:
        """Follow a stream of the peer's from a cursor on, now or as soon as the link is up. Raises Busy."""
        self._say(self.streams_in.follow(topic, key, cursor, now))

    def unfollow(self, topic: str, key: str) -> None:
        """Follow it no more."""
        self._say(self.streams_in.unfollow(topic, key))

    def stream_handled(self, topic: str, key: str, cursor: int, now: float) -> None:
        """The application has taken a stream's events below `cursor`: give credit."""
        self._say(self.streams_in.handled(topic, key, cursor, now))

    def _say(self, about_stream: Follow | StreamCredit | None) -> None:
        if about_stream is not None and self.state is UP and self.peer_minor >= STREAM_MINOR:
            self.outgoing.add_control(about_stream)

    def probe(self) -> None:
        """Say something harmless, which a listener answers: with hello_required if it does not know the route."""
        if self.state is UP:
            self.outgoing.add_control(self.reports_in.credit())

    def take_frame(self, now: float) -> bytes | None:
        """The next frame to send, None when nothing waits."""
        envelopes = self.outgoing.take(now)
        if not envelopes:
            return None
        self.counters["frames_sent"] += 1
        return encode_frame(envelopes)

    # Receiving

    def receive(self, frame: bytes, now: float) -> list[Happening]:
        """Take one frame. A frame that cannot be read is dropped whole, counted and told to the peer."""
        self.counters["frames_received"] += 1
        self.counters["bytes_received"] += len(frame)
        self.bytes_received += len(frame)
        self.stirred = True
        try:
            envelopes: list[Any] = decode_frame(frame, self.limits)
        except FrameRefused as error:
            self.notice(error, now)
            return [Refused(str(error.details.get("reason", "malformed")), str(error))]
        happenings: list[Happening] = []
        self.stirred = self.state is not UP
        self.reports_only = len(envelopes) == 1 and type(envelopes[0]) is ReportBatch
        for envelope in envelopes:
            kind = type(envelope)
            if self.state is not UP and kind not in _BEFORE_UP:
                happenings.append(Refused("before_welcome", kind.__name__))
            elif kind is Reply:
                open_call = self.calls.pop(envelope.call_id, None)
                if open_call is not None:
                    open_call.outcome = envelope
                    happenings.append(open_call)
                else:
                    self.counters["replies_late"] += 1
            elif kind is Cast:
                happenings.append(envelope)
            else:
                self.stirred = self.stirred or kind not in _WORK
                _RECEIVERS[kind](self, envelope, now, happenings)
        return happenings

    def notice(self, error: BusError, now: float) -> None:
        """Tell the peer that something of its was dropped, at most once in `refusal_notice_ms`."""
        if self.state is UP and now >= self._notice_at:
            self._notice_at = now + self.limits.refusal_notice_ms / 1000
            self.outgoing.add_control(Error(0, error.wire_name, str(error), {}))

    def _pass_on(self, envelope: Hello | Cast | Event, now: float, happenings: list[Happening]) -> None:
        happenings.append(envelope)

    def _on_welcome(self, welcome: Welcome, now: float, happenings: list[Happening]) -> None:
        if self.state is not State.HELLO_SENT or welcome.link_number != self.link_number:
            happenings.append(Refused("late_welcome"))
            return
        try:
            peer = peer_of(welcome, "", self.limits)
            if self._verify is not None:
                self._verify(peer)
        except BusError as error:
            self.state = State.DOWN
            happenings.append(HelloRefused(error))
            return
        happenings += self._come_up(peer, welcome, now)

    def _on_error(self, error: Error, now: float, happenings: list[Happening]) -> None:
        if error.call_id:
            open_call = self.calls.pop(error.call_id, None) if self.state is UP else None
            if open_call is not None:
                open_call.outcome = error
                happenings.append(open_call)
            elif self.state is UP:
                self.counters["replies_late"] += 1
        elif self.state is State.HELLO_SENT:
            self.state = State.DOWN
            happenings.append(HelloRefused(from_wire(error.wire_name, error.message, error.details)))
        else:
            happenings.append(Refused("told_by_peer", error.message))

    def _on_reports(self, batch: ReportBatch, now: float, happenings: list[Happening]) -> None:
        over = self.reports_in.over_credit
        repeated = self.reports_in.repeated
        reports, nak = self.reports_in.receive(batch, now)
        self.counters["reports_repeated"] += self.reports_in.repeated - repeated
        if nak is not None:
            self.counters["naks_sent"] += 1
            self.outgoing.add_control(nak)
        if self.reports_in.over_credit > over:
            happenings.append(Refused("over_credit"))
        if reports:
            happenings.append(ReportsArrived(reports))

    def _on_acks(self, batch: AckBatch, now: float, happenings: list[Happening]) -> None:
        if not self.reports_out.on_received(batch.link_number, batch.received, batch.limit, now):
            happenings.append(Refused("bad_sequence"))
        for ack in batch.acks:
            self.reports_out.on_ack(ack)
        happenings.append(AcksArrived(batch.acks))

    def _on_credit(self, credit: Credit, now: float, happenings: list[Happening]) -> None:
        if not self.reports_out.on_received(credit.link_number, credit.received, credit.limit, now):
            happenings.append(Refused("bad_sequence"))
        if self._listens:  # the dialler may be asking whether we are there
            self.outgoing.add_control(self.reports_in.credit())

    def _on_nak(self, nak: Nak, now: float, happenings: list[Happening]) -> None:
        self.counters["naks_received"] += 1
        if not self.reports_out.on_nak(nak, now):
            happenings.append(Refused("bad_sequence"))

    def _on_follow(self, follow: Follow, now: float, happenings: list[Happening]) -> None:
        why_not = self.streams_out.follow(follow, self.peer.role if self.peer is not None else "")
        if why_not:
            happenings.append(Refused(why_not, f"{follow.topic}/{follow.key}"))
            self.notice(Forbidden(f"stream {follow.topic}/{follow.key} may not be followed: {why_not}"), now)

    def _on_stream_credit(self, credit: StreamCredit, now: float, happenings: list[Happening]) -> None:
        self.streams_out.credit(credit, now)

    def _on_stream(self, envelope: StreamBatch | StreamGap, now: float, happenings: list[Happening]) -> None:
        found = self.streams_in.receive(envelope, now)
        if found.happening is not None:
            happenings.append(found.happening)
            if isinstance(found.happening, StreamSkip):
                self.counters["stream_gaps"] += 1
        if found.question is not None:
            self.outgoing.add_control(found.question)

    def _on_bye(self, bye: Bye, now: float, happenings: list[Happening]) -> None:
        if self.state is UP:  # else it was said before our hello arrived, whose answer is on its way
            happenings += self.lost(f"peer said bye: {bye.reason}", now)

    def _on_hello_required(self, required: HelloRequired, now: float, happenings: list[Happening]) -> None:
        if self.state is UP:  # else it is about what we sent before our hello
            happenings += self.lost("listener does not know the route", now)

    # Time

    @property
    def active(self) -> bool:
        """True while `tick` has something to watch, beside the word that is due of received reports."""
        if self.state is UP:
            streams = len(self.streams_in) > 0 or self.streams_out.waiting
            return streams or bool(self.calls) or self.reports_out.waiting
        return bool(self.calls or self.serving)

    def tick(self, now: float) -> list[Happening]:
        """End calls whose time is over, repeat reports that were not confirmed, confirm those that came."""
        happenings: list[Happening] = []
        for open_call in [call for call in self.calls.values() if call.deadline <= now]:
            late = DeadlineExceeded(f"no answer to {open_call.call.method} within its deadline")
            happenings.append(self._settle(open_call, late))
        if self.state is UP:
            if self.reports_out.tick(now):
                self.counters["reports_retransmitted"] += 1
            if self.reports_in.credit_due(now):
                self.outgoing.add_control(self.reports_in.credit())
            self.counters["streams_retransmitted"] += self.streams_out.tick(now)
            if self.peer_minor >= STREAM_MINOR:
                self.outgoing.add_controls(self.streams_in.tick(now))
        elif now - self.lost_at >= self.limits.call_grace_ms / 1000:
            if not self._calls_settled:
                happenings += self.fail_calls("the link did not come back in time")
            if now - self.lost_at >= (self.limits.call_grace_ms + self.limits.silence_ms_max) / 1000:
                self.cancel_serving()  # the peer's grace is over too, had it noticed as late as it can
        return happenings


_BEFORE_UP = frozenset({Hello, Welcome, Error, HelloRequired, Bye})

_WORK = frozenset({Call, Cancel})
"""What stirs nothing but the calls being served."""

_RECEIVERS: dict[type[Envelope], Callable[[LinkCore, Any, float, list[Happening]], None]] = {
    Hello: LinkCore._pass_on,
    Welcome: LinkCore._on_welcome,
    Call: LinkCore._on_call,
    Error: LinkCore._on_error,
    ReportBatch: LinkCore._on_reports,
    AckBatch: LinkCore._on_acks,
    Credit: LinkCore._on_credit,
    Nak: LinkCore._on_nak,
    Event: LinkCore._pass_on,
    Bye: LinkCore._on_bye,
    HelloRequired: LinkCore._on_hello_required,
    Cancel: LinkCore._on_cancel,
    Follow: LinkCore._on_follow,
    StreamBatch: LinkCore._on_stream,
    StreamGap: LinkCore._on_stream,
    StreamCredit: LinkCore._on_stream_credit,
}
