from types import SimpleNamespace

import msgspec
import pytest

from tests.unit.conductor.ledger_world import World
from tests.unit.conductor.tasks.samples import NOW_US, TASK, UUID, claiming, host, spawning
from zcompute.conductor.cell.claim_service import Claims
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.cell.settings import CellSettings
from zcompute.config import SchedulerConfig
from zcompute.db.tables import CLAIMS, HOSTS, INSTANCES, TASKS
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import Claim
from zcompute.objects.messages.hosts import ClaimRequest, ReleaseRequest
from zcompute.objects.task import ClaimName

AMOUNTS = Amounts(vcpus=1, memory_mb=512, disk_gb=1)
CONTEXT = SimpleNamespace(remaining_ms=lambda: 2000)


@pytest.fixture
def world():
    made = World()
    made.database.seed(HOSTS, host("h1"))
    env = SimpleNamespace(ledger=made.ledger, store=made.store, config=SimpleNamespace(scheduler=SchedulerConfig()))
    made.table = HostTable()
    made.table.hold(range(256))
    made.claims = Claims(env, made.table, CellSettings())
    yield made
    made.close()


def claim(world, attempt=1, memory_mb=512):
    return world.claims.claim(
        ClaimRequest(
            instance_uuid=UUID, task_id=TASK, attempt=attempt, host="h1",
            amounts=msgspec.structs.replace(AMOUNTS, memory_mb=memory_mb),
        ),
        CONTEXT,
    )  # fmt: skip


def release(world, attempt=1):
    world.claims.release(ReleaseRequest(instance_uuid=UUID, task_id=TASK, attempt=attempt, host="h1"), CONTEXT)


def test_claims_and_releases_change_row_and_host_in_one_commit(world):
    assert claim(world).granted
    assert claim(world).granted
    assert claim(world, 2).granted
    assert world.database.row(HOSTS, ("h1",)).used == AMOUNTS.plus(AMOUNTS)
    release(world)
    release(world)
    assert world.database.row(HOSTS, ("h1",)).used == AMOUNTS
    assert list(world.database.tables["claims"]) == [(UUID, TASK, 2)]
    assert next(iter(world.table)).instances == 1


def test_a_refusal_changes_nothing(world):
    reply = claim(world, memory_mb=4096)
    assert (reply.granted, world.database.tables["claims"]) == (False, {})
    assert "insufficient memory_mb" in reply.reason


def seed_claim(world, attempt=1, age_s=3600):
    world.database.seed(
        CLAIMS,
        Claim(
            instance_uuid=UUID, task_id=TASK, attempt=attempt, host="h1", amounts=AMOUNTS,
            created_at_us=world.ledger.now_us() - age_s * 1_000_000,
        ),
    )  # fmt: skip
    world.database.seed(HOSTS, host("h1", used=AMOUNTS, instances=1))


@pytest.mark.parametrize("stage", ["task", "instance", "owed by another task"])
def test_the_sweeper_leaves_what_is_in_force(world, stage):
    seed_claim(world)
    instance, task = claiming("h1") if stage == "task" else spawning("h1")
    if stage == "owed by another task":
        body = msgspec.structs.replace(task.body, release=[ClaimName(host="h1", task_id=TASK, attempt=1)])
        task = msgspec.structs.replace(task, id="t2", body=body)
        instance = msgspec.structs.replace(instance, claim=None, task_id="t2")
    if stage != "instance":
        world.database.seed(TASKS, task)
    world.database.seed(INSTANCES, instance)
    assert world.claims.sweep() == 0


@pytest.mark.parametrize("seeded", [True, False])
def test_the_sweeper_releases_what_nobody_names(world, seeded):
    seed_claim(world)
    if seeded:
        instance, task = claiming("h1")
        world.database.seed(INSTANCES, instance)
        world.database.seed(TASKS, msgspec.structs.replace(task, attempt=2))
    assert world.claims.sweep() == 1
    assert world.database.tables["claims"] == {}
    assert world.database.row(HOSTS, ("h1",)).used == Amounts()


def test_the_sweeper_leaves_young_claims(world):
    seed_claim(world, age_s=5)
    assert world.claims.sweep() == 0
    assert NOW_US > 0
