"""The protocol's state machine: hello, calls, and what the loss of a link does to them."""

import pytest

from tests.unit.bus.pair import Pair, an_open_call, greeting
from zcompute.bus.envelope import (
    Call,
    Cast,
    Error,
    Event,
    Hello,
    Reply,
    Welcome,
    encode_frame,
)
from zcompute.bus.errors import Busy, DeadlineExceeded, LinkDown, LinkReset, UnsupportedVersion
from zcompute.bus.happenings import (
    HelloRefused,
    LinkLost,
    Refused,
)
from zcompute.bus.limits import Limits
from zcompute.bus.protocol import LinkCore, State


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


def test_bye_takes_the_link_down() -> None:
    pair = Pair()
    pair.connect()
    assert pair.dialler.close("test", pair.now) == [LinkLost("test")]
    assert pair.dialler.state is State.CLOSED
    with pytest.raises(LinkDown):
        pair.dialler.cast(Cast("echo.note", 1, 0, "-", b""))
