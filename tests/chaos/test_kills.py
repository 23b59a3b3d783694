"""Conductors, agents and the API are killed over and over under boots and deletes. In the end everything adds up."""

import os
import random
import time

import gevent
import pytest

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import assert_audit_holds, started, wait_until
from zcompute.cli.up.boots import Booter
from zcompute.cli.up.layout import CONDUCTOR, SCHEDULER
from zcompute.cli.up.region import Region
from zcompute.db.drivers import open_store

CHAOS_S = 25.0
BURST = 15
PAUSE_S = (0.3, 1.5)
SEED = int(os.environ.get("ZCOMPUTE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)


def conductors_with_work(region: Region, cell: str) -> set[str]:
    """Service ids that own partitions of a cell."""
    store = open_store(region.database_url(cell))
    try:
        return set(store.read_map().partition_map().owners)
    finally:
        store.close()


def kill_and_restart(region: Region, chance: random.Random, until: float, killed: list[str]) -> None:
    """One victim at a time, of any kind; a conductor only when its peer can take over."""
    victims = [plan for plan in region.plans.values() if plan.kind != SCHEDULER]
    while time.monotonic() < until:
        plan = chance.choice(victims)
        region.kill(plan.id)
        killed.append(plan.id)
        gevent.sleep(chance.uniform(*PAUSE_S))
        region.restart(plan.id)
        if plan.kind == CONDUCTOR:
            wait_until(
                lambda plan=plan: plan.id in conductors_with_work(region, plan.cell),
                f"{plan.id} owns partitions again after its restart (killed so far: {killed})",
            )


def boot_and_delete(region: Region, chance: random.Random, until: float) -> tuple[set[str], set[str]]:
    """Bursts of boots, half of which are deleted again; the uuids that must live and those that must not."""
    living: set[str] = set()
    deleted: set[str] = set()
    client = region.client()
    while time.monotonic() < until:
        run = Booter(region, BURST, 5).run()
        unfinished = [item for item in run.boots if item.status != "ACTIVE"]
        assert not unfinished, [f"{item.name} {item.uuid} {item.status} {item.fault}" for item in unfinished]
        for item in run.boots:
            if chance.random() < 0.5:
                path = f"/v2.1/servers/{item.uuid}"
                status, answer = client.repeated("DELETE", path, deadline=time.monotonic() + 60)
                assert status in (204, 404), answer
                deleted.add(item.uuid)
            else:
                living.add(item.uuid)
    client.close()
    return living, deleted


def shown(region: Region) -> dict[str, str]:
    """Every server that the API lists, with its status."""
    client = region.client()
    try:
        return {row["id"]: row["status"] for row in client.get("/v2.1/servers/detail?limit=1000")["servers"]}
    finally:
        client.close()


@pytest.mark.timeout(110)
def test_kills_lose_no_server_and_make_none_twice(tmp_path) -> None:  # type: ignore[no-untyped-def]
    require_mariadb()
    print(f"ZCOMPUTE_CHAOS_SEED={SEED}")
    killed: list[str] = []
    with started(tmp_path / "s", "mariadb") as region:
        until = time.monotonic() + CHAOS_S
        killer = gevent.spawn(kill_and_restart, region, random.Random(SEED), until, killed)
        try:
            living, deleted = boot_and_delete(region, random.Random(SEED + 1), until)
            killer.get(timeout=40)
        finally:
            killer.kill()
        region.wait_ready()
        wait_until(lambda: not deleted & set(shown(region)), "the deleted servers are gone")
        assert shown(region) == dict.fromkeys(living, "ACTIVE")
        assert len(killed) >= 5
        assert_audit_holds(region)
