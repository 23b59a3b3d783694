import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from zcompute.bus import Ack, Report
from zcompute.bus.errors import UnsupportedVersion
from zcompute.compute.outbox import Outbox
from zcompute.compute.reporter import Reporter
from zcompute.compute.settings import Settings
from zcompute.objects.report import VERDICT_APPLIED, VERDICT_BUSY, VERDICT_INVALID, Observation

LIMITS = Settings()


class Conductor:
    """A link with a conductor that relays; what was reported over it is kept."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lowers = False
        self.peer = SimpleNamespace(service_id=name, interfaces={"relay": ((1, 0), (1, 0))})
        self.up = True
        self.report_credit = 100
        self.reported: list[int] = []

    def lane_of(self, key: str) -> int:
        return 0

    def lane_room(self, lane: int) -> int:
        return 100

    def report(self, reports: list[Any]) -> int:
        self.reported += [report.seq for report in reports]
        return len(reports)


def owing(tmp_path: Path) -> tuple[Reporter, Any]:
    reporter = Reporter(Outbox(tmp_path / "outbox", LIMITS), LIMITS)
    reporter.remap(lambda _: "k1")
    reporter.report(Observation(instance_uuid="a", host="node1", generation=1, power_state=1))
    reporter.release("node1")
    return reporter, SimpleNamespace(peer=SimpleNamespace(service_id="k1"), name="k1", up=True, lane_of=lambda key: 0)


def refuse(reporter: Reporter, link: Any) -> None:
    for _ in range(2 * LIMITS.invalid_times_max):
        reporter.acks(link, [Ack("a", 1, VERDICT_INVALID, "host node1 is not attached to this link")])


def test_a_report_refused_over_a_link_that_is_not_attached_yet_stays_owed(tmp_path: Path) -> None:
    reporter, link = owing(tmp_path)
    refuse(reporter, link)
    assert len(reporter) == 1


def test_a_report_refused_again_and_again_over_an_attached_link_is_given_up(tmp_path: Path) -> None:
    reporter, link = owing(tmp_path)
    reporter.link_ready("k1", link, False)
    refuse(reporter, link)
    assert len(reporter) == 0


class OlderPeer:
    """A link to a conductor that reads older versions; what it was sent."""

    name, up, lowers, report_credit = "k1", True, True, 100

    def __init__(self) -> None:
        self.peer = SimpleNamespace(service_id="k1", interfaces={})
        self.sent: list[Report] = []
        self.cannot = False

    def lane_of(self, key: str) -> int:
        return 0

    def lane_room(self, lane: int) -> int:
        return 100

    def encode(self, body: Observation) -> bytes:
        if self.cannot:
            raise UnsupportedVersion("swap cannot be said", interface="objects")
        return b"older " + body.instance_uuid.encode()

    def report(self, reports: list[Report]) -> int:
        self.sent += reports
        return len(reports)


def test_an_older_conductor_is_told_in_the_versions_that_it_reads(tmp_path: Path) -> None:
    reporter, _ = owing(tmp_path)
    link: Any = OlderPeer()
    link.cannot = True
    reporter.link_ready("k1", link, False)
    reporter.pump(0.0)
    assert link.sent == []
    assert len(reporter) == 1, "it waits, and is not sent to be misunderstood"
    link.cannot = False
    reporter.pump(LIMITS.not_yet_ms / 1000)
    assert [report.payload for report in link.sent] == [b"older a"]


def test_an_owner_that_is_cut_off_is_reached_over_another_conductor_until_it_is_back(tmp_path: Path) -> None:
    reporter, _ = owing(tmp_path)
    owner, near, other = (Conductor(name) for name in ("k1", "k2", "k3"))
    links: list[Any] = [near, other]
    for link in links:
        reporter.link_ready(link.name, link, False)
    reporter.pump(0.0)
    assert near.reported == other.reported == [], "the owner's link may just be coming up"
    after = LIMITS.relay_after_ms / 1000
    reporter.pump(after)
    first, second = (near, other) if near.reported else (other, near)
    assert (first.reported, second.reported) == ([1], [])
    busy = [Ack("a", 1, VERDICT_BUSY, "relay: no link with owner k1", retry_after_ms=1)]
    first_link: Any = first
    reporter.acks(first_link, busy)
    later = time.monotonic() + 1
    reporter.pump(later)
    assert second.reported == [1], "the other one is tried"
    second_link: Any = second
    reporter.acks(second_link, [Ack("a", 1, VERDICT_APPLIED)])
    assert len(reporter) == 0
    owner_link: Any = owner
    reporter.link_ready("k1", owner_link, False)
    reporter.report(Observation(instance_uuid="a", host="node1", generation=1, power_state=4))
    reporter.pump(later + 1)
    assert owner.reported == [2]


def test_busy_without_a_lane_of_a_supposed_owner_slows_down_one_instance_only(tmp_path: Path) -> None:
    reporter, _ = owing(tmp_path)
    owner = Conductor("k1")
    link: Any = owner
    reporter.link_ready("k1", link, False)
    reporter.pump(0.0)
    assert owner.reported == [1]
    asked: list[str] = []
    reporter.on_not_owner = lambda link, version: asked.append(link.name)
    reporter.acks(link, [Ack("a", 1, VERDICT_BUSY, "relay: no link with owner k2", retry_after_ms=60_000)])
    assert asked == ["k1"], "it may not be the owner: its map says"
    reporter.report(Observation(instance_uuid="b", host="node1", generation=1, power_state=1))
    reporter.pump(time.monotonic())
    assert owner.reported == [1, 2]
    reporter.acks(link, [Ack("b", 2, VERDICT_APPLIED)])
    reporter.pump(time.monotonic() + 2 * LIMITS.refused_ms_min / 1000)
    assert owner.reported == [1, 2, 1]
