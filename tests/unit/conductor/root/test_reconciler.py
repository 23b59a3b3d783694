"""The reconciler's walk over a real ledger: pages, two looks, silent cells, what it counts."""

from contextlib import closing
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from tests.unit.conductor.ledger_world import World
from tests.unit.conductor.root.fakes import FakeEndpoint, FakeLink, context
from zcompute.bus.errors import DeadlineExceeded, InvalidRequest
from zcompute.conductor.root.reconciler import Reconciler, ReconcilerLimits
from zcompute.conductor.root.reconciling import SERVER_ABSENT, SERVER_GONE, USAGE_WITHOUT_SERVER
from zcompute.config import QuotaConfig
from zcompute.db.tables import MAPPINGS, USAGES
from zcompute.objects.build_request import InstanceMapping, Usage
from zcompute.objects.messages.quotas import QuotaReconcileRequest, Standing, StandingReply

LIMITS = ReconcilerLimits(page_rows=3, page_pause_ms=0, look_again_ms=1, margin_ms=0)
SERVERS = [f"{number:08d}-0000-4000-8000-000000000000" for number in range(10)]


class Scene:
    """Ten servers of one project in cell c1, and what the cell says of them."""

    def __init__(self):
        self.world = World()
        self.endpoint = FakeEndpoint()
        self.cell = {uuid: Standing(uuid=uuid, generation=1, cores=1, ram_mb=512) for uuid in SERVERS}
        for uuid in SERVERS:
            self.world.database.seed(USAGES, Usage(uuid=uuid, project_id="p1", cores=1, ram_mb=512))
            self.world.database.seed(MAPPINGS, InstanceMapping(uuid=uuid, project_id="p1", cell="c1"))
        env = SimpleNamespace(
            config=SimpleNamespace(quota=QuotaConfig()), ledger=self.world.ledger, store=self.world.store,
            endpoint=self.endpoint,
        )  # fmt: skip
        self.reconciler = Reconciler(env, LIMITS)
        self.asked = []

    def link(self):
        link = FakeLink("c1")

        def call(method, request, *, timeout_ms):
            self.asked.append(len(request.uuids))
            return StandingReply(servers=[self.cell[uuid] for uuid in request.uuids if uuid in self.cell])

        link.call = call
        self.endpoint.up.append(link)

    def reconcile(self, **fields):
        return self.reconciler.reconcile(QuotaReconcileRequest(**{"rows_max": 1000, **fields}), context())

    def rows(self, table):
        return sorted(key[0] for key in self.world.database.tables[table.name])

    def measures(self):
        return {(m.name, m.labels.get("kind")): m.value for m in self.reconciler.measures() if m.value}

    def close(self):
        self.world.close()


@pytest.fixture
def scene():
    with closing(Scene()) as made:
        yield made


def test_right_books_are_walked_in_pages_and_nothing_is_found(scene):
    scene.link()
    reply = scene.reconcile()
    assert (reply.rows, reply.found, reply.silent, reply.more) == (10, [], [], False)
    assert len(reply.partitions) == 256
    assert max(scene.asked) <= LIMITS.page_rows


def test_a_walk_repairs_and_says_what_is_left(scene):
    scene.link()
    scene.cell[SERVERS[3]] = replace(scene.cell[SERVERS[3]], deleted=True)
    del scene.cell[SERVERS[5]]
    del scene.world.database.tables[MAPPINGS.name][(SERVERS[7],)]
    found = scene.reconciler.walk().found
    assert [(one.kind, one.subject, one.repaired) for one in found] == [
        (SERVER_GONE, SERVERS[3], True),
        (SERVER_ABSENT, SERVERS[5], False),
        (USAGE_WITHOUT_SERVER, SERVERS[7], True),
    ]
    left = [uuid for uuid in SERVERS if uuid not in (SERVERS[3], SERVERS[7])]
    assert scene.rows(USAGES) == scene.rows(MAPPINGS) == left
    measures = scene.measures()
    assert measures[("quota_discrepancies", SERVER_ABSENT)] == 1
    assert measures[("quota_repairs", SERVER_GONE)] == measures[("quota_repairs", USAGE_WITHOUT_SERVER)] == 1
    assert [one.kind for one in scene.reconciler.walk().found] == [SERVER_ABSENT]


def test_what_is_right_at_the_second_look_was_a_race(scene):
    """A server deleted in the cell between the two readings: the root hears of it in the meantime."""
    link = FakeLink("c1")
    words = iter([dict(scene.cell), scene.cell | {SERVERS[0]: replace(scene.cell[SERVERS[0]], owed=True)}])

    def call(method, request, *, timeout_ms):
        if SERVERS[0] not in request.uuids:
            return StandingReply(servers=[scene.cell[uuid] for uuid in request.uuids])
        said = next(words)
        first = replace(said[SERVERS[0]], deleted=True)
        return StandingReply(servers=[first, *(said[uuid] for uuid in request.uuids if uuid != SERVERS[0])])

    link.call = call
    scene.endpoint.up.append(link)
    assert scene.reconcile().found == []
    assert scene.rows(USAGES) == SERVERS


def test_nothing_is_said_of_a_cell_that_does_not_answer(scene):
    assert scene.reconcile().silent == ["c1"]
    scene.endpoint.up.append(FakeLink("c1", answers=[DeadlineExceeded("late")] * 20))
    reply = scene.reconcile()
    assert (reply.silent, reply.found) == (["c1"], [])
    assert scene.rows(USAGES) == SERVERS


def test_steps_go_on_where_the_one_before_ended(scene):
    scene.link()
    del scene.cell[SERVERS[8]]
    rows, found, place = 0, [], {}
    for _ in range(20):
        reply = scene.reconcile(rows_max=2, dry_run=True, **place)
        rows += reply.rows
        found += reply.found
        if not reply.more:
            break
        place = {"partition": reply.partition, "after_uuid": reply.after_uuid}
    assert rows == 10
    assert [one.subject for one in found] == [SERVERS[8]]


def test_a_step_is_bounded(scene):
    with pytest.raises(InvalidRequest):
        scene.reconcile(rows_max=10**6)
