"""Two protocol cores against each other, without sockets; a seed replays a run."""

import random
from collections import deque
from typing import Any

import pytest

from zcompute.bus.envelope import (
    PROTOCOL_MINOR,
    Ack,
    Call,
    Cast,
    Error,
    Event,
    Hello,
    Reply,
    Report,
    Welcome,
    encode_frame,
)
from zcompute.bus.errors import Busy, DeadlineExceeded, LinkDown, LinkReset, UnsupportedVersion
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
from zcompute.bus.limits import Limits
from zcompute.bus.method import Priority
from zcompute.bus.protocol import LinkCore, State, peer_of

RANGES = {"echo": ((1, 0), (1, 2))}


def greeting(kind: type[Any], service_id: str, incarnation: str, credit: int = 1000) -> Any:
    return kind(
        protocol_major=1, protocol_minor=PROTOCOL_MINOR, link_number=0, service_id=service_id, incarnation=incarnation,
        role="conductor", cell="c1", release="1", hosts=[], interfaces=RANGES, topics=[], attributes=b"\x80",
        report_credit=credit,
    )  # fmt: skip


def an_open_call(deadline: float, idempotent: bool = False, minor: int = 0) -> OpenCall:
    return OpenCall(Call(0, "echo.say", 1, minor, 1000, "-", b"x"), "echo", deadline, idempotent)


class Pair:
    """A dialler and a listener with a network between them that can lose and repeat frames."""

    def __init__(self, seed: int = 0, loss: float = 0.0, repeat: float = 0.0, limits: Limits | None = None) -> None:
        self.random = random.Random(seed)
        self.loss, self.repeat = loss, repeat
        self.now = 100.0
        self.limits = limits or Limits()
        self.dialler = LinkCore(self.limits)
        self.listener = LinkCore(self.limits)
        self.incarnations = {"d": "d1", "l": "l1"}
        self.seen: dict[LinkCore, list[Happening]] = {self.dialler: [], self.listener: []}

    def connect(self) -> None:
        """Hello and welcome, which a connection never loses without being lost itself."""
        frame = self.dialler.begin_hello(greeting(Hello, "d", self.incarnations["d"]), self.now)
        (hello,) = self.listener.receive(frame, self.now)
        assert isinstance(hello, Hello)
        welcome = greeting(Welcome, "l", self.incarnations["l"], self.limits.report_credit)
        peer = peer_of(hello, "", self.limits)
        self.seen[self.listener] += self.listener.accept(hello, peer, welcome, self.now)
        first = self.listener.take_frame(self.now)
        assert first is not None
        self.seen[self.dialler] += self.dialler.receive(first, self.now)
        assert self.dialler.state is State.UP

    def lose_link(self) -> None:
        for core in (self.dialler, self.listener):
            self.seen[core] += core.lost("test", self.now)

    def turn(self, ms: int = 10) -> None:
        """Carry what waits on both sides, then let time pass."""
        for sender, receiver in ((self.dialler, self.listener), (self.listener, self.dialler)):
            while (frame := sender.take_frame(self.now)) is not None:
                if self.random.random() < self.loss:
                    continue
                copies = 2 if self.random.random() < self.repeat else 1
                for _ in range(copies):
                    self.seen[receiver] += receiver.receive(frame, self.now)
        self.now += ms / 1000
        for core in (self.dialler, self.listener):
            self.seen[core] += core.tick(self.now)

    def reports_at(self, core: LinkCore) -> list[Report]:
        return [r for h in self.seen[core] if isinstance(h, ReportsArrived) for r in h.reports]


def test_hello_and_welcome_bring_both_sides_up() -> None:
    pair = Pair()
    pair.connect()
    assert pair.dialler.peer is not None
    assert pair.dialler.peer.service_id == "l"
    assert pair.listener.peer is not None
    assert pair.listener.peer.incarnation == "d1"
    assert pair.dialler.link_number == pair.listener.link_number == 1


def test_no_work_is_taken_before_welcome() -> None:
    core = LinkCore(Limits())
    happenings = core.receive(encode_frame([Cast("echo.say", 1, 0, "-", b""), Event("t", "k", 1, b"")]), 0.0)
    assert [h.reason for h in happenings if isinstance(h, Refused)] == ["before_welcome"] * 2
    with pytest.raises(LinkDown):
        core.call(an_open_call(5.0))


