import random

import pytest

from zcompute.bus import Ack
from zcompute.compute.dispatch import Dispatch
from zcompute.compute.outbox import Entry
from zcompute.compute.settings import Settings
from zcompute.objects.report import (
    VERDICT_APPLIED,
    VERDICT_BUSY,
    VERDICT_INVALID,
    VERDICT_NOT_OWNER,
    VERDICT_NOT_YET,
    VERDICT_STALE,
)

LIMITS = Settings(frame_reports_max=3)
MANY = 1000
VERDICTS = [VERDICT_APPLIED, VERDICT_NOT_YET, VERDICT_NOT_OWNER, VERDICT_BUSY]


def entry(seq: int, key: str = "") -> Entry:
    return Entry(seq, key or f"i{seq}", "node1", b"")


def ack(seq: int, verdict: str, key: str = "", **more: int) -> Ack:
    return Ack(key or f"i{seq}", seq, verdict, **more)


def made(*entries: Entry, owner: str = "k1") -> Dispatch:
    dispatch = Dispatch(LIMITS)
    dispatch.remap(lambda _: owner)
    for one in entries:
        dispatch.add(one)
    return dispatch


def seqs(entries: list[Entry]) -> list[int]:
    return [one.seq for one in entries]


def test_one_frame_is_unanswered_at_a_time_and_the_next_is_in_order() -> None:
    dispatch = made(*(entry(n) for n in range(1, 6)))
    assert seqs(dispatch.take("k1", 0.0, MANY)) == [1, 2, 3]
    dispatch.add(entry(6))
    assert dispatch.take("k1", 0.01, MANY) == []
    for seq in (1, 2):
        assert dispatch.answered("k1", ack(seq, VERDICT_APPLIED), 0.02)
    assert dispatch.take("k1", 0.02, MANY) == []
    assert dispatch.answered("k1", ack(3, VERDICT_STALE), 0.02)
    assert seqs(dispatch.take("k1", 0.03, MANY)) == [4, 5, 6]


def test_credit_bounds_a_frame() -> None:
    dispatch = made(entry(1), entry(2))
    assert dispatch.take("k1", 0.0, 0) == []
    assert seqs(dispatch.take("k1", 0.0, 1)) == [1]


def test_a_straggler_does_not_hold_back_the_rest() -> None:
    dispatch = made(*(entry(n) for n in range(1, 5)))
    dispatch.take("k1", 0.0, MANY)
    dispatch.answered("k1", ack(1, VERDICT_APPLIED), 0.01)
    due = dispatch.tick(0.01) or 0.0
    assert due == pytest.approx(LIMITS.straggler_ms / 1000)
    assert seqs(dispatch.take("k1", due, MANY)) == [4]


def test_a_report_without_a_verdict_goes_again() -> None:
    dispatch = made(entry(1))
    dispatch.take("k1", 0.0, MANY)
    due = dispatch.tick(1.0)
    assert due == LIMITS.answer_ms_max / 1000
    dispatch.tick(due)
    assert seqs(dispatch.take("k1", due, MANY)) == [1]


def test_not_yet_is_kept_and_tried_again_each_second() -> None:
    dispatch = made(entry(1))
    dispatch.take("k1", 0.0, MANY)
    assert not dispatch.answered("k1", ack(1, VERDICT_NOT_YET), 0.5)
    assert dispatch.tick(1.4) == 1.5
    assert dispatch.take("k1", 1.4, MANY) == []
    dispatch.tick(1.5)
    assert seqs(dispatch.take("k1", 1.5, MANY)) == [1]


def test_not_owner_backs_off_and_goes_to_the_new_owner_at_once() -> None:
    dispatch = made(entry(1))
    now, waits = 0.0, []
    for _ in range(8):
        assert seqs(dispatch.take("k1", now, MANY)) == [1]
        assert not dispatch.answered("k1", ack(1, VERDICT_NOT_OWNER), now)
        due = dispatch.tick(now)
        assert due is not None
        waits.append(round((due - now) * 1000))
        now = due
        dispatch.tick(now)
    assert waits == [10, 20, 40, 80, 160, 320, 640, 1000]
    dispatch.take("k1", now, MANY)
    dispatch.answered("k1", ack(1, VERDICT_NOT_OWNER), now)
    dispatch.remap(lambda _: "k2")
    assert dispatch.owners() == ["k2"]
    assert seqs(dispatch.take("k2", now, MANY)) == [1]
    assert not dispatch.answered("k1", ack(1, VERDICT_NOT_OWNER), now)
    assert dispatch.answered("k2", ack(1, VERDICT_APPLIED), now)
    assert len(dispatch) == 0


