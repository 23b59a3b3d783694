"""Cells as operators change them: at the owner of ``global``, refused while anything is left."""

import pytest

from tests.unit.conductor.root.fakes import UUIDS, context, create_request
from tests.unit.conductor.root.test_role import ROOM, Region, register
from zcompute.bus.errors import Forbidden, InvalidRequest
from zcompute.db.tables import BUILD_REQUESTS, CELLS, MAPPINGS
from zcompute.objects import methods
from zcompute.objects.build_request import BUILD_ERROR, InstanceMapping
from zcompute.objects.cell import (
    CELL_DELETED,
    CELL_DISABLED,
    CELL_DRAINING,
    CELL_ENABLED,
    CellCapacity,
    ZoneCapacity,
)
from zcompute.objects.errors import CellNotFound, CellRefused
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.topology import (
    CellCreateRequest,
    CellDeleteRequest,
    CellMappingsRequest,
    CellStateRequest,
    CellStatusRequest,
)
from zcompute.objects.partition import partition_of


@pytest.fixture
def region():
    made = Region()
    made.role.start()
    yield made
    made.role.stop()


OPERATOR = context("root", "op", "operator")


def create(region, name="c1", **options):
    return region.call(methods.CELL_CREATE, CellCreateRequest(name=name, **options), OPERATOR)


def state(region, name, to, **options):
    return region.call(methods.CELL_STATE, CellStateRequest(name=name, state=to, **options), OPERATOR)


def delete(region, name="c1", **options):
    return region.call(methods.CELL_DELETE, CellDeleteRequest(name=name, **options), OPERATOR)


def row(region, name="c1"):
    return region.ledger.rows[(CELLS.name, (name,))]


def test_a_created_cell_is_kept_and_pushed_and_a_repeat_changes_nothing(region):
    assert create(region).changed
    assert row(region).state == CELL_ENABLED
    commits = region.ledger.commits
    assert not create(region).changed
    assert region.ledger.commits == commits
    region.until(lambda: [key for _, key, _ in region.endpoint.published] == ["c1"])


def test_a_dry_run_says_what_would_change_and_writes_nothing(region):
    assert create(region, dry_run=True).changed
    assert (CELLS.name, ("c1",)) not in region.ledger.rows
    create(region)
    assert state(region, "c1", CELL_DRAINING, dry_run=True).cell.state == CELL_DRAINING
    assert delete_refused(region).state == CELL_ENABLED
    assert row(region).state == CELL_ENABLED


def delete_refused(region):
    with pytest.raises(CellRefused) as refused:
        delete(region)
    return type("Refusal", (), refused.value.details)


@pytest.mark.parametrize("name", ["", "root", "C1", "a b", "-x", "x" * 65, "c1/../c2", "c\u00e9"])
def test_what_is_no_name_is_refused(region, name):
    with pytest.raises(InvalidRequest):
        create(region, name)


def test_only_the_roots_operators_and_conductors_manage_cells(region):
    for caller in (context("c1", "s1", "conductor"), context("c1", "op", "operator"), context("root", "a", "api")):
        with pytest.raises(Forbidden):
            region.call(methods.CELL_CREATE, CellCreateRequest(name="c1"), caller)
        with pytest.raises(Forbidden):
            region.call(methods.CELL_MAPPINGS, CellMappingsRequest(cell="c1"), caller)


def test_a_conductor_that_does_not_own_global_hands_it_on(region):
    region.ledger.lost.add(partition_of("global"))
    create(region)
    assert [key for key, _ in region.forwarded] == ["global"]


def test_closed_cells_get_no_new_servers_and_open_ones_do_again(region):
    register(region, "a")
    region.capacity("c1")
    for closed in (CELL_DISABLED, CELL_DRAINING):
        assert state(region, "c1", closed).changed
        assert not state(region, "c1", closed).changed
        (uuid,) = region.call(methods.SERVERS_CREATE, create_request(operation_id=closed)).uuids
        region.until(lambda uuid=uuid: region.ledger.get(BUILD_REQUESTS, uuid).state == BUILD_ERROR)
        assert f"c1 is {closed}" in region.ledger.get(BUILD_REQUESTS, uuid).fault.message
    state(region, "c1", CELL_ENABLED)
    link = region.link("c1")
    region.call(methods.SERVERS_CREATE, create_request(operation_id="open"))
    region.until(lambda: link.calls)