def test_a_welcome_for_an_earlier_hello_is_refused() -> None:
    pair = Pair()
    pair.dialler.begin_hello(greeting(Hello, "d", "d1"), 0.0)
    pair.dialler.begin_hello(greeting(Hello, "d", "d1"), 0.0)
    late = greeting(Welcome, "l", "l1")
    late.link_number = 1
    (refused,) = pair.dialler.receive(encode_frame([late]), 0.0)
    assert refused == Refused("late_welcome")
    assert pair.dialler.state is State.HELLO_SENT


def test_a_refused_hello_tells_the_error() -> None:
    pair = Pair()
    pair.dialler.begin_hello(greeting(Hello, "d", "d1"), 0.0)
    (refused,) = pair.dialler.receive(encode_frame([Error(0, "Busy", "later", {"retry_after_ms": 7})]), 0.0)
    assert isinstance(refused, HelloRefused)
    assert isinstance(refused.error, Busy)
    assert refused.error.retry_after_ms == 7


def test_a_call_is_answered_and_a_late_reply_is_counted() -> None:
    pair = Pair()
    pair.connect()
    open_call = an_open_call(pair.now + 1)
    pair.dialler.call(open_call)
    pair.turn()
    (call,) = [h for h in pair.seen[pair.listener] if isinstance(h, Call)]
    assert pair.listener.answer(Reply(call.call_id, b"y"), 1, pair.listener.serving[call.call_id])
    pair.turn()
    assert open_call.outcome == Reply(call.call_id, b"y")
    pair.dialler.receive(encode_frame([Reply(call.call_id, b"again")]), pair.now)
    assert pair.dialler.counters["replies_late"] == 1


def test_a_call_ends_at_its_deadline() -> None:
    pair = Pair(loss=1.0)
    pair.connect()
    open_call = an_open_call(pair.now + 0.05)
    pair.dialler.call(open_call)
    for _ in range(6):
        pair.turn()
    assert isinstance(open_call.outcome, DeadlineExceeded)
    assert not pair.dialler.calls


def test_a_lost_link_resets_calls_and_resends_idempotent_ones() -> None:
    pair = Pair()
    pair.connect()
    once, again, unsent = an_open_call(pair.now + 9), an_open_call(pair.now + 9, True), an_open_call(pair.now + 9)
    pair.dialler.call(once)
    pair.dialler.call(again)
    assert pair.dialler.take_frame(pair.now)  # lost on the way
    pair.dialler.call(unsent)
    pair.lose_link()
    assert isinstance(once.outcome, LinkReset)
    assert isinstance(unsent.outcome, LinkDown)
    assert again.outcome is None
    pair.connect()
    pair.turn()
    (call,) = [h for h in pair.seen[pair.listener] if isinstance(h, Call)]
    assert call.call_id == again.call.call_id
    pair.listener.answer(Reply(call.call_id, b"y"), 1, pair.listener.serving[call.call_id])
    pair.turn()
    assert isinstance(again.outcome, Reply)


def test_an_idempotent_call_waits_for_the_link_no_longer_than_its_grace() -> None:
    pair = Pair()
    pair.connect()
    again = an_open_call(pair.now + 60, True)
    pair.dialler.call(again)
    pair.lose_link()
    pair.turn(ms=500)
    assert again.outcome is None
    pair.turn(ms=600)
    assert isinstance(again.outcome, LinkReset)


def test_a_resent_call_fails_where_the_new_peer_does_not_speak_its_version() -> None:
    pair = Pair()
    pair.connect()
    again = an_open_call(pair.now + 60, True, minor=3)
    pair.dialler.call(again)
    pair.lose_link()
    pair.connect()
    assert isinstance(again.outcome, UnsupportedVersion)
    assert again.outcome.details["server"] == [[1, 0], [1, 2]]


def test_a_call_under_way_is_not_begun_again_by_its_resend() -> None:
    pair = Pair()
    pair.connect()
    again = an_open_call(pair.now + 60, True)
    pair.dialler.call(again)
    pair.turn()
    pair.lose_link()
    pair.connect()
    pair.turn()
    assert len([h for h in pair.seen[pair.listener] if isinstance(h, Call)]) == 1
    assert pair.listener.counters["calls_repeated"] == 1


def test_an_old_incarnations_answer_never_reaches_a_new_one() -> None:
    pair = Pair()
    pair.connect()
    pair.dialler.call(an_open_call(pair.now + 60))
    pair.turn()
    (serving,) = pair.listener.serving.values()
    pair.lose_link()
    pair.dialler = LinkCore(pair.limits)
    pair.seen[pair.dialler] = []
    pair.incarnations["d"] = "d2"
    pair.dialler.link_number = 1
    pair.connect()
    assert not pair.listener.answer(Reply(1, b"old"), 3, serving)
    assert pair.listener.counters["replies_dropped"] == 1
    assert pair.listener.counters["calls_cancelled"] == 1