def test_invalid_is_believed_after_some_times_only() -> None:
    dispatch, now = made(entry(1)), 0.0
    for times in range(1, LIMITS.invalid_times_max + 1):
        assert seqs(dispatch.take("k1", now, MANY)) == [1]
        assert dispatch.answered("k1", ack(1, VERDICT_INVALID), now) == (times == LIMITS.invalid_times_max)
        now += 1.0
        dispatch.tick(now)
    assert len(dispatch) == 0


def test_a_folded_report_in_flight_is_no_news_when_answered() -> None:
    dispatch = made(entry(1, "a"))
    dispatch.take("k1", 0.0, MANY)
    dispatch.discard(1)
    dispatch.add(entry(2, "a"))
    assert dispatch.take("k1", LIMITS.straggler_ms / 1000, MANY) == []
    assert not dispatch.answered("k1", ack(1, VERDICT_APPLIED, "a"), 0.3)
    assert seqs(dispatch.take("k1", 0.3, MANY)) == [2]


def test_what_nobody_waits_for_any_more_is_told() -> None:
    """Folded while on its way and never answered, or sent to one who owns it no more: the link need not keep it."""
    dispatch = made(entry(1, "a"), entry(2, "b"))
    dispatch.take("k1", 0.0, MANY)
    dispatch.discard(1)
    dispatch.add(entry(3, "a"))
    assert dispatch.given_up() == []
    dispatch.tick(LIMITS.answer_ms_max / 1000)
    assert dispatch.given_up() == [("k1", "a", 1)]
    dispatch.take("k1", 5.0, MANY)
    dispatch.remap(lambda _: "k2")
    assert sorted(dispatch.given_up()) == [("k1", "a", 3), ("k1", "b", 2)]
    assert dispatch.given_up() == []


def test_one_report_of_an_instance_is_unanswered_whatever_is_refused() -> None:
    dispatch = made(*(entry(n, "a") for n in range(1, 4)))
    now = 0.0
    for verdict in (VERDICT_NOT_OWNER, VERDICT_BUSY, VERDICT_INVALID):
        assert seqs(dispatch.take("k1", now, MANY)) == [1]
        assert dispatch.take("k1", now + 1.0, MANY) == []
        assert not dispatch.answered("k1", ack(1, verdict, "a"), now + 1.0)
        assert dispatch.take("k1", now + 1.0, MANY) == []
        now += 3.0
        dispatch.tick(now)
    for seq in (1, 2, 3):
        assert seqs(dispatch.take("k1", now, MANY)) == [seq]
        assert dispatch.answered("k1", ack(seq, VERDICT_APPLIED, "a"), now)


def test_what_waits_for_a_grant_lets_what_brings_it_pass() -> None:
    dispatch = made(entry(1, "a"), entry(2, "a"))
    dispatch.take("k1", 0.0, MANY)
    dispatch.answered("k1", ack(1, VERDICT_NOT_YET, "a"), 0.1)
    assert seqs(dispatch.take("k1", 0.1, MANY)) == [2]
    assert dispatch.answered("k1", ack(2, VERDICT_APPLIED, "a"), 0.2)
    dispatch.tick(1.2)
    assert seqs(dispatch.take("k1", 1.2, MANY)) == [1]


def test_a_slow_lane_holds_up_its_own_instances_only() -> None:
    lanes = {f"i{n}": 1 + n % 2 for n in range(1, 9)}
    dispatch = made(*(entry(n) for n in range(1, 9)))
    dispatch._lane_of = lambda owner, key: lanes[key]
    dispatch.link_lost("k1")
    assert seqs(dispatch.take("k1", 0.0, MANY, {1: 2, 2: MANY}.__getitem__)) == [1, 3, 5, 2, 4]
    for seq in (1, 3, 5):
        assert dispatch.answered("k1", ack(seq, VERDICT_APPLIED, lane=2), 0.01)
    assert seqs(dispatch.take("k1", 0.01, MANY, {1: 0, 2: MANY}.__getitem__)) == [7]
    assert dispatch.take("k1", 1.0, MANY, {1: 0, 2: MANY}.__getitem__) == []


