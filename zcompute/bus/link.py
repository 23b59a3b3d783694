"""A link: the public face of one peer, and the greenlet side of its protocol core."""

import logging
import time
from typing import Any

import gevent
import msgspec
from gevent import getcurrent
from gevent.event import Event as Flag

from zcompute.bus.context import request_id as current_request_id
from zcompute.bus.envelope import Ack, Bye, Call, Cast, Error, Event, Hello, Reply, Report
from zcompute.bus.errors import (
    BusConfigError,
    DeadlineExceeded,
    FrameRefused,
    LinkDown,
    RemoteError,
    UnsupportedVersion,
    from_wire,
)
from zcompute.bus.following import StreamEvents, StreamSkip
from zcompute.bus.happenings import (
    AcksArrived,
    Happening,
    HelloRefused,
    LinkLost,
    LinkUp,
    OpenCall,
    Refused,
    ReportsArrived,
)
from zcompute.bus.identity import Peer
from zcompute.bus.inbox import Inbox, StreamInbox
from zcompute.bus.linkhome import Carrier, LinkHome, Lower
from zcompute.bus.method import MethodSpec, PreparedMethod, check_version
from zcompute.bus.protocol import LinkCore, State
from zcompute.bus.sending import Sender

log = logging.getLogger(__name__)

REQUEST_ID_CHARS_MAX = 255
UNREACHABLE = "peer is unreachable"

_encode = msgspec.msgpack.Encoder().encode


def _wake(answered: list[OpenCall]) -> None:
    """Switch to the greenlets that wait for these calls; each comes back when it waits again. Runs in the hub.

    One that does not wait in `call` (it was killed, or waits for a lock on its way there) is left alone.
    """
    for open_call in answered:
        waiter = open_call.waiter
        if waiter is not None:
            try:
                waiter.switch()
            except Exception:  # of a bare greenlet: the others are to go on
                log.exception("a caller ended with an exception")


