"""Cells that come and go under traffic: one of three is drained, deleted and brought back; the root is away."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
import sqlalchemy as sa

from tests.cluster.region import assert_all_active, assert_audit_holds, boot, command, delete_all, started, wait_until
from zcompute.bus import Endpoint, Forbidden, Identity, Link, register_error
from zcompute.cli.up.databases import SQLITE
from zcompute.cli.up.layout import PROJECT_ID, Shape
from zcompute.cli.up.region import Region
from zcompute.db import migrate
from zcompute.keys import read_keys
from zcompute.objects.cell import CellCapacity, CellInfo
from zcompute.objects.errors import SERVICE_ERRORS, InstanceNotFound
from zcompute.objects.flavor import Amounts
from zcompute.objects.instance import VM_DELETED
from zcompute.objects.messages.instances import InstanceDeleteRequest, InstanceGetRequest, InstanceReply
from zcompute.objects.messages.region import CellRegisterRequest, MappingReleaseRequest
from zcompute.objects.messages.topology import (
    CellCreateRequest,
    CellDeleteRequest,
    CellStateRequest,
    EnrolmentRevokeRequest,
)
from zcompute.objects.methods import (
    CELL_CAPACITY,
    CELL_CREATE,
    CELL_DELETE,
    CELL_REGISTER,
    CELL_STATE,
    ENROLMENT_REVOKE,
    INSTANCE_DELETE,
    INSTANCE_GET,
    MAPPING_DELETED,
    MAPPING_REFUSED,
)

CELLS = ("c1", "c2", "c3")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    for error in SERVICE_ERRORS:
        register_error(error)
    shape = Shape(cells=CELLS, computes=1, hosts_per_compute=2)
    with started(tmp_path_factory.mktemp("r") / "s", SQLITE, shape) as made:
        yield made


def cells(region: Region, *arguments: str, code: int = 0) -> Any:
    """`zcompute cell ...`'s answer."""
    done = command("cell", *arguments, "--state-dir", str(region.paths.state_dir), "--format", "json")
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout else done.stderr


def servers_by_cell(region: Region) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {cell: [] for cell in CELLS}
    client = region.client()
    for row in client.get("/v2.1/servers/detail?all_tenants=1&limit=1000")["servers"]:
        host = row["OS-EXT-SRV-ATTR:host"]
        if host:
            found[host.split("-")[0]].append(row["id"])
    client.close()
    return found


def services_of(region: Region, cell: str) -> list[str]:
    return [plan.id for plan in region.plans.values() if plan.cell == cell]


def test_a_cell_is_drained_deleted_and_brought_back_under_traffic(region: Region) -> None:
    assert_all_active(boot(region, 30))
    assert all(servers_by_cell(region).values()), "every cell has some"
    assert [row["state"] for row in cells(region, "list")] == ["enabled"] * 3
    for cell in CELLS:
        assert cells(region, "verify", cell)["holds"]
    with schema_at(region, "c2", "0001"):
        kinds = {row["kind"] for row in cells(region, "verify", "c2", code=1)["findings"]}
    assert kinds == {"schema_behind"}

    assert cells(region, "drain", "c3", "--dry-run")["changed"]
    assert cells(region, "show", "c3")["state"] == "enabled"
    left = cells(region, "drain", "c3")["servers_left"]
    assert left == len(servers_by_cell(region)["c3"]) > 0
    assert "not empty" in cells(region, "delete", "c3", code=1)
    gevent.sleep(2 * 1.1)  # every root conductor has read it by now
    before = set(servers_by_cell(region)["c3"])
    traffic = gevent.spawn(boot, region, 30)
    assert cells(region, "drain", "c3", "--wait", "1", code=9)["servers_left"] == left
    assert set(servers_by_cell(region)["c3"]) == before, "nothing new goes there"
    delete_all(region, sorted(before))
    assert cells(region, "drain", "c3", "--wait", "30")["servers_left"] == 0
    assert_all_active(traffic.get(timeout=60))

    traffic = gevent.spawn(boot, region, 30)
    assert "conductors still run" in cells(region, "delete", "c3", code=1)
    for service in services_of(region, "c3"):
        region.processes[service].end_expected = True
        region.kill(service)
    wait_until(lambda: not cells(region, "show", "c3")["conductors"] or not linked(region, "c3"), "c3 unlinked")
    assert cells(region, "delete", "c3", "--dry-run")["changed"]
    assert cells(region, "delete", "c3")["state"] == "deleted"
    assert not cells(region, "delete", "c3")["changed"], "a repeat"
    assert [row["name"] for row in cells(region, "list")] == ["c1", "c2"]
    assert "not known" in cells(region, "show", "c3", code=1)
    assert_all_active(traffic.get(timeout=60))
    for service in services_of(region, "c3"):
        region.restart(service)
    gevent.sleep(2.0)  # its conductors knock meanwhile
    assert [row["name"] for row in cells(region, "list")] == ["c1", "c2"], "a deleted cell does not come back by itself"
    assert cells(region, "create", "c3")["changed"]
    wait_until(lambda: len(cells(region, "show", "c3")["conductors"]) == 2, "c3 registered")
    wait_until(lambda: cells(region, "show", "c3")["hosts_with_room"] == 2, "its hosts are known")
    assert_all_active(boot(region, 30))
    assert servers_by_cell(region)["c3"], "it gets servers again"
    for cell in CELLS:
        found = cells(region, "verify", cell)
        assert found["holds"], found
    assert_audit_holds(region)