def test_a_caller_that_goes_cancels_its_call() -> None:
    pair = Pair()
    pair.connect()
    open_call = an_open_call(pair.now + 60)
    pair.dialler.call(open_call)
    pair.turn()
    (serving,) = pair.listener.serving.values()
    pair.dialler.give_up(open_call)
    pair.dialler.give_up(open_call)
    pair.turn()
    assert not pair.listener.serving
    assert not pair.listener.answer(Reply(open_call.call.call_id, b"y"), 1, serving)
    assert pair.listener.counters["calls_cancelled"] == 1


def test_a_peer_of_an_older_minor_version_is_not_sent_a_cancel() -> None:
    pair = Pair()
    pair.connect()
    pair.dialler.peer_minor = 0
    open_call = an_open_call(pair.now + 60)
    pair.dialler.call(open_call)
    pair.turn()
    pair.dialler.give_up(open_call)
    assert not pair.dialler.outgoing
    assert len(pair.listener.serving) == 1


def test_calls_of_a_lost_peer_are_cancelled_when_its_grace_is_over() -> None:
    pair = Pair()
    pair.connect()
    pair.dialler.call(an_open_call(pair.now + 60, idempotent=True))
    pair.turn()
    pair.lose_link()
    pair.turn(ms=2500)
    assert pair.listener.active
    assert pair.listener.serving
    pair.turn(ms=1000)
    pair.turn()
    assert not pair.listener.serving
    assert not pair.listener.active


def test_the_sender_never_exceeds_the_credit() -> None:
    pair = Pair(limits=Limits(report_credit=10))
    pair.connect()
    reports = [Report("k", seq, b"") for seq in range(25)]
    assert pair.dialler.report(reports) == 10
    pair.turn()
    assert pair.dialler.report(reports[10:]) == 0
    pair.listener.ack([Ack("k", seq, "applied") for seq in range(4)])
    pair.turn()
    assert pair.dialler.reports_out.credit == 4
    assert pair.dialler.report(reports[10:]) == 4


def test_reports_over_the_granted_credit_are_refused() -> None:
    pair = Pair(limits=Limits(report_credit=3))
    pair.connect()
    pair.dialler.reports_out.on_received(1, 0, 99, pair.now)
    pair.dialler.report([Report("k", seq, b"") for seq in range(5)])
    pair.turn()
    assert [report.seq for report in pair.reports_at(pair.listener)] == [0, 1, 2]
    assert Refused("over_credit") in pair.seen[pair.listener]


def test_acks_are_selective_and_in_any_order() -> None:
    pair = Pair()
    pair.connect()
    pair.dialler.report([Report("a", 1, b""), Report("b", 1, b""), Report("a", 2, b"")])
    pair.turn()
    pair.listener.ack([Ack("a", 2, "applied"), Ack("b", 1, "stale", "older")])
    pair.turn()
    assert list(pair.dialler.reports_out.unacked) == [("a", 1)]
    (arrived,) = [h for h in pair.seen[pair.dialler] if isinstance(h, AcksArrived)]
    assert [(ack.key, ack.verdict) for ack in arrived.acks] == [("a", "applied"), ("b", "stale")]


def test_a_link_back_up_resends_the_unacknowledged_oldest_first() -> None:
    pair = Pair()
    pair.connect()
    pair.dialler.report([Report("a", seq, b"") for seq in range(1, 6)])
    pair.turn()
    pair.listener.ack([Ack("a", 2, "applied")])
    pair.turn()
    pair.lose_link()
    pair.seen[pair.listener].clear()
    pair.connect()
    pair.turn()
    assert [report.seq for report in pair.reports_at(pair.listener)] == [1, 3, 4, 5]


def test_a_new_incarnation_is_not_sent_the_old_ones_reports() -> None:
    pair = Pair()
    pair.connect()
    pair.dialler.report([Report("a", 1, b"")])
    pair.lose_link()
    pair.incarnations["l"] = "l2"
    pair.connect()
    pair.turn()
    assert pair.reports_at(pair.listener) == []
    (_, up) = [h for h in pair.seen[pair.dialler] if isinstance(h, LinkUp)]
    assert (up.same_incarnation, up.resent) == (False, 0)


