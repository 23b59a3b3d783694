"""What is kept of notifications and history, and ``instance.exists``, with periods short enough to see them over."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import assert_all_active, assert_audit_holds, boot, started, wait_until
from tests.cluster.tailing import Tail, tailing
from tests.cluster.test_faults import store_of
from tests.cluster.test_notifications import CONDUCTORS, kill_and_restart
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, INSTANCE_ACTIONS
from zcompute.objects.notification import cursor_text

EXISTS_S = 2
KEPT = 4
SHORT = f"""
[notifications]
retention_rows_max = {KEPT}
purge_every_s = 1
exists_s = {EXISTS_S}
"""
SHORT_HISTORY = """[conductor]
history_retention_hours = 0.0003
purge_every_s = 1
"""


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    """One cell with a short memory."""
    require_mariadb()
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, Shape(cells=("c1",), computes=1)) as region:
        for service_id in CONDUCTORS:
            path = region.paths.config(service_id)
            text = path.read_text(encoding="utf-8")
            assert "[conductor]\n" in text
            path.write_text(text.replace("[conductor]\n", SHORT_HISTORY, 1) + SHORT, encoding="utf-8")
        for service_id in CONDUCTORS:
            kill_and_restart(region, service_id)
        yield region


def spans(tail: Tail) -> dict[int, list[tuple[int, int]]]:
    """By partition what was told, in its order: (n, n) for a notification, (from, to) for a gap."""
    found: dict[int, list[tuple[int, int]]] = {}
    for line in tail.lines():
        if "gap" in line:
            found.setdefault(line["gap"]["partition"], []).append((line["gap"]["from"], line["gap"]["to"]))
        elif "n" in line:
            found.setdefault(line["partition"], []).append((line["n"], line["n"]))
    return found


def test_an_old_cursor_is_told_exactly_what_the_retention_has_taken(region: Region, tmp_path: Path) -> None:
    assert_all_active(boot(region, 3))
    with store_of(region, "c1") as store:
        wait_until(
            lambda: sum(row.last_n > KEPT + 1 for row in store.read_told()) >= 3,
            "more was told than is kept",
            found=store.read_told,
        )
        wait_until(
            lambda: all(row.kept <= KEPT for row in store.read_told()), "the rest has gone", found=store.read_told
        )
        behind = {row.partition_id: row.last_n for row in store.read_told() if row.last_n > KEPT + 1}
    for victim in CONDUCTORS:  # what is kept in memory is told without a gap
        kill_and_restart(region, victim)
    with tailing(region, tmp_path / "t.jsonl", "--from", cursor_text("c1", dict.fromkeys(behind, 1))) as tail:
        wait_until(
            lambda: all(spans(tail).get(partition, [(0, 0)])[-1][1] >= n for partition, n in behind.items()),
            "the tail has caught up",
            found=lambda: (behind, spans(tail)),
        )
    for partition, last_n in behind.items():
        found = spans(tail)[partition]
        assert found[0][0] == 2, "what comes first is a gap from the cursor on"
        assert found[0][1] >= last_n - KEPT, "as far as the retention has got"
        assert all(last + 1 == first for (_, last), (first, _) in pairwise(found)), found
    assert_audit_holds(region)


def periods(tail: Tail) -> dict[str, list[int]]:
    """By instance the periods whose end was told, one entry for each time."""
    found: dict[tuple[int, int], tuple[str, int]] = {}
    for line in tail.told():
        if line["event_type"] == "instance.exists":
            ending_us = line["payload"]["data"]["audit_period"]["audit_period_ending_us"]
            found[(line["partition"], line["n"])] = (line["instance_uuid"], ending_us // (EXISTS_S * 1_000_000))
    ends: dict[str, list[int]] = {}
    for uuid, ending in found.values():
        ends.setdefault(uuid, []).append(ending)
    return ends


def test_instance_exists_is_told_once_a_period_for_each_instance_while_conductors_are_killed(
    region: Region, tmp_path: Path
) -> None:
    run = boot(region, 5)
    assert_all_active(run)
    uuids = {each.uuid for each in run.boots}

    def told(tail: Tail) -> int:
        """How often that was which was told least."""
        ends = periods(tail)
        return min(len(ends.get(uuid, [])) for uuid in uuids)

    with tailing(region, tmp_path / "t.jsonl") as tail:
        for number, victim in enumerate(CONDUCTORS):
            wait_until(lambda number=number: told(tail) > number, "all are told of", found=lambda: periods(tail))
            kill_and_restart(region, victim)
        wait_until(lambda: told(tail) > 2, "all are told of", found=lambda: periods(tail))
    for uuid, ends in periods(tail).items():
        assert ends == list(range(ends[0], ends[0] + len(ends))), f"{uuid}: each period once, in order: {ends}"
    assert tail.gaps() == []


def test_history_goes_with_its_events_when_its_retention_is_over(region: Region) -> None:
    (server,) = boot(region, 1).boots
    where = {"instance_uuid": server.uuid}
    with store_of(region, "c1") as store:
        wait_until(lambda: not store.scan(INSTANCE_ACTIONS, where=where, limit=10), "the action has gone")
        assert store.scan(INSTANCE_ACTION_EVENTS, where=where, limit=10) == []
