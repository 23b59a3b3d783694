"""The owner of a server group's partition killed at a step of reserving and releasing its members' places."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import assert_audit_holds, delete_all, started, wait_until
from tests.cluster.test_actions import Clients
from tests.cluster.test_groups import create_members, make_group, places, uuids_of
from tests.failpoints.test_quotas import OF_CELL, armed
from tests.unit.test_failpoints import OF_GROUPS
from tests.unit.test_failpoints import places as failpoints
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region

HOSTS = 4
PLACES = ("group.before_reserve", "group.after_reserve", "group.after_release")


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    shape = Shape(cells=("c1",), computes=1, hosts_per_compute=HOSTS)
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, shape) as running:
        running.on_unexpected_end = lambda text: None
        yield running


def test_every_place_of_groups_is_tried() -> None:
    assert sorted(PLACES) == sorted(place for place in failpoints() if place.startswith(OF_GROUPS))


def shown(member: Clients) -> dict[str, Any]:
    """Asked again while a conductor is being replaced."""
    status, answer = member.client.repeated("GET", member.path, deadline=time.monotonic() + 30)
    assert status == 200, answer
    server: dict[str, Any] = answer["server"]
    return server


@pytest.mark.parametrize("place", PLACES)
def test_killed_while_members_come_or_go(
    region: Region, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    group = make_group(region, "anti-affinity")
    with armed(region, OF_CELL, place, gate, monkeypatch):
        gate.touch()
        members = create_members(region, group, HOSTS)
        wait_until(
            lambda: {shown(member)["status"] for member in members} == {"ACTIVE"},
            "all are ACTIVE",
            found=lambda: [shown(member)["status"] for member in members],
        )
        assert len({shown(member)["OS-EXT-SRV-ATTR:host"] for member in members}) == HOSTS
        delete_all(region, uuids_of(members))
    wait_until(lambda: places(region) == 0, "no place is left", found=lambda: places(region))
    assert_audit_holds(region)