@pytest.mark.parametrize("seed", range(30))
def test_every_report_arrives_once_and_in_order_over_a_network_that_loses_and_repeats(seed: int) -> None:
    pair = Pair(seed, loss=0.2, repeat=0.2, limits=Limits(report_credit=50, report_batch=7))
    pair.connect()
    wanted = [Report(f"k{n % 5}", n, b"x" * (n % 50)) for n in range(400)]
    offered = acked = 0
    for _ in range(4000):
        offered += pair.dialler.report(wanted[offered : offered + pair.random.randrange(1, 20)])
        arrived = pair.reports_at(pair.listener)
        if len(arrived) > acked:
            pair.listener.ack([Ack(report.key, report.seq, "applied") for report in arrived[acked:]])
            acked = len(arrived)
        pair.turn(ms=50)
        if len(arrived) == len(wanted) and offered == len(wanted):
            break
    assert pair.reports_at(pair.listener) == wanted
    assert pair.dialler.counters["reports_retransmitted"] + pair.listener.counters["naks_sent"] > 0


@pytest.mark.parametrize("seed", range(10))
def test_no_report_is_lost_when_the_link_itself_comes_and_goes(seed: int) -> None:
    pair = Pair(seed, loss=0.05, limits=Limits(report_credit=40, report_batch=5))
    pair.connect()
    wanted = [Report("k", n, b"") for n in range(300)]
    offered = 0
    for _ in range(3000):
        if pair.random.random() < 0.05:
            pair.lose_link()
            pair.connect()
        offered += pair.dialler.report(wanted[offered : offered + 10])
        for happening in pair.seen[pair.listener]:
            if isinstance(happening, ReportsArrived):
                pair.listener.ack([Ack(report.key, report.seq, "applied") for report in happening.reports])
        durable = [h for h in pair.seen[pair.listener] if isinstance(h, ReportsArrived)]
        pair.seen[pair.listener] = [h for h in pair.seen[pair.listener] if h not in durable]
        pair.seen[pair.dialler].clear()
        pair.turn(ms=50)
        if offered == len(wanted) and not pair.dialler.reports_out.unacked:
            return
        if offered == len(wanted) and pair.random.random() < 0.02:
            pair.lose_link()
            pair.connect()
    pytest.fail(f"{len(pair.dialler.reports_out.unacked)} reports were never acknowledged")


def test_the_newest_state_event_replaces_what_still_waits() -> None:
    pair = Pair()
    pair.connect()
    for version in (3, 5, 4):
        assert pair.dialler.event(Event("map", "c1", version, b""))
    assert pair.dialler.event(Event("map", "c2", 1, b""))
    pair.turn()
    arrived = [h for h in pair.seen[pair.listener] if isinstance(h, Event)]
    assert [(event.key, event.version) for event in arrived] == [("c1", 5), ("c2", 1)]


def test_state_events_over_their_bound_are_told_to_the_caller() -> None:
    pair = Pair(limits=Limits(state_events_max=2))
    pair.connect()
    assert pair.dialler.event(Event("t", "1", 1, b""))
    assert pair.dialler.event(Event("t", "2", 1, b""))
    assert pair.dialler.event(Event("t", "2", 2, b""))
    assert not pair.dialler.event(Event("t", "3", 1, b""))


def test_a_full_queue_says_busy_to_the_caller() -> None:
    pair = Pair(limits=Limits(queue_envelopes_max=2, open_calls_max=5))
    pair.connect()
    pair.dialler.cast(Cast("echo.note", 1, 0, "-", b""))
    pair.dialler.cast(Cast("echo.note", 1, 0, "-", b""))
    with pytest.raises(Busy):
        pair.dialler.cast(Cast("echo.note", 1, 0, "-", b""))
    with pytest.raises(Busy):
        pair.dialler.call(an_open_call(pair.now + 1))
    assert not pair.dialler.calls


def test_a_peer_with_too_many_calls_is_told_busy() -> None:
    pair = Pair(limits=Limits(serving_calls_max=1))
    pair.connect()
    first, second = an_open_call(pair.now + 5), an_open_call(pair.now + 5)
    pair.dialler.call(first)
    pair.dialler.call(second)
    pair.turn()
    pair.turn()
    assert first.outcome is None
    assert isinstance(second.outcome, Error)
    assert second.outcome.wire_name == "Busy"