def test_a_busy_lane_is_asked_by_one_report_later_and_later_until_it_takes_one() -> None:
    dispatch = made(*(entry(n) for n in range(1, 7)))
    dispatch.take("k1", 0.0, MANY)
    for seq in (1, 2, 3):
        dispatch.answered("k1", ack(seq, VERDICT_BUSY, retry_after_ms=200), 0.0)
    now, waits = 0.0, []
    for _ in range(6):
        due = dispatch.tick(now)
        assert due is not None
        waits.append(round((due - now) * 1000))
        now = due
        dispatch.tick(now)
        (one,) = dispatch.take("k1", now, MANY)
        dispatch.answered("k1", ack(one.seq, VERDICT_BUSY, retry_after_ms=200), now)
    assert waits == [200, 400, 800, 1600, 2000, 2000]
    now += 2.0
    (one,) = dispatch.take("k1", now, MANY)
    assert dispatch.answered("k1", ack(one.seq, VERDICT_APPLIED), now)
    assert len(dispatch.take("k1", now, MANY)) == 3


def test_an_instance_whose_lane_becomes_known_waits_in_that_lane() -> None:
    lanes: dict[str, int] = {}
    dispatch = made(entry(1), entry(2))
    dispatch._lane_of = lambda owner, key: lanes.get(key, 0)
    dispatch.take("k1", 0.0, 1)
    lanes["i1"] = 7
    dispatch.answered("k1", ack(1, VERDICT_BUSY, lane=7, retry_after_ms=500), 0.0)
    assert seqs(dispatch.take("k1", 0.0, MANY)) == [2]
    dispatch.answered("k1", ack(2, VERDICT_APPLIED), 0.1)
    assert dispatch.take("k1", 0.4, MANY) == []
    assert seqs(dispatch.take("k1", 0.5, MANY, {7: 1}.__getitem__)) == [1]


def test_a_report_that_nobody_answers_goes_again_later_and_later() -> None:
    dispatch, now, waits = made(entry(1)), 0.0, []
    for _ in range(6):
        assert seqs(dispatch.take("k1", now, MANY)) == [1]
        due = dispatch.tick(now) or 0.0
        waits.append(due - now)
        now = due
        dispatch.tick(now)
    assert waits == [5, 10, 20, 40, 60, 60]


def test_a_process_that_died_answers_nothing_and_all_of_it_goes_again() -> None:
    dispatch = made(entry(1), entry(2))
    dispatch.take("k1", 0.0, MANY)
    dispatch.link_lost("k1")
    assert seqs(dispatch.take("k1", 0.01, MANY)) == [1, 2]


def test_what_a_link_did_not_take_is_queued_again() -> None:
    dispatch = made(entry(1), entry(2))
    taken = dispatch.take("k1", 0.0, MANY)
    dispatch.untake("k1", taken[1:])
    assert dispatch.answered("k1", ack(1, VERDICT_APPLIED), 0.0)
    assert seqs(dispatch.take("k1", 0.0, MANY)) == [2]


def test_the_timer_of_a_line_that_is_over_leaves_the_next_line_of_its_key_alone() -> None:
    dispatch = made(entry(1, "i"))
    dispatch.take("k1", 0.0, MANY)
    dispatch.answered("k1", ack(1, VERDICT_NOT_OWNER, "i"), 0.01)
    dispatch.discard(1)  # folded by the next
    dispatch.add(entry(2, "i"))
    assert seqs(dispatch.take("k1", 0.02, MANY)) == [2]
    dispatch.tick(1.0)
    dispatch.remap(lambda _: "k2")
    assert seqs(dispatch.take("k2", 1.0, MANY)) == [2]


def test_without_an_owner_nothing_goes() -> None:
    dispatch = made(entry(1), owner="")
    assert dispatch.owners() == []
    dispatch.remap(lambda _: "k1")
    assert dispatch.owners() == ["k1"]


