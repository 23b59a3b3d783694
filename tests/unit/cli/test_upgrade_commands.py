"""Who is behind an upgrade, by name."""

import pytest

from zcompute.bus import EndpointStat
from zcompute.bus.stat import LinkStat
from zcompute.cli.upgrade_commands import behind, unseen
from zcompute.objects.epochs import history_of, in_history
from zcompute.objects.stored import speaks


def stat(*links: LinkStat, release: str = "0.1.0") -> EndpointStat:
    return EndpointStat(
        service_id="con1", role="conductor", cell="c1", release=release, incarnation="i", age_ms=1, links=list(links)
    )


def link(service_id: str, role: str, release: str, cell: str = "c1") -> LinkStat:
    return LinkStat(name="l", address="", state="up", service_id=service_id, role=role, release=release, cell=cell)


def test_every_service_that_does_not_speak_the_level_is_named() -> None:
    stats = [
        stat(
            link("agent1", "compute", "0.0.9"),
            link("agent2", "compute", "0.1.0"),
            link("sched", "scheduler", ""),
            link("api1", "api", "0.0.1", cell="root"),
            link("elsewhere", "conductor", "0.0.1", cell="root"),
            link("asking", "operator", "0.0.1"),
        ),
        stat(release="0.0.9"),
    ]
    assert behind(stats, "c1", "1") == {"agent1": "0.0.9", "sched": "(not told)", "api1": "0.0.1", "con1": "0.0.9"}


def test_a_host_whose_agent_nobody_sees_is_named() -> None:
    stats = [stat(link("agent1", "compute", "0.1.0"))]
    assert unseen(stats, "c1", {"h1": "agent1", "h2": "agent2"}) == {"h2": "agent2"}


@pytest.mark.parametrize(
    ("release", "expected"),
    [("0.1.0", True), ("0.2", True), ("1.0.0", True), ("0.0.9", False), ("", False), ("x", False)],
)
def test_which_releases_speak_the_first_level(release: str, expected: bool) -> None:
    assert speaks(release, "1") is expected
    assert not speaks(release, "99")


def test_a_number_goes_on_counting_in_a_newer_history() -> None:
    assert in_history(5, 3) == (3 << 32) + 5
    assert in_history(in_history(5, 3), 4) == (4 << 32) + 5
    assert history_of(in_history(5, 3)) == 3
    assert history_of(5) == 0