def test_a_storm_of_calls_leaves_reports_their_share() -> None:
    pair = Pair()
    pair.connect()
    for _ in range(500):
        pair.dialler.call(an_open_call(pair.now + 5))
    pair.dialler.report([Report("k", 1, b"")])
    frame = pair.dialler.take_frame(pair.now)
    assert frame is not None
    kinds = [type(h) for h in pair.listener.receive(frame, pair.now)]
    assert kinds.count(ReportsArrived) == 1
    assert kinds[0] is ReportsArrived
    assert kinds.count(Call) == 63


def test_a_frame_ends_with_the_envelope_that_takes_it_to_its_byte_limit() -> None:
    pair = Pair(limits=Limits(batch_bytes=1000))
    pair.connect()
    for size in (400, 400, 400, 5000, 10):
        pair.dialler.cast(Cast("echo.note", 1, 0, "-", b"x" * size))
    sizes = deque()
    while (frame := pair.dialler.take_frame(pair.now)) is not None:
        sizes.append([len(h.payload) for h in pair.listener.receive(frame, pair.now) if isinstance(h, Cast)])
    assert list(sizes) == [[400, 400, 400], [5000], [10]]


def kinds_of_frame(pair: Pair) -> list[str]:
    """What the dialler's next frame brings, in order."""
    frame = pair.dialler.take_frame(pair.now)
    assert frame is not None
    happenings = pair.listener.receive(frame, pair.now)
    return [h.method if isinstance(h, Cast) else type(h).__name__ for h in happenings]


def test_classes_go_in_their_order_and_each_has_its_share() -> None:
    pair = Pair()
    pair.connect()
    for name, priority in (("read", Priority.READS), ("call", Priority.CALLS), ("control", Priority.CONTROL)):
        for _ in range(200):
            pair.dialler.cast(Cast(name, 1, 0, "-", b""), priority)
    for n in range(200):
        pair.dialler.event(Event("t", str(n), 1, b""))
    pair.dialler.report([Report("k", 1, b"")])
    first = kinds_of_frame(pair)
    assert list(dict.fromkeys(first)) == ["control", "ReportsArrived", "call", "Event", "read"]
    assert [first.count(name) for name in ("control", "call", "Event", "read")] == [24, 23, 8, 8]
    frames = 1
    while pair.dialler.outgoing:
        kinds_of_frame(pair)
        frames += 1
    assert frames == -(-801 // 64)


@pytest.mark.parametrize("places", [1, 2, 3, 64])
def test_no_class_is_starved_by_large_envelopes_before_it(places: int) -> None:
    pair = Pair(limits=Limits(batch_envelopes=places, batch_bytes=1000))
    pair.connect()
    seen = []
    pair.dialler.cast(Cast("read", 1, 0, "-", b"x" * 3000), Priority.READS)
    pair.dialler.cast(Cast("call", 1, 0, "-", b"x" * 3000))
    for _ in range(6):
        pair.dialler.cast(Cast("control", 1, 0, "-", b"x" * 3000), Priority.CONTROL)
        seen += kinds_of_frame(pair)
    assert {"read", "call", "control"} == set(seen)


def test_a_storm_of_reads_leaves_room_for_calls_and_control() -> None:
    pair = Pair(limits=Limits(queue_envelopes_max=8))
    pair.connect()
    for priority, room in ((Priority.READS, 4), (Priority.CALLS, 4), (Priority.CONTROL, 2)):
        for _ in range(room):
            pair.dialler.cast(Cast("x", 1, 0, "-", b""), priority)
        with pytest.raises(Busy):
            pair.dialler.cast(Cast("x", 1, 0, "-", b""), priority)


def test_bye_takes_the_link_down() -> None:
    pair = Pair()
    pair.connect()
    assert pair.dialler.close("test", pair.now) == [LinkLost("test")]
    assert pair.dialler.state is State.CLOSED
    with pytest.raises(LinkDown):
        pair.dialler.cast(Cast("echo.note", 1, 0, "-", b""))


def test_a_report_whose_ack_was_lost_goes_again_when_it_is_offered_again() -> None:
    pair = Pair()
    pair.connect()
    report = Report("k", 1, b"")
    assert pair.dialler.report([report]) == 1
    assert pair.dialler.report([report]) == 1
    for _ in range(60):
        pair.turn()
    assert pair.reports_at(pair.listener) == [report]
    pair.listener.ack([Ack("k", 1, "applied")])
    assert pair.listener.take_frame(pair.now)  # lost on the way
    assert pair.dialler.report([report]) == 1
    pair.turn()
    assert pair.reports_at(pair.listener) == [report, report]
    pair.listener.ack([Ack("k", 1, "applied")])
    pair.turn()
    assert not pair.dialler.reports_out.unacked
