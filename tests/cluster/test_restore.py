"""A cell's database is lost, and an older backup restored: what only hosts know is said, and nothing is destroyed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import (
    assert_all_active,
    assert_audit_holds,
    boot,
    command,
    delete_all,
    started,
    wait_until,
)
from tests.cluster.test_faults import store_of
from zcompute.cli.audit_kinds import MAPPING_WITHOUT_SERVER, ORPHAN_DOMAIN, SERVER_ON_NO_HOST, SERVER_WITHOUT_MAPPING
from zcompute.cli.audit_reading import read_host
from zcompute.cli.exits import MORE_LEFT
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import CONDUCTOR, Shape
from zcompute.cli.up.region import Region
from zcompute.db import migrate
from zcompute.db.tables import HOSTS, INSTANCES, MAPPINGS, USAGES
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.epochs import history_of
from zcompute.objects.remap import MAPPED, UNCONFIRMED


@pytest.fixture
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, Shape(cells=("c1",), computes=2)) as region:
        yield region


def running(region: Region) -> set[str]:
    """What the hosts run, by their own word."""
    found = (read_host(region.paths.hosts, host).running() for host in region.hosts)
    return set().union(*found)


def lose_database(region: Region, cell: str) -> None:
    """An empty one in its place."""
    with migrate.connected(region.database_url(cell)) as connection:
        connection.execute(sa.text("DROP DATABASE zcompute"))
        connection.execute(sa.text("CREATE DATABASE zcompute"))
        connection.commit()


def conductors_of(region: Region, cell: str) -> list[str]:
    """Their ids."""
    return [plan.id for plan in region.plans.values() if plan.kind == CONDUCTOR and plan.cell == cell]


class Backup:
    """A backup of one cell, to which it returns when its database is lost."""

    def __init__(self, region: Region, cell: str) -> None:
        self.region = region
        self.cell = cell
        self.conductors = conductors_of(region, cell)
        self.config = str(region.paths.config(self.conductors[0]))
        self.file = str(region.paths.state_dir / f"{cell}.backup")
        done = command("db", "backup", "--config", self.config, self.file)
        assert done.returncode == 0, done.stderr

    def return_to(self) -> None:
        for service_id in self.conductors:
            self.region.kill(service_id)
        lose_database(self.region, self.cell)
        done = command("db", "restore", "--config", self.config, self.file)
        assert done.returncode == 0, done.stderr
        for service_id in self.conductors:
            self.region.restart(service_id)
        self.region.wait_ready()


def boot_and_delete_more(region: Region, boots: int, gone: list[str]) -> set[str]:
    """What the backup does not know: new servers, and the end of some. Returns the new."""
    later = boot(region, boots)
    assert_all_active(later)
    delete_all(region, gone)
    wait_until(lambda: not running(region) & set(gone), "they are destroyed")
    return {each.uuid for each in later.boots}


def test_an_older_backup_is_restored_and_the_audit_says_what_only_hosts_know(region: Region) -> None:
    kept = boot(region, 6)
    assert_all_active(kept)
    backup = Backup(region, "c1")
    gone = [each.uuid for each in kept.boots[:2]]
    new = boot_and_delete_more(region, 4, gone)
    before = running(region)
    with store_of(region, "c1") as store:
        former = store.read_map()
        epochs = {host.name: host.agent_epoch for host in store.scan(HOSTS, limit=10)}

    refused = command("db", "restore", "--config", backup.config, backup.file)
    assert refused.returncode == 1
    assert "has been a cell's" in refused.stderr
    backup.return_to()

    with store_of(region, "c1") as store:

        def begun() -> bool:
            rows = store.scan(HOSTS, limit=10)
            return all(history_of(row.agent_epoch) and row.agent_epoch & 0xFFFF > epochs[row.name] for row in rows)

        rows = store.read_map()
        assert (rows.term, rows.map_version) > (former.term, former.map_version)
        assert min(row.owner_epoch for row in rows.partitions) > max(row.owner_epoch for row in former.partitions)
        wait_until(begun, "every agent has begun its hosts anew", found=lambda: store.scan(HOSTS, limit=10))
        wait_until(
            lambda: all(
                history_of(row.agent_epoch)
                for row in store.fetch(INSTANCES, [(each.uuid,) for each in kept.boots[2:]]).values()
            ),
            "the agents have reported all they have",
        )
        assert all(process.alive for process in region.processes.values()), "no agent took this for another's host"
    assert running(region) == before, "nothing is destroyed by itself"

    done = command("audit", "--state-dir", str(region.paths.state_dir), "--format", "json", timeout_s=60)
    assert done.returncode == 1, done.stdout + done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert {each["subject"] for each in findings if each["kind"] == ORPHAN_DOMAIN} == new
    assert {each["subject"] for each in findings if each["kind"] == SERVER_ON_NO_HOST} == set(gone)

    said = remap(region, "c1", code=1)
    assert {(each["uuid"], each["outcome"]) for each in said["servers"]} == {(uuid, UNCONFIRMED) for uuid in gone}

    more = boot(region, 3)
    assert_all_active(more)
    assert running(region) == before | {each.uuid for each in more.boots}, "the cell works on"


def test_an_older_backup_of_the_root_costs_no_running_server_and_the_audit_says_what_it_has_forgotten(
    region: Region,
) -> None:
    kept = boot(region, 4)
    assert_all_active(kept)
    backup = Backup(region, ROOT_CELL)
    gone = [each.uuid for each in kept.boots[:1]]
    new = boot_and_delete_more(region, 3, gone)
    before = running(region)
    with store_of(region, ROOT_CELL) as store:
        former = store.read_map()

    backup.return_to()
    with store_of(region, ROOT_CELL) as store:
        rows = store.read_map()
        assert (rows.term, rows.map_version) > (former.term, former.map_version)

    more = boot(region, 3)
    assert_all_active(more)
    assert running(region) == before | {each.uuid for each in more.boots}, "no server is lost, and the region works on"
    done = command("audit", "--state-dir", str(region.paths.state_dir), "--format", "json", timeout_s=60)
    assert done.returncode == 1, done.stdout + done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert {each["subject"] for each in findings if each["kind"] == SERVER_WITHOUT_MAPPING} == new
    assert {each["subject"] for each in findings if each["kind"] == MAPPING_WITHOUT_SERVER} == set(gone)

    said = remap(region, "c1", "--dry-run")
    assert {each["uuid"] for each in said["servers"] if each["outcome"] == MAPPED} == new
    assert mapped(region, new) == set()
    assert remap(region, "c1", "--max-rows", "1", code=MORE_LEFT)["mapped"] == 1
    assert remap(region, "c1")["mapped"] == len(new) - 1
    assert remap(region, "c1")["servers"] == []
    done = command("quota", "reconcile", "--state-dir", str(region.paths.state_dir), "--format", "json", timeout_s=60)
    assert {each["subject"] for each in json.loads(done.stdout)["found"]} == set(gone), (
        "let go; the new ones are charged"
    )
    assert_audit_holds(region)
    assert mapped(region, new) == new
    delete_all(region, sorted(new))
    wait_until(lambda: not mapped(region, new), "the cell's word finds their mappings")


def remap(region: Region, *arguments: str, code: int = 0) -> dict[str, Any]:
    """``zcompute cell remap``'s JSON."""
    done = command("cell", "remap", *arguments, "--state-dir", str(region.paths.state_dir), "--format", "json")
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def mapped(region: Region, uuids: set[str]) -> set[str]:
    """Those that the root knows and charges."""
    keys = [(uuid,) for uuid in sorted(uuids)]
    with store_of(region, ROOT_CELL) as store:
        known, charged = store.fetch(MAPPINGS, keys), store.fetch(USAGES, keys)
    assert set(known) == set(charged)
    return {uuid for (uuid,) in known}
