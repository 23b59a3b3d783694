"""The protocol's reports: credit, acks, order, and nothing lost or repeated."""

import pytest

from tests.unit.bus.pair import Pair
from zcompute.bus.envelope import (
    Ack,
    Report,
)
from zcompute.bus.happenings import (
    AcksArrived,
    LinkUp,
    Refused,
    ReportsArrived,
)
from zcompute.bus.limits import Limits


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
