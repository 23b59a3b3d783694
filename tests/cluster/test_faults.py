"""Services of a region on MariaDB are killed and stopped in the middle of their work. Nothing is lost or done twice."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cluster.probe import Probe
from tests.cluster.region import (
    assert_all_active,
    assert_audit_holds,
    boot,
    boot_while,
    wait_until,
    when_share_done,
)
from zcompute.bus import register_error
from zcompute.cli.up.boots import Booter
from zcompute.cli.up.region import Region
from zcompute.db.drivers import open_store
from zcompute.db.store import Store
from zcompute.db.tables import CLAIMS, INSTANCES, ROOT_OUTBOX, TASKS
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import SERVICE_ERRORS, InstanceNotFound
from zcompute.objects.instance import VM_DELETED

BOOTS = 80
ROWS_MAX = 5000


@pytest.fixture
def region(mariadb_region: Region) -> Iterator[Region]:
    """The shared region; afterwards every service runs again and every host is up."""
    yield mariadb_region
    for service_id, process in mariadb_region.processes.items():
        process.send(signal.SIGCONT)
        if not process.alive:
            mariadb_region.restart(service_id)
    mariadb_region.wait_ready()
    for cell in mariadb_region.cells:
        with store_of(mariadb_region, cell) as store:
            wait_until(lambda store=store: len(owners(store)) == 2, f"both conductors of {cell} own partitions")


@contextmanager
def store_of(region: Region, cell: str) -> Iterator[Store]:
    store = open_store(region.database_url(cell))
    try:
        yield store
    finally:
        store.close()


def owners(store: Store) -> set[str]:
    """Service ids that own partitions."""
    return set(store.read_map().partition_map().owners)


def incarnation(store: Store, service_id: str) -> str:
    """The living incarnation of a conductor, "" for none."""
    info = store.read_map().partition_map().conductors.get(service_id)
    return info.incarnation if info is not None else ""


@pytest.mark.parametrize("cell", [ROOT_CELL, "c1"])
def test_a_conductor_killed_under_boots_loses_nothing_and_rejoins(region: Region, cell: str) -> None:
    victim = f"{cell}-conductor-1"

    def kill(booter: Booter) -> None:
        when_share_done(booter, 0.3)
        region.kill(victim)
        with store_of(region, cell) as store:
            wait_until(lambda: owners(store) == {f"{cell}-conductor-2"}, "the survivor has every partition")
        region.restart(victim)

    assert_all_active(boot_while(region, BOOTS, kill))
    with store_of(region, cell) as store:
        wait_until(lambda: victim in owners(store), f"{victim} owns partitions again")
    assert_audit_holds(region)


def test_a_delete_repeated_after_its_end_and_a_take_over_has_its_first_outcome(region: Region) -> None:
    for error in SERVICE_ERRORS:
        register_error(error)
    [booted] = boot(region, 1).boots
    cell = booted.host[:2]
    with store_of(region, cell) as store:
        [row] = store.fetch(INSTANCES, [(booted.uuid,)]).values()
        owner = store.read_map().partition_map().owner_of(row.uuid)
        with Probe(region, cell, owner) as probe:
            probe.delete(row.uuid, row.project_id, "op-1")
        wait_until(lambda: store.fetch(INSTANCES, [(row.uuid,)])[(row.uuid,)].vm_state == VM_DELETED, "deleted")
        region.kill(owner)
        wait_until(lambda: owner not in owners(store), "the survivor has every partition")
        [heir] = owners(store)
    with Probe(region, cell, heir) as probe:
        probe.delete(row.uuid, row.project_id, "op-1")
        with pytest.raises(InstanceNotFound):
            probe.delete(row.uuid, row.project_id, "op-2")
    region.restart(owner)
    region.wait_ready()
    assert_audit_holds(region)


def test_an_agent_killed_under_boots_builds_every_server_once(region: Region) -> None:
    def kill(booter: Booter) -> None:
        when_share_done(booter, 0.3)
        region.kill("c1-compute-1")
        region.restart("c1-compute-1")

    assert_all_active(boot_while(region, BOOTS, kill))
    assert_audit_holds(region)


def test_an_api_killed_under_boots_costs_no_server_and_makes_none_twice(region: Region) -> None:
    before = server_count(region)

    def kill(booter: Booter) -> None:
        when_share_done(booter, 0.3)
        region.kill("api-1")
        region.restart("api-1")

    assert_all_active(boot_while(region, BOOTS, kill))
    assert server_count(region) == before + BOOTS
    assert_audit_holds(region)


def server_count(region: Region) -> int:
    with store_of(region, "c1") as first, store_of(region, "c2") as second:
        return sum(
            len(store.scan(INSTANCES, where={"vm_state": "active"}, limit=ROWS_MAX)) for store in (first, second)
        )


def test_a_stopped_conductor_resumed_after_take_over_changes_nothing_and_rejoins(region: Region) -> None:
    cell, victim, survivor = "c1", "c1-conductor-1", "c1-conductor-2"
    with store_of(region, cell) as store, Probe(region, cell, victim) as probe:
        former = incarnation(store, victim)
        host = next(name for name in region.hosts if store.read_map().partition_map().owner_of(name) == victim)

        asked = []

        def stop(booter: Booter) -> None:
            when_share_done(booter, 0.3)
            region.kill(victim, signal.SIGSTOP)
            asked.append(probe.ask_claim(host))

        assert_all_active(boot_while(region, BOOTS, stop))
        wait_until(lambda: owners(store) == {survivor}, "the survivor has every partition")
        before = written(store, former), domain_logs(region)
        region.kill(victim, signal.SIGCONT)
        wait_until(lambda: incarnation(store, victim) not in ("", former), "a new incarnation")
        wait_until(lambda: victim in owners(store), f"{victim} owns partitions again")
        assert (written(store, former), domain_logs(region)) == before
        assert probe.answer(asked[0]) not in ("granted", "refused")
    assert_all_active(boot(region, 20))
    assert_audit_holds(region)


def written(store: Store, former: str) -> dict[str, Any]:
    """All that an incarnation could have changed: the rows of the cell, and whether its lanes live."""
    rows = store.read_map()
    found: dict[str, Any] = {
        table.name: store.scan(table, limit=ROWS_MAX) for table in (INSTANCES, TASKS, CLAIMS, ROOT_OUTBOX)
    }
    found["lanes alive"] = [lane.lane_id for lane in rows.lanes.values() if lane.incarnation == former and lane.alive]
    return found


def domain_logs(region: Region) -> dict[str, bytes]:
    """What every fake hypervisor was told so far."""
    return {path.name: path.read_bytes() for path in region.paths.hosts.iterdir()}
