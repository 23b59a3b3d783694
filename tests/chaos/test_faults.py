"""Conductors, agents and the API are killed, stopped and restarted under boots and deletes. In the end all adds up."""

import os
import random
import signal
import time
from pathlib import Path

import gevent
import pytest

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import assert_audit_holds, started, wait_until
from zcompute.cli.up.boots import Booter
from zcompute.cli.up.layout import CONDUCTOR, SCHEDULER, Shape
from zcompute.cli.up.region import Region
from zcompute.db.drivers import open_store

CHAOS_S = 8.0  # tests/chaos/test_robustness.py is the long one
BURST = 30
IN_FLIGHT = 10
PAUSE_S = (0.3, 2.0)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
SHAPE = Shape(build_ms=30, delete_ms=20)
SEED = int(os.environ.get("ZCOMPUTE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)


def conductors_with_work(region: Region, cell: str) -> set[str]:
    """Service ids that own partitions of a cell."""
    store = open_store(region.database_url(cell))
    try:
        return set(store.read_map().partition_map().owners)
    finally:
        store.close()


def hurt_one_after_the_other(region: Region, chance: random.Random, until: float, hurt: list[str]) -> None:
    """One victim at a time, of any kind: SIGKILL or SIGTERM and a new start, or SIGSTOP and SIGCONT.

    The next one only when a conductor among them owns partitions again, so that its peer could always take over.
    """
    victims = [plan for plan in region.plans.values() if plan.kind != SCHEDULER]
    while time.monotonic() < until:
        plan, number = chance.choice(victims), chance.choice(SIGNALS)
        hurt.append(f"{number.name} {plan.id}")
        region.kill(plan.id, number)
        gevent.sleep(chance.uniform(*PAUSE_S))
        if number == signal.SIGSTOP:
            region.kill(plan.id, signal.SIGCONT)
        else:
            wait_until(lambda plan=plan: not region.processes[plan.id].alive, f"{plan.id} has ended")
            region.restart(plan.id)
        if plan.kind == CONDUCTOR:
            wait_until(
                lambda plan=plan: plan.id in conductors_with_work(region, plan.cell),
                f"{plan.id} owns partitions again; so far: {hurt}",
            )


def boot_and_delete(region: Region, chance: random.Random, until: float) -> tuple[set[str], set[str]]:
    """Bursts of boots, half of which are deleted again; the uuids that must live and those that must not."""
    living: set[str] = set()
    deleted: set[str] = set()
    client = region.client()
    while time.monotonic() < until:
        run = Booter(region, BURST, IN_FLIGHT).run()
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
def test_faults_lose_no_server_and_make_none_twice(tmp_path: Path) -> None:
    require_mariadb()
    print(f"ZCOMPUTE_CHAOS_SEED={SEED}")
    hurt: list[str] = []
    with started(tmp_path / "s", "mariadb", SHAPE) as region:
        until = time.monotonic() + CHAOS_S
        hurting = gevent.spawn(hurt_one_after_the_other, region, random.Random(SEED), until, hurt)
        try:
            living, deleted = boot_and_delete(region, random.Random(SEED + 1), until)
            hurting.get(timeout=40)
        finally:
            hurting.kill()
        region.wait_ready()
        wait_until(lambda: not deleted & set(shown(region)), "the deleted servers are gone")
        assert shown(region) == dict.fromkeys(living, "ACTIVE")
        print(f"{len(hurt)} faults, {len(living) + len(deleted)} boots, {len(deleted)} deletes")
        assert len(hurt) >= 2
        assert_audit_holds(region)