class Link:
    """One peer; the same object across reconnects of a dialled address, and of one incarnation at a listener."""

    def __init__(self, endpoint: LinkHome, core: LinkCore, address: str, name: str) -> None:
        self.address = address
        self.name = name
        self.core = core
        self._carrier: Carrier | None = None
        self._endpoint = endpoint
        self._limits = endpoint.limits
        self._payload_bytes_max = self._limits.payload_bytes_max
        self._turn = endpoint.turn
        self._hub = gevent.get_hub()
        self._up = Flag()
        self.up_since = 0.0
        self._role = ""  # of the peer, as it came up last
        self.sender = Sender(core, endpoint, lambda: endpoint.blocked.add(self), lambda: self.lose(UNREACHABLE))
        self.flush_soon = self.sender.flush_soon
        self._spoken: dict[int, PreparedMethod] = {}  # by id of the method, which the endpoint keeps alive
        self._lower: Lower | None = None
        self.inbox = Inbox(self, endpoint)
        self._stream_inboxes: dict[tuple[str, str], StreamInbox] = {}
        core.streams_out.on_ready = self.flush_soon

    def __repr__(self) -> str:
        return f"<Link {self.name} {self.core.state.value}>"

    # Public face

    @property
    def peer(self) -> Peer | None:
        """The peer as its last hello described it; None before the first."""
        return self.core.peer

    @property
    def up(self) -> bool:
        """True between hello and loss."""
        return self.core.state is State.UP

    @property
    def report_credit(self) -> int:
        """Reports that may be sent now."""
        return self.core.reports_out.credit if self.up else 0

    def lane_of(self, key: str) -> int:
        """The peer's lane for the reports of a key, 0 for one that it has not named yet."""
        return self.core.reports_out.lanes.lane_of(key)

    def lane_room(self, lane: int) -> int:
        """Reports of this lane of the peer that may be sent now; all of `report_credit` where it has no lanes."""
        return self.core.reports_out.lane_room(lane) if self.up else 0

    def may_report(self, key: str) -> bool:
        """Whether a report of this key may be sent now."""
        return self.lane_room(self.lane_of(key)) > 0

    def wait_up(self, timeout_ms: int) -> bool:
        """Wait until the link is up; False when it is not within the time."""
        return bool(self._up.wait(timeout_ms / 1000))

    def call(
        self, method: MethodSpec, request: msgspec.Struct, *, timeout_ms: int, request_id: str | None = None
    ) -> Any:
        """Ask the peer and wait in this greenlet for the answer, at most `timeout_ms`.

        Raises LinkDown (nothing was sent), LinkReset or DeadlineExceeded (the outcome is unknown), Busy, UnknownMethod,
        UnsupportedVersion, FrameRefused, or what the server's handler raised: registered errors as themselves,
        others as RemoteError.
        """
        prepared = self._spoken.get(id(method)) or self._check_spoken(method)
        if timeout_ms <= 0:
            raise DeadlineExceeded(f"no time left for {prepared.full_name}")
        if timeout_ms > self._limits.call_timeout_ms_max:
            timeout_ms = self._limits.call_timeout_ms_max
        rid = current_request_id.get() if request_id is None else request_id
        call = Call(
            0, prepared.full_name, prepared.major, prepared.minor, timeout_ms, rid[:REQUEST_ID_CHARS_MAX],
            self._payload(request),
        )  # fmt: skip
        deadline = time.monotonic() + timeout_ms / 1000
        open_call = OpenCall(call, prepared.interface, deadline, prepared.idempotent, None, prepared.priority)
        core, endpoint = self.core, self._endpoint
        core.call(open_call)
        endpoint.counters["calls"] += 1
        prepared.sent += 1
        endpoint.active.add(self)
        self.flush_soon(len(core.calls) == 1)
        try:
            while open_call.outcome is None:
                open_call.waiter = getcurrent()
                self._hub.switch()
        finally:
            open_call.waiter = None
            if open_call.outcome is None:  # the caller was killed
                self.core.give_up(open_call)
                self.flush_soon()
        outcome = open_call.outcome
        if type(outcome) is Reply:
            if prepared.decode_reply is None:
                return None
            try:
                return prepared.decode_reply(outcome.payload)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
                raise RemoteError(f"reply of {prepared.full_name} cannot be read: {error}", type_name="Reply") from None
        if type(outcome) is Error:
            raise from_wire(outcome.wire_name, outcome.message, outcome.details)
        raise outcome if isinstance(outcome, Exception) else LinkDown("the call was given up")

    def cast(self, method: MethodSpec, request: msgspec.Struct, *, request_id: str | None = None) -> None:
        """Queue a request without an answer. Raises LinkDown, Busy, UnknownMethod, UnsupportedVersion, FrameRefused."""
        prepared = self._spoken.get(id(method)) or self._check_spoken(method)
        rid = current_request_id.get() if request_id is None else request_id
        text = rid[:REQUEST_ID_CHARS_MAX]
        cast = Cast(prepared.full_name, prepared.major, prepared.minor, text, self._payload(request))
        self.core.cast(cast, prepared.priority)
        self._endpoint.counters["casts"] += 1
        prepared.sent += 1
        self.flush_soon()

    def report(self, reports: list[Report]) -> int:
        """Queue up to `report_credit` reports, and up to the first whose lane has no room; returns how many were taken.

        The bus resends what is not durably acknowledged for as long as both incarnations live. Raises FrameRefused
        for a report over `payload_bytes_max`.
        """
        for report in reports:
            self._check_size(len(report.payload))
        if taken := self.core.report(reports):
            self._endpoint.active.add(self)
            self.flush_soon()
        return taken

    def withdraw_report(self, key: str, seq: int) -> None:
        """A report without an answer is owed no more (a newer one replaced it), or to another: do not send it again.

        Without it, a report whose ack was lost keeps its place in its lane's credit for as long as the link lives.
        """
        self.core.reports_out.withdraw(key, seq)

    def ack(self, acks: list[Ack]) -> None:
        """Tell the durable outcome of reports, in any order; gives the sender its credit back.

        An ack that names a lane lets the sender count the key's next reports there (`Limits.lane_credit`).
        """
        self.core.ack(acks)
        self._settle_queue()

    @property
    def reports_unanswered(self) -> int:
        """Reports of the peer's that arrived over this connection and have no ack yet."""
        return self.core.reports_in.unacked

    def admit_report(self, lane: int) -> bool:
        """Take a report of the peer's into a lane, until `settle_report`; False when the lane has `lane_credit` of this
        peer's. It is then to be answered at once, with the lane and a time to come again, and disturbs no other lane.
        """
        return self.core.reports_in.lanes.admit(lane)

    def settle_report(self, lane: int) -> None:
        """A report that was admitted has left the lane; told once for each, whatever became of it and of the link."""
        self.core.reports_in.lanes.settle(lane)

    def event(self, topic: str, key: str, version: int, payload: bytes | msgspec.Struct) -> None:
        """Queue a state event to this peer; the newest version per (topic, key) replaces what still waits.

        A Struct is sent as the peer reads it; one that its versions cannot say is left out and counted. Raises
        FrameRefused.
        """
        if not isinstance(payload, bytes):
            try:
                payload = self.encode(payload)
            except UnsupportedVersion as error:
                self._endpoint.refusals.count("event_version", self.name, str(error))
                return
        self._check_size(len(payload))
        if not self.core.event(Event(topic, key, version, payload)):
            self._endpoint.refusals.count("events_overflow", self.name)
            self.reset("too many state events waited")
            return
        self.flush_soon()

    def follow(self, topic: str, key: str = "", cursor: int = 0) -> None:
        """Follow a stream of the peer's from `cursor` on, or go to another place of it.

        It is resumed by itself at each link up, where it stood. Handlers: `Endpoint.on_stream`. Raises Busy.
        """
        self.core.follow(topic, key, cursor, time.monotonic())
        self._leave_stream(topic, key)
        self._stream_inboxes[topic, key] = StreamInbox(self, self._endpoint, self._took_events)
        self._endpoint.active.add(self)
        self._settle_queue()

    def unfollow(self, topic: str, key: str = "") -> None:
        """Follow it no more; what waits is not told."""
        self.core.unfollow(topic, key)
        self._leave_stream(topic, key)
        self._settle_queue()

    def _leave_stream(self, topic: str, key: str) -> None:
        if (inbox := self._stream_inboxes.pop((topic, key), None)) is not None:
            inbox.close()

    def _took_events(self, topic: str, key: str, cursor: int) -> None:
        self.core.stream_handled(topic, key, cursor, time.monotonic())
        self.flush_soon()

    # The endpoint's side

    @property
    def carrier(self) -> Carrier | None:
        """What moves the frames; None while there is nothing."""
        return self._carrier

    @carrier.setter
    def carrier(self, carrier: Carrier | None) -> None:
        self._carrier = self.sender.carrier = carrier

    def receive(self, frame: bytes) -> None:
        """Take a frame off the socket (in the hub)."""
        now = time.monotonic()
        core = self.core
        happenings: list[Any] = core.receive(frame, now)
        if core.stirred:
            if core.reports_only and len(happenings) == 1 and type(happenings[0]) is ReportsArrived:
                self._reported(happenings[0])
            else:
                self.happen(happenings, now)
            return
        serving = self._endpoint.serving
        answered: list[OpenCall] = []
        for happening in happenings:
            kind = type(happening)
            if kind is OpenCall:
                answered.append(happening)
            elif kind is Call:
                serving.on_call(self, happening, now)
            else:
                serving.on_cast(self, happening, now)
        if answered:
            self._turn.soon(_wake, answered)

    def tick(self, now: float) -> None:
        """Let the core look at the time: with every tick while it is `active`, and when word of reports is due."""
        self.happen(self.core.tick(now), now)

    def lose(self, reason: str) -> None:
        """The connection is gone."""
        now = time.monotonic()
        self.happen(self.core.lost(reason, now), now)

    def fail_calls(self, reason: str) -> None:
        """The peer is known to be gone: let nobody wait for it."""
        self.happen(self.core.fail_calls(reason), time.monotonic())

    def reset(self, reason: str) -> None:
        """Begin anew with a hello (a bound inside the link was reached)."""
        if self._carrier is not None:
            self._carrier.reset(reason)

    def say_bye(self, reason: str) -> None:
        """Tell the peer that this link ends, and send it at once."""
        if self.up:
            self.core.outgoing.add_control(Bye(reason))
            self.sender.flush()

    def close(self, reason: str) -> None:
        """The end of this link object."""
        now = time.monotonic()
        self.happen(self.core.close(reason, now), now)
        self.carrier = None
        self.sender.drop_held()

    def happen(self, happenings: list[Happening], now: float) -> None:
        """Do what the core found."""
        endpoint = self._endpoint
        soon = self._turn.soon
        for happening in happenings:
            if isinstance(happening, OpenCall):
                soon(_wake, [happening])
            elif isinstance(happening, Call):
                endpoint.serving.on_call(self, happening, now)
            elif isinstance(happening, Cast):
                endpoint.serving.on_cast(self, happening, now)
            else:
                self._happen_rarely(happening)
        if self.core.outgoing:
            self._settle_queue()
        core = self.core
        if core.active:
            endpoint.active.add(self)
        self._owe_word()

    def _reported(self, arrived: ReportsArrived) -> None:
        """A frame with nothing but new reports, which are most frames of a listener: little of `happen` is due."""
        self.inbox.put(arrived)
        self._owe_word()
        if self.core.outgoing.queued_control:
            self._settle_queue()

    def _owe_word(self) -> None:
        """Have the link looked at when its peer has waited for too long to hear what was received."""
        core = self.core
        if core.reports_in.untold and core.state is State.UP:
            self._endpoint.untold.add(self, core.reports_in.credit_due_at)

    def look_at_untold(self, now: float) -> None:
        """It is time, unless an ack has brought the word meanwhile."""
        if self.core.reports_in.credit_due(now):
            self.tick(now)
        else:
            self._owe_word()

    def _settle_queue(self) -> None:
        if self.core.outgoing.control_full:
            self._endpoint.refusals.count("unread", self.name)
            self.reset("the peer does not read what it is answered")
        else:
            self.flush_soon()

    def _happen_rarely(self, happening: Happening) -> None:
        if isinstance(happening, Event):
            self.inbox.put_event(happening)
        elif isinstance(happening, ReportsArrived | AcksArrived):
            self.inbox.put(happening)
        elif isinstance(happening, StreamEvents | StreamSkip):
            if (stream_inbox := self._stream_inboxes.get((happening.topic, happening.key))) is not None:
                stream_inbox.put(happening)
        elif isinstance(happening, Refused):
            self._endpoint.refusals.count(happening.reason, self.name, happening.detail)
            if self.carrier is not None:
                self.carrier.on_offence(happening.reason)
        elif isinstance(happening, Hello) and self._carrier is not None:
            self._carrier.on_hello(happening)
        elif isinstance(happening, HelloRefused) and self._carrier is not None:
            self._carrier.on_refused(happening.error)
        elif isinstance(happening, LinkUp):
            self._came_up(happening)
        elif isinstance(happening, LinkLost):
            self._went_down(happening)

    def _came_up(self, happening: LinkUp) -> None:
        peer = happening.peer
        self._spoken.clear()
        lowering = self._endpoint.lowering
        self._lower = lowering(peer.attributes) if lowering is not None else None
        self.name = f"{peer.role}/{peer.service_id}@{peer.cell}"
        self._up.set()
        self.up_since = time.monotonic()
        self._endpoint.up_links[self] = None
        self._role = peer.role
        self._endpoint.up_of_role.setdefault(self._role, {})[self] = None
        self._endpoint.counters["links_up"] += 1
        log.info(
            "link up peer=%s incarnation=%s release=%s address=%s number=%d resent=%d",
            self.name, peer.incarnation, peer.release, self.address, self.core.link_number, happening.resent,
        )  # fmt: skip
        self.inbox.put(happening)

    def _went_down(self, happening: LinkLost) -> None:
        self._up.clear()
        self.sender.drop_held()
        self._endpoint.up_links.pop(self, None)
        self._endpoint.up_of_role.get(self._role, {}).pop(self, None)
        self._endpoint.counters["links_down"] += 1
        log.info("link down peer=%s reason=%s", self.name, happening.reason)
        self.inbox.put(happening)
        if self._carrier is not None:
            self._carrier.on_lost(self, happening.reason)

    def tell(self, happening: Happening) -> None:
        """Run the application's handlers for what the inbox held, in a worker's greenlet."""
        if not self._endpoint.handlers.tell(self, happening):
            self._endpoint.refusals.count("no_report_handler", self.name)

    # Checks before sending

    @property
    def lowers(self) -> bool:
        """True when the peer reads older versions of something."""
        return self._lower is not None

    def encode(self, message: Any) -> bytes:
        """A message in the versions that this peer reads. Raises UnsupportedVersion when they cannot say it."""
        if self._lower is None:
            return _encode(message)
        try:
            return _encode(self._lower(message))
        except ValueError as error:
            raise UnsupportedVersion(f"{type(message).__name__} for {self.name}: {error}") from None

    def _payload(self, request: msgspec.Struct) -> bytes:
        payload = _encode(request) if self._lower is None else self.encode(request)
        if len(payload) > self._payload_bytes_max:
            self._check_size(len(payload))
        return payload

    def _check_size(self, size: int) -> None:
        if size > self._limits.payload_bytes_max:
            raise FrameRefused(
                f"expected a payload of at most {self._limits.payload_bytes_max} bytes, found {size}: send less",
                reason="size",
            )

    def _check_spoken(self, method: MethodSpec) -> PreparedMethod:
        """The method's codec; raises unless this very peer serves its version. Asked once per method and hello."""
        peer = self.core.peer
        if not self.up or peer is None:
            why = self._endpoint.down_reason(self)
            raise LinkDown(f"link to {self.name} is {self.core.state.value}{why}: wait for it, or ask another peer")
        if self._endpoint.closed:
            raise BusConfigError("the endpoint is closed")
        check_version(method.interface, method.version, peer.interfaces, self._endpoint.serving.ranges)
        prepared = self._spoken[id(method)] = self._endpoint.prepare(method)
        return prepared
