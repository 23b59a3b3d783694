"""What the root has forgotten of a cell is mapped again: over a real ledger, with a cell that says what it has."""

from contextlib import closing
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from tests.unit.conductor.ledger_world import World
from tests.unit.conductor.root.fakes import FakeEndpoint, FakeLink, context
from zcompute.bus.errors import Forbidden, InvalidRequest, Unavailable
from zcompute.conductor.cell.standings import confirmed
from zcompute.conductor.root.remapping import SERVERS_MAX, Remapping
from zcompute.db.tables import BUILD_REQUESTS, CELLS, MAPPINGS, USAGES
from zcompute.objects.build_request import BuildRequest, InstanceMapping, Usage
from zcompute.objects.cell import CellInfo
from zcompute.objects.epochs import in_history
from zcompute.objects.errors import CellNotFound
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import POWER_NOSTATE, POWER_RUNNING, Instance, ServerSpec
from zcompute.objects.messages.quotas import Standing, StandingReply
from zcompute.objects.messages.topology import RemapRequest
from zcompute.objects.remap import (
    DELETED,
    ELSEWHERE,
    MAPPED,
    MAPPED_ALREADY,
    ON_ITS_WAY,
    OTHER_PROJECT,
    OWED,
    UNCONFIRMED,
)

SERVERS = [f"{number:08d}-0000-4000-8000-000000000000" for number in range(8)]
TINY = Flavor(flavorid="1", name="m1.tiny", vcpus=2, memory_mb=512, root_gb=1)


class Scene:
    """A root that has forgotten everything of cell c1, which has these servers of project p1."""

    def __init__(self):
        self.world = World()
        self.endpoint = FakeEndpoint()
        self.cell = {uuid: Standing(uuid=uuid, generation=2, project_id="p1", cores=2, ram_mb=512) for uuid in SERVERS}
        self.world.database.seed(CELLS, CellInfo(name="c1"))
        self.questions = 0
        self.then = lambda: None  # between the first question and the second
        env = SimpleNamespace(
            ledger=self.world.ledger, store=self.world.store, endpoint=self.endpoint,
            forwarding=SimpleNamespace(needed=lambda key, context: False),
        )  # fmt: skip
        self.remapping = Remapping(env)

    def link(self):
        link = FakeLink("c1")

        def call(method, request, *, timeout_ms):
            self.questions += 1
            if self.questions == 2:
                self.then()
            return StandingReply(servers=[self.cell[uuid] for uuid in request.uuids if uuid in self.cell])

        link.call = call
        self.endpoint.up.append(link)

    def remap(self, uuids=SERVERS, **fields):
        request = RemapRequest(**{"cell": "c1", "project_id": "p1", "uuids": list(uuids), **fields})
        reply = self.remapping.remap(request, context("root", "op", "operator"))
        return {one.uuid: one.outcome for one in reply.servers}

    def rows(self, table):
        return {key[0]: row for key, row in self.world.database.tables.get(table.name, {}).items()}

    def close(self):
        self.world.close()


@pytest.fixture
def scene():
    with closing(Scene()) as made:
        made.link()
        yield made


def test_forgotten_servers_are_mapped_with_the_cells_generation_and_charged_once(scene):
    assert scene.remap() == dict.fromkeys(SERVERS, MAPPED)
    assert sorted(scene.rows(MAPPINGS)) == sorted(scene.rows(USAGES)) == SERVERS
    row = scene.world.store.fetch(MAPPINGS, [(SERVERS[0],)])[(SERVERS[0],)]
    assert (row.cell, row.generation, row.project_id) == ("c1", 2, "p1")
    usage = scene.world.store.fetch(USAGES, [(SERVERS[0],)])[(SERVERS[0],)]
    assert (usage.cores, usage.ram_mb) == (2, 512)
    assert scene.remap() == dict.fromkeys(SERVERS, MAPPED_ALREADY)
    assert sorted(scene.rows(USAGES)) == SERVERS


def test_a_dry_run_says_the_same_and_writes_nothing(scene):
    assert scene.remap(dry_run=True) == dict.fromkeys(SERVERS, MAPPED)
    assert scene.rows(MAPPINGS) == scene.rows(USAGES) == {}