def test_an_unknown_cell_or_state_is_refused(region):
    with pytest.raises(CellNotFound):
        state(region, "c9", CELL_DRAINING)
    create(region)
    with pytest.raises(InvalidRequest):
        state(region, "c1", CELL_DELETED)


def test_a_cell_that_takes_servers_has_some_or_runs_is_not_deleted(region):
    create(region)
    assert delete_refused(region).left == []
    state(region, "c1", CELL_DRAINING)
    region.ledger.rows[(MAPPINGS.name, (UUIDS[0],))] = InstanceMapping(uuid=UUIDS[0], project_id="p1", cell="c1")
    region.link("c1")
    assert delete_refused(region).left == ["1 servers are mapped to it", "conductors still run: s1"]
    region.endpoint.up.clear()
    assert delete_refused(region).left == ["1 servers are mapped to it"]
    del region.ledger.rows[(MAPPINGS.name, (UUIDS[0],))]
    assert delete(region).cell.state == CELL_DELETED
    assert not delete(region).changed, "a repeat finds it done"


def test_a_deleted_cell_is_listed_nowhere_and_its_conductors_cannot_bring_it_back(region):
    register(region, "a")
    state(region, "c1", CELL_DRAINING)
    delete(region)
    assert region.call(methods.CELL_LIST, Empty()).cells == []
    with pytest.raises(CellRefused):
        register(region, "a", version=99)
    region.capacity("c1")
    assert region.role._capacities.known(0.0) == [], "nor is it chosen"
    with pytest.raises(CellNotFound):
        region.call(methods.CELL_STATUS, CellStatusRequest(name="c1"), OPERATOR)


def test_a_deleted_cell_is_created_again_as_if_it_had_never_registered(region):
    register(region, "a", version=9)
    state(region, "c1", CELL_DRAINING)
    delete(region)
    former = row(region)
    assert create(region).changed
    assert (row(region).state, row(region).conductors, row(region).map_version) == (CELL_ENABLED, [], 0)
    assert row(region).revision > former.revision, "whoever heard of the end hears of the new beginning"
    register(region, "a", version=2)
    assert [info.service_id for info in row(region).conductors] == ["a"]


def test_a_cell_that_changes_while_it_is_looked_at_is_not_deleted(region):
    create(region)
    state(region, "c1", CELL_DRAINING)
    seen = region.store.fetch
    region.store.fetch = lambda table, keys: (seen(table, keys), state(region, "c1", CELL_ENABLED))[0]
    with pytest.raises(CellRefused):
        delete(region)
    assert row(region).state == CELL_ENABLED


def test_the_status_counts_what_is_there(region):
    link = region.link("c1")
    register(region, "a")
    region.capacity("c1")
    region.call(methods.SERVERS_CREATE, create_request(count=3))
    region.until(lambda: len(link.calls) == 3)
    status = region.call(methods.CELL_STATUS, CellStatusRequest(name="c1"), OPERATOR)
    assert (status.mappings, status.linked, status.capacity.hosts) == (3, ["s1"], 1)
    page = region.call(methods.CELL_MAPPINGS, CellMappingsRequest(cell="c1", limit=2), OPERATOR)
    assert [mapping.uuid for mapping in page.mappings] == UUIDS[:2]
    with pytest.raises(InvalidRequest):
        region.call(methods.CELL_MAPPINGS, CellMappingsRequest(cell="c1", limit=100_000), OPERATOR)


def test_a_server_goes_to_a_cell_with_hosts_in_its_zone(region):
    links = {name: region.link(name) for name in ("c1", "c2")}
    for name, zone, hosts in (("c1", "east", 1), ("c2", "west", 9)):
        told = CellCapacity(cell=name, service_id="s1", free=ROOM, largest_free=ROOM, hosts=hosts)
        told.zones = [ZoneCapacity(zone=zone, free=ROOM, largest_free=ROOM, hosts=hosts)]
        region.call(methods.CELL_CAPACITY, told, context(name, "s1", "conductor"))
    request = create_request(count=3)
    request.spec.availability_zone = "east"
    region.call(methods.SERVERS_CREATE, request)
    region.until(lambda: len(links["c1"].calls) == 3)
    assert not links["c2"].calls
