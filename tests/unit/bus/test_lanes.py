"""Credit per lane: no lane has more unanswered than its own, and none waits for another."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcompute.bus.envelope import Ack, Report
from zcompute.bus.lanes import ReceiverLanes
from zcompute.bus.limits import Limits
from zcompute.bus.reports import ReportSender
from zcompute.conductor.service import LIMITS as CONDUCTOR_LIMITS
from zcompute.config import ConductorConfig

CREDIT, LANE_CREDIT, LANES = 48, 6, 4
LIMITS = Limits(report_credit=CREDIT, lane_credit=LANE_CREDIT, lane_keys_max=20)
KEYS = [f"k{n}" for n in range(30)]


def sender(lane_credit: int = LANE_CREDIT) -> ReportSender:
    made = ReportSender(LIMITS)
    made.open(1, CREDIT, lane_credit, same_peer=True)
    return made


def reports(*names: tuple[str, int]) -> list[Report]:
    return [Report(key, seq, b"") for key, seq in names]


def test_the_lanes_of_a_conductor_leave_room_for_keys_of_unknown_lane() -> None:
    lanes_max = ConductorConfig.__annotations__["lanes"].__metadata__[0].le
    assert lanes_max == 4
    assert lanes_max * CONDUCTOR_LIMITS.lane_credit <= CONDUCTOR_LIMITS.report_credit // 2


def test_a_lane_takes_its_credit_and_the_others_go_on() -> None:
    out = sender()
    for key, lane in (("slow", 1), ("quick", 2)):
        out.lanes.learn(key, lane)
    assert out.offer(reports(*(("slow", n) for n in range(20)))) == LANE_CREDIT
    assert (out.lane_room(1), out.lane_room(2)) == (0, LANE_CREDIT)
    assert out.offer(reports(("quick", 1), ("slow", 30), ("quick", 2))) == 1, "no report passes one that was refused"
    out.on_ack(Ack("slow", 0, "applied", lane=1))
    assert out.lane_room(1) == 1


def test_a_repeat_is_counted_once() -> None:
    out = sender()
    out.lanes.learn("a", 1)
    assert out.offer(reports(("a", 1))) == 1
    out.take(0.0, 1000)
    out.on_received(1, 1, CREDIT, 0.0)
    assert out.offer(reports(("a", 1))) == 1
    assert out.lanes.unacked == {1: 1}


def test_keys_of_unknown_lane_have_half_of_the_credit() -> None:
    out = sender()
    assert out.offer(reports(*((f"k{n}", 1) for n in range(CREDIT)))) == CREDIT // 2
    out.on_ack(Ack("k0", 1, "busy", lane=3, retry_after_ms=100))
    assert out.lanes.lane_of("k0") == 3
    assert out.lane_room(0) == 1


def test_a_receiver_without_lanes_has_one_credit() -> None:
    out = sender(lane_credit=0)
    assert out.offer(reports(*((f"k{n}", 1) for n in range(2 * CREDIT)))) == CREDIT
    assert out.lane_room(0) == out.credit == 0


def test_another_incarnation_has_other_lanes() -> None:
    out = sender()
    out.offer(reports(("a", 1)))
    out.on_ack(Ack("a", 1, "applied", lane=1))
    assert out.lanes.lane_of("a") == 1
    out.open(2, CREDIT, LANE_CREDIT, same_peer=True)
    assert out.lanes.lane_of("a") == 1
    out.open(3, CREDIT, LANE_CREDIT, same_peer=False)
    assert out.lanes.lane_of("a") == 0


def test_what_is_unanswered_is_counted_anew_after_a_reconnect() -> None:
    out = sender()
    out.lanes.learn("a", 1)
    out.offer(reports(("a", 1), ("a", 2), ("b", 1)))
    out.close()
    assert out.open(2, CREDIT, LANE_CREDIT, same_peer=True) == 3
    assert out.lanes.unacked == {1: 2, 0: 1}


def test_what_is_withdrawn_leaves_its_lane_once_it_has_arrived() -> None:
    out = sender()
    for key in "abc":
        out.lanes.learn(key, 1)
    out.offer(reports(("a", 1), ("b", 1), ("c", 1)))
    out.take(0.0, 1000)
    out.on_received(1, 1, CREDIT, 0.0)
    out.withdraw("a", 1)
    assert set(out.unacked) == {("b", 1), ("c", 1)}
    out.withdraw("b", 1)
    out.withdraw("c", 1)
    assert out.lanes.unacked == {1: 2}, "on their way: the receiver will count them"
    assert out.offer(reports(("c", 1))) == 1, "offered again: wanted again"
    out.on_received(1, 3, CREDIT, 0.0)
    assert out.lanes.unacked == {1: 1}
    out.on_ack(Ack("b", 1, "applied", lane=1))
    assert set(out.unacked) == {("c", 1)}


def test_what_is_withdrawn_is_not_sent_again_after_a_reconnect() -> None:
    out = sender()
    out.offer(reports(("a", 1), ("b", 1)))
    out.withdraw("a", 1)
    out.close()
    assert out.open(2, CREDIT, LANE_CREDIT, same_peer=True) == 1
    assert set(out.unacked) == {("b", 1)}


def test_a_receiver_owes_no_lane_more_than_its_credit() -> None:
    lanes = ReceiverLanes(LIMITS)
    assert [lanes.admit(1) for _ in range(LANE_CREDIT + 2)] == [True] * LANE_CREDIT + [False] * 2
    assert lanes.admit(2)
    lanes.settle(1)
    assert lanes.admit(1)
    for _ in range(LANE_CREDIT):
        lanes.settle(1)
    assert lanes.owed == {2: 1}


class Owner:
    """The receiving application: each key on a lane, each lane answering only when it may."""

    def __init__(self, lane_of: dict[str, int]) -> None:
        self.lanes = ReceiverLanes(LIMITS)
        self.lane_of = lane_of
        self.waiting: dict[int, list[Report]] = {}

    def arrive(self, some: list[Report]) -> list[Ack]:
        refused = []
        for report in some:
            lane = self.lane_of[report.key]
            if self.lanes.admit(lane):
                self.waiting.setdefault(lane, []).append(report)
            else:
                refused.append(Ack(report.key, report.seq, "busy", lane=lane, retry_after_ms=50))
        return refused

    def commit(self, lane: int) -> list[Ack]:
        done = self.waiting.pop(lane, [])
        for _ in done:
            self.lanes.settle(lane)
        return [Ack(report.key, report.seq, "applied", lane=lane) for report in done]


@settings(max_examples=150, deadline=None)
@given(
    lane_of=st.fixed_dictionaries({key: st.integers(1, LANES) for key in KEYS}),
    stalled=st.sets(st.integers(1, LANES), max_size=LANES - 1),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("report"), st.sampled_from(KEYS)),
            st.tuples(st.just("commit"), st.integers(1, LANES)),
            st.tuples(st.just("move"), st.tuples(st.sampled_from(KEYS), st.integers(1, LANES))),
            st.tuples(st.just("lose"), st.booleans()),
        ),
        max_size=200,
    ),
)
def test_a_lane_never_has_more_than_its_credit_and_stalled_ones_starve_nobody(
    lane_of: dict[str, int], stalled: set[int], steps: list[tuple[str, object]]
) -> None:
    """Whatever keys are known, moved and refused: what a lane of the receiver holds is bounded, and after it all a key
    of a lane that works is answered although the others never are."""
    out, owner, link_number, returned = sender(), Owner(dict(lane_of)), 1, 0
    seq = 0

    def carry() -> None:
        nonlocal returned
        while (batch := out.take(0.0, 10_000)) is not None:
            answer(owner.arrive(batch.reports), len(batch.reports))

    def answer(acks: list[Ack], received: int = 0) -> None:
        nonlocal returned
        returned += len(acks)
        assert out.on_received(link_number, out._base + received, returned + CREDIT, 0.0)
        for ack in acks:
            out.on_ack(ack)

    def check() -> None:
        assert all(count <= LANE_CREDIT for count in owner.lanes.owed.values())
        counted = Counter(out.lanes.lane_of(key) for key, _ in out.unacked)
        assert counted == out.lanes.unacked
        assert len(out.lanes._lane_of) <= LIMITS.lane_keys_max

    for what, argument in steps:
        if what == "report":
            seq += 1
            room = out.lane_room(out.lanes.lane_of(str(argument)))
            assert out.offer(reports((str(argument), seq))) == (room > 0)
            carry()
        elif what == "commit" and argument not in stalled:
            answer(owner.commit(int(str(argument))))
        elif what == "move" and isinstance(argument, tuple):
            owner.lane_of[argument[0]] = argument[1]
        elif what == "lose":
            link_number, returned = link_number + 1, 0
            out.open(link_number, CREDIT, LANE_CREDIT, same_peer=True)
            carry()
        check()
    works = next(lane for lane in range(1, LANES + 1) if lane not in stalled)
    answer(owner.commit(works))
    owner.lane_of["one more"] = works
    assert out.offer(reports(("one more", seq + 1))) == 1
    carry()
    answer(owner.commit(works))
    assert ("one more", seq + 1) not in out.unacked
    check()


@pytest.mark.parametrize("lane", [0, 1])
def test_room_is_never_more_than_the_links_credit(lane: int) -> None:
    out = ReportSender(LIMITS)
    out.open(1, 3, LANE_CREDIT, same_peer=True)
    assert out.lane_room(lane) == 3
    out.offer(reports(("a", 1), ("b", 1), ("c", 1)))
    assert out.lane_room(lane) == 0