@contextmanager
def schema_at(region: Region, cell: str, revision: str) -> Iterator[None]:
    """The cell's database says that it is at an older revision."""

    def note(name: str) -> None:
        with migrate.connected(region.database_url(cell)) as connection:
            statement = "UPDATE alembic_version SET version_num = :name WHERE version_num NOT LIKE 'c%'"
            connection.execute(sa.text(statement), {"name": name})
            connection.commit()

    head = migrate.status(region.database_url(cell)).head
    note(revision)
    try:
        yield
    finally:
        note(head)


def linked(region: Region, cell: str) -> list[str]:
    return [row["id"] for row in cells(region, "show", cell)["conductors"] if row["linked"]]


def test_a_cell_works_on_while_the_root_is_away_and_what_it_owes_the_root_arrives_later(region: Region) -> None:
    assert_all_active(boot(region, 6))
    uuids = servers_by_cell(region)["c1"][:4]
    keys = read_keys(str(region.paths.key("api-1")))
    caller = Endpoint(Identity("api", "root", "api-7", "1", frozenset(), keys.public_key, keys.secret_key))
    roots = [name for name in region.processes if name.startswith("root-conductor")]
    link = caller.dial(
        f"tcp://127.0.0.1:{region.file.bus_ports['c1-conductor-1']}",
        read_keys(str(region.paths.key("c1-conductor-1"))).public_key,
    )
    assert link.wait_up(5000)
    for name in roots:
        region.processes[name].end_expected = True
        region.kill(name)
    try:
        client = region.client(timeout_s=40.0)
        asking = gevent.spawn(client.request, "POST", "/v2.1/servers", LATE)
        for uuid in uuids:
            request = InstanceDeleteRequest(uuid=uuid, project_id=PROJECT_ID, operation_id=f"op-{uuid}")
            link.call(INSTANCE_DELETE, request, timeout_ms=10_000)
        for uuid in uuids:
            wait_until(lambda uuid=uuid: is_gone(link, uuid), f"{uuid} deleted in its cell")
        status, _ = asking.get(timeout=45)
        assert status in (503, 504), status
        client.close()
    finally:
        for name in roots:
            region.restart(name)
        caller.close()
    wait_until(lambda: command("cell", "list", *at(region)).returncode == 0, "the root is back")
    assert_audit_holds(region)
    assert not set(uuids) & {uuid for found in servers_by_cell(region).values() for uuid in found}
    client = region.client()
    names = [row["name"] for row in client.get("/v2.1/servers?all_tenants=1&limit=1000")["servers"]]
    client.close()
    assert "late" not in names, "what was answered with an error had no effect"


def test_a_cells_key_speaks_for_that_cell_only(region: Region) -> None:
    keys = read_keys(str(region.paths.key("c1-conductor-1")))
    thief = Endpoint(Identity("conductor", "c1", "c1-conductor-9", "1", frozenset(), keys.public_key, keys.secret_key))
    liar = Endpoint(Identity("conductor", "c2", "c2-conductor-9", "1", frozenset(), keys.public_key, keys.secret_key))
    root = f"tcp://127.0.0.1:{region.file.bus_ports['root-conductor-1']}"
    root_key = read_keys(str(region.paths.key("root-conductor-1"))).public_key
    uuid = boot(region, 1).boots[0].uuid
    release = MappingReleaseRequest(uuid=uuid, project_id=PROJECT_ID, cell="c2", generation=1)
    room = Amounts(vcpus=10**6, memory_mb=10**9, disk_gb=10**6)
    told = CellCapacity(cell="c2", service_id="c2-conductor-1", free=room, largest_free=room, hosts=9)
    try:
        assert not liar.dial(root, root_key).wait_up(1500), "nor does it say that it is of another cell"
        link = thief.dial(root, root_key)
        assert link.wait_up(5000)
        before = refused(region)
        for method, request in (
            (CELL_REGISTER, CellRegisterRequest(cell=CellInfo(name="c2", map_version=10**6))),
            (MAPPING_DELETED, release),
            (MAPPING_REFUSED, release),
            (CELL_CREATE, CellCreateRequest(name="c7")),
            (CELL_STATE, CellStateRequest(name="c2", state="disabled")),
            (CELL_DELETE, CellDeleteRequest(name="c2")),
            (ENROLMENT_REVOKE, EnrolmentRevokeRequest(id="x")),
        ):
            with pytest.raises(Forbidden):
                link.call(method, request, timeout_ms=5000)
        link.cast(CELL_CAPACITY, told)
        wait_until(lambda: refused(region) - before == 4, "all are counted", found=lambda: refused(region) - before)
    finally:
        thief.close()
        liar.close()
    assert len(cells(region, "show", "c2")["conductors"]) == 2
    assert [row["state"] for row in cells(region, "list")] == ["enabled"] * 3
    assert cells(region, "verify", "c2")["holds"]


def refused(region: Region) -> int:
    """How many words of one cell's key for another a root conductor has counted."""
    done = command("bus", "stat", "root-conductor-1", *at(region), "--format", "json")
    found: int = json.loads(done.stdout)["endpoints"][0]["counters"].get("refused_foreign_cell", 0)
    return found


LATE = {"server": {"name": "late", "flavorRef": "1", "imageRef": "", "networks": "none"}}


def at(region: Region) -> tuple[str, str]:
    return "--state-dir", str(region.paths.state_dir)


def is_gone(link: Link, uuid: str) -> bool:
    try:
        reply: InstanceReply = link.call(INSTANCE_GET, InstanceGetRequest(uuid=uuid), timeout_ms=5000)
    except InstanceNotFound:
        return True
    return reply.instance.vm_state == VM_DELETED