def test_what_was_deleted_or_is_decided_elsewhere_is_left_alone(scene):
    gone, absent, owed, other, on_its_way, elsewhere, back, plain = SERVERS
    scene.cell[gone] = replace(scene.cell[gone], deleted=True)
    del scene.cell[absent]
    scene.cell[owed] = replace(scene.cell[owed], owed=True)
    scene.cell[other] = replace(scene.cell[other], project_id="p2")
    scene.cell[back] = replace(scene.cell[back], confirmed=False)
    seed = scene.world.database.seed
    seed(MAPPINGS, InstanceMapping(uuid=on_its_way, project_id="p1", cell="c1"))
    seed(USAGES, Usage(uuid=on_its_way, project_id="p1", cores=2, ram_mb=512))
    seed(
        BUILD_REQUESTS,
        BuildRequest(uuid=on_its_way, project_id="p1", user_id="u", name="n", flavor=TINY, spec=ServerSpec(),
                     operation_id="o", cell="c1"),
    )  # fmt: skip
    seed(MAPPINGS, InstanceMapping(uuid=elsewhere, project_id="p1", cell="c2", generation=1))
    assert scene.remap() == {
        gone: DELETED, absent: DELETED, owed: OWED, other: OTHER_PROJECT, on_its_way: ON_ITS_WAY,
        elsewhere: ELSEWHERE, back: UNCONFIRMED, plain: MAPPED,
    }  # fmt: skip
    assert sorted(scene.rows(MAPPINGS)) == sorted([on_its_way, elsewhere, plain])
    assert sorted(scene.rows(USAGES)) == sorted([on_its_way, plain])
    assert scene.remap([back], unconfirmed=True) == {back: MAPPED}


def test_the_higher_generation_of_the_same_cell_counts(scene):
    older, newer = SERVERS[:2]
    scene.world.database.seed(MAPPINGS, InstanceMapping(uuid=older, project_id="p1", cell="c1", generation=1))
    scene.world.database.seed(MAPPINGS, InstanceMapping(uuid=newer, project_id="p1", cell="c1", generation=3))
    assert scene.remap([older, newer]) == {older: MAPPED, newer: MAPPED_ALREADY}
    rows = scene.world.store.fetch(MAPPINGS, [(older,), (newer,)])
    assert [rows[(uuid,)].generation for uuid in (older, newer)] == [2, 3]


def test_a_server_of_another_projects_books_is_not_touched(scene):
    scene.world.database.seed(MAPPINGS, InstanceMapping(uuid=SERVERS[0], project_id="p9", cell="c1"))
    assert scene.remap(SERVERS[:2]) == {SERVERS[0]: OTHER_PROJECT, SERVERS[1]: MAPPED}


def test_one_that_is_deleted_meanwhile_is_let_go_again(scene):
    """Its cell's word came before the mapping: there was nothing to release then."""

    def deleted():
        scene.cell[SERVERS[1]] = replace(scene.cell[SERVERS[1]], deleted=True)

    scene.then = deleted
    assert scene.remap(SERVERS[:2]) == {SERVERS[0]: MAPPED, SERVERS[1]: DELETED}
    assert list(scene.rows(MAPPINGS)) == list(scene.rows(USAGES)) == [SERVERS[0]]


def test_refusals(scene):
    with pytest.raises(InvalidRequest):
        scene.remap([])
    with pytest.raises(InvalidRequest):
        scene.remap([str(number) for number in range(SERVERS_MAX + 1)])
    with pytest.raises(CellNotFound):
        scene.remap(cell="c7")
    with pytest.raises(Forbidden):
        scene.remapping.remap(RemapRequest(cell="c1", project_id="p1", uuids=SERVERS), context("c1", "op", "operator"))
    scene.endpoint.up.clear()
    with pytest.raises(Unavailable):
        scene.remap()
    assert scene.rows(MAPPINGS) == {}


def instance(generation, agent_epoch, power_state=POWER_RUNNING):
    return Instance(
        uuid=SERVERS[0], project_id="p1", user_id="u", name="n", flavor=TINY, spec=ServerSpec(),
        generation=generation, agent_epoch=agent_epoch, power_state=power_state,
    )  # fmt: skip


def test_a_row_that_came_back_with_a_restore_is_confirmed_by_a_hosts_report_since():
    former, last = 29_000_000, 29_000_001
    assert confirmed(instance(0, 0, POWER_NOSTATE))
    assert confirmed(instance(1, 7))
    assert not confirmed(instance(in_history(1, last), 7))
    assert not confirmed(instance(in_history(1, last), in_history(7, former)))
    assert confirmed(instance(in_history(1, last), in_history(8, last)))
    assert confirmed(instance(1, in_history(8, last)))


def test_a_host_that_has_no_domain_of_it_confirms_nothing():
    last = 29_000_001
    assert not confirmed(instance(in_history(1, last), in_history(8, last), POWER_NOSTATE))


def test_a_member_of_a_server_group_is_one_again(scene):
    scene.cell[SERVERS[0]] = replace(scene.cell[SERVERS[0]], group_uuid="g")
    scene.remap()
    rows = scene.world.store.fetch(MAPPINGS, [(uuid,) for uuid in SERVERS[:2]])
    assert [rows[(uuid,)].group_uuid for uuid in SERVERS[:2]] == ["g", None]