@pytest.mark.parametrize("seed", range(20))
def test_every_report_ends_whatever_happens_on_the_way(seed: int) -> None:
    """Random verdicts, losses, deaths and moves: each entry ends in exactly one final verdict of its present owner."""
    dice = random.Random(seed)
    owners = {f"i{n}": "k1" for n in range(10)}
    dispatch = Dispatch(LIMITS)
    dispatch.remap(lambda key: owners[key])
    now, seq, owed = 0.0, 0, set[int]()
    flying: list[tuple[str, Entry]] = []
    for turn in range(4000):
        now += 0.01
        calm = turn > 2000
        if not calm and dice.random() < 0.3:
            seq += 1
            owed.add(seq)
            dispatch.add(entry(seq, dice.choice(list(owners))))
        if not calm and dice.random() < 0.02:
            owners[dice.choice(list(owners))] = dice.choice(["k1", "k2", ""])
            dispatch.remap(lambda key: owners[key])
        if not calm and dice.random() < 0.01:
            dispatch.link_lost("k1")
            flying = [flight for flight in flying if flight[0] != "k1"]
        if turn == 2001:
            owners.update(dict.fromkeys(owners, "k2"))
            dispatch.remap(lambda key: owners[key])
        dispatch.tick(now)
        for owner in dispatch.owners():
            flying += [(owner, one) for one in dispatch.take(owner, now, 5)]
        for owner, one in dice.sample(flying, (len(flying) + 1) // 2):
            flying.remove((owner, one))
            if calm or dice.random() < 0.8:
                verdict = VERDICT_APPLIED if calm else dice.choice(VERDICTS)
                if dispatch.answered(owner, ack(one.seq, verdict, one.key), now):
                    owed.remove(one.seq)
    assert owed == set()
    assert len(dispatch) == 0


def test_a_relays_answers_count_as_the_owners() -> None:
    dispatch = made(entry(1), entry(2))
    assert seqs(dispatch.take("k1", 0.0, MANY, peer="k2")) == [1, 2]
    assert dispatch.relayed_for("k2", ack(1, VERDICT_APPLIED)) == "k1"
    assert dispatch.relayed_for("k1", ack(1, VERDICT_APPLIED)) == ""
    assert dispatch.answered("k2", ack(1, VERDICT_APPLIED), 0.01)
    assert not dispatch.answered("k2", ack(2, VERDICT_BUSY, retry_after_ms=100), 0.01)
    assert dispatch.take("k1", 0.05, MANY) == [], "it said when to come again"
    assert seqs(dispatch.take("k1", 0.2, MANY)) == [2]


def test_what_a_lost_relay_was_given_goes_again_at_once_and_nothing_else() -> None:
    dispatch = made(entry(1))
    dispatch.take("k1", 0.0, MANY, peer="k2")
    dispatch.relay_lost("k3")
    assert dispatch.take("k1", 0.3, MANY) == []
    dispatch.relay_lost("k2")
    assert seqs(dispatch.take("k1", 0.3, MANY)) == [1]
    dispatch.relay_lost("k1")
    assert dispatch.take("k1", 0.6, MANY) == [], "the bus itself repeats what was sent to the owner"


def test_when_the_owner_is_cut_off_what_was_on_its_way_there_goes_by_the_relay() -> None:
    dispatch = made(entry(1))
    dispatch.take("k1", 0.0, MANY)
    dispatch.way_changed("k1", "k2")
    assert seqs(dispatch.take("k1", 0.1, MANY, peer="k2")) == [1]


def test_when_the_direct_link_is_back_the_relay_keeps_what_it_was_given() -> None:
    dispatch = made(entry(1, "a"), entry(2, "a"))
    assert seqs(dispatch.take("k1", 0.0, MANY, peer="k2")) == [1]
    dispatch.way_changed("k1", "k1")
    assert dispatch.take("k1", 1.0, MANY) == [], "one report of an instance is unanswered at a time, whatever its way"
    assert dispatch.answered("k2", ack(1, VERDICT_APPLIED, "a"), 1.0)
    assert seqs(dispatch.take("k1", 1.0, MANY)) == [2]
