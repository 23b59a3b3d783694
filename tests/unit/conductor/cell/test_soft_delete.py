"""Deletes that can be taken back: what they do, what they refuse, and when the server goes for good."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.unit.conductor.cell.cell_world import CellWorld
from tests.unit.conductor.cell.test_moves import held, migrated, move
from tests.unit.conductor.ledger_world import wait_for
from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.cell.reclaim import Reclaim
from zcompute.conductor.cell.settings import CellSettings
from zcompute.db.tables import INSTANCE_ACTIONS
from zcompute.objects.actions import LOCK, RESTORE, SOFT_DELETE, STOP
from zcompute.objects.errors import InstanceBusy, InstanceLocked, InstanceNotFound
from zcompute.objects.instance import TASK_SOFT_DELETING, VM_ACTIVE, VM_DELETED, VM_ERROR, VM_RESIZED, VM_SOFT_DELETED
from zcompute.objects.task import TASK_PARKED

HOUR_S = 3600


@pytest.fixture
def world() -> Iterator[CellWorld]:
    world = CellWorld("h1", reclaims=True)
    yield world
    world.close()


@pytest.fixture
def one(world: CellWorld) -> str:
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    return uuid


def reclaim(world: CellWorld, uuid: str, interval_s: int = HOUR_S) -> Reclaim:
    """Over a store that finds this very server, whatever it is by now."""
    found = world.instance(uuid)

    def expired(table, partition, column, before_us, limit):
        assert (column, limit) == ("soft_deleted_at_us", CellSettings().reclaim_rows_max)
        return [found] if partition in world.ledger.owned()[:1] else []

    store = SimpleNamespace(expired=expired)
    return Reclaim(world.ledger, store, interval_s, CellSettings(), world.instances.reclaim)


def soft_deleted(world: CellWorld, uuid: str):
    world.delete(uuid)
    return world.wait_state(uuid, VM_SOFT_DELETED)


def test_a_soft_delete_stops_the_server_and_keeps_it(world: CellWorld, one: str) -> None:
    agent = world.agents["h1"]
    agent.silent = True
    world.delete(one)
    assert world.instance(one).task_state == TASK_SOFT_DELETING
    wait_for(lambda: agent.verbs)
    agent.finish("step", agent.named("step")[-1])
    row = world.wait_state(one, VM_SOFT_DELETED)
    assert row.soft_deleted_at_us is not None
    assert row.deleted_at_us is None
    assert (agent.verbs, agent.domains, len(world.claims)) == (["stop"], {one}, 1)
    done = world.database.row(INSTANCE_ACTIONS, (one, "op-d"))
    assert (done.action, done.result) == ("delete", "Success")


def test_a_repeat_and_another_delete_of_it_change_nothing(world: CellWorld, one: str) -> None:
    before = soft_deleted(world, one)
    world.delete(one)
    world.delete(one, operation_id="op-2")
    assert world.instance(one) == before
    assert world.agents["h1"].verbs == ["stop"]
    assert world.database.row(INSTANCE_ACTIONS, (one, "op-2")).result == "Success"


def test_a_restored_server_runs_and_is_not_reclaimed(world: CellWorld, one: str) -> None:
    soft_deleted(world, one)
    sweep = reclaim(world, one, 0)
    world.act(one, RESTORE.key)
    row = world.wait_state(one, VM_ACTIVE)
    assert row.soft_deleted_at_us is None
    sweep.look()
    assert world.instance(one) == row
    assert world.agents["h1"].verbs == ["stop", "start"]


def test_a_restored_server_whose_move_waits_can_still_be_confirmed_and_reverted() -> None:
    world = CellWorld("h1", "h2", reclaims=True)
    try:
        uuid = world.build()
        world.wait_state(uuid, VM_ACTIVE)
        migrated(world, uuid)
        soft_deleted(world, uuid)
        world.act(uuid, RESTORE.key)
        assert world.wait_state(uuid, VM_RESIZED).resized_at_us is not None
        move(world, uuid, "revert_resize")
        assert world.wait_state(uuid, VM_ACTIVE).host == "h1"
        assert held(world) == ["h1"]
    finally:
        world.close()


def test_a_server_is_reclaimed_when_its_time_is_over_and_not_before(world: CellWorld, one: str) -> None:
    soft_deleted(world, one)
    reclaim(world, one).look()
    assert world.instance(one).vm_state == VM_SOFT_DELETED
    world.put(one, soft_deleted_at_us=world.ledger.now_us() - 2 * HOUR_S * 1_000_000, locked=True)
    reclaim(world, one).look()
    row = world.wait_state(one, VM_DELETED)
    assert row.soft_deleted_at_us is None
    assert (world.agents["h1"].domains, world.claims) == (set(), {})


def test_a_forced_delete_does_not_wait(world: CellWorld, one: str) -> None:
    soft_deleted(world, one)
    world.delete(one, force=True, operation_id="op-f")
    world.wait_state(one, VM_DELETED)


def test_a_soft_delete_breaks_no_other_task_off_but_a_parked_one_goes_at_once(world: CellWorld, one: str) -> None:
    agent = world.agents["h1"]
    agent.silent = True
    world.act(one, STOP.key)
    with pytest.raises(InstanceBusy, match=r"'delete'.*task_state powering-off"):
        world.delete(one)
    wait_for(lambda: agent.named("step"))
    world.engine._runs[one].deadline = 0.0
    world.engine._runs[one].changed.set()
    wait_for(lambda: (task := world.task(one)) is not None and task.state == TASK_PARKED)
    agent.silent = False
    world.delete(one)
    world.wait_state(one, VM_DELETED)


def test_what_was_never_active_goes_at_once(world: CellWorld, one: str) -> None:
    world.put(one, vm_state=VM_ERROR, launched_at_us=None)
    world.delete(one)
    world.wait_state(one, VM_DELETED)


def test_a_lock_holds_and_the_manner_is_not_asked_for_as_an_action(world: CellWorld, one: str) -> None:
    with pytest.raises(InvalidRequest):
        world.act(one, SOFT_DELETE.key)
    world.act(one, LOCK.key)
    with pytest.raises(InstanceLocked):
        world.delete(one)
    with pytest.raises(InstanceNotFound):
        world.delete(one, project_id="other")
    assert world.instance(one).vm_state == VM_ACTIVE


def test_what_the_hypervisor_refuses_leaves_the_server_as_it_was(world: CellWorld, one: str) -> None:
    world.agents["h1"].broken = True
    world.delete(one)
    wait_for(lambda: world.database.row(INSTANCE_ACTIONS, (one, "op-d")).finished_at_us)
    row = world.instance(one)
    assert (row.vm_state, row.soft_deleted_at_us) == (VM_ACTIVE, None)
