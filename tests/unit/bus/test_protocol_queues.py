"""The protocol's queues: newest events, full queues, shares of the classes."""

from collections import deque

import pytest

from tests.unit.bus.pair import Pair, an_open_call
from zcompute.bus.envelope import (
    Call,
    Cast,
    Error,
    Event,
    Report,
)
from zcompute.bus.errors import Busy
from zcompute.bus.happenings import (
    ReportsArrived,
)
from zcompute.bus.limits import Limits
from zcompute.bus.method import Priority


def kinds_of_frame(pair: Pair) -> list[str]:
    """What the dialler's next frame brings, in order."""
    frame = pair.dialler.take_frame(pair.now)
    assert frame is not None
    happenings = pair.listener.receive(frame, pair.now)
    return [h.method if isinstance(h, Cast) else type(h).__name__ for h in happenings]


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


def test_a_peer_with_too_many_reads_or_calls_still_finds_room_for_control() -> None:
    pair = Pair(limits=Limits(serving_calls_max=40))
    pair.connect()
    served = {}
    for priority in (Priority.READS, Priority.CALLS, Priority.CONTROL):
        calls = [an_open_call(pair.now + 5, priority=priority) for _ in range(100)]
        for one in calls:
            pair.dialler.call(one)
        pair.turn()
        pair.turn()
        served[priority] = sum(one.outcome is None for one in calls)
        assert all(one.outcome is None or one.outcome.wire_name == "Busy" for one in calls)
    assert served == {Priority.READS: 20, Priority.CALLS: 20, Priority.CONTROL: 10}
    assert len(pair.listener.serving) == 50


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


def test_reports_that_wait_alone_fill_frames_of_their_own_and_the_last_says_that_nothing_is_left() -> None:
    pair = Pair(limits=Limits(report_batch=4))
    pair.connect()
    assert pair.dialler.report([Report(f"i{number}", 1, b"x") for number in range(6)]) == 6
    left = []
    for _ in range(2):
        assert kinds_of_frame(pair) == ["ReportsArrived"]
        left.append(pair.dialler.outgoing.drained)
    assert left == [False, True]
    assert pair.dialler.take_frame(pair.now) is None
    assert pair.listener.reports_in.expected == 6
