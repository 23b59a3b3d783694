"""Actions of one server at its owner: what each state allows, what comes of it, and what a death in between changes."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.unit.conductor.cell.cell_world import CellWorld
from tests.unit.conductor.ledger_world import wait_for
from zcompute.bus.errors import InvalidRequest
from zcompute.db.tables import INSTANCE_ACTIONS, NOTIFICATIONS
from zcompute.objects import instance as states
from zcompute.objects.actions import ACTIONS, LOCK, REBUILD, RESET_STATE, SOFT_DELETE, STOP, UNLOCK, Action
from zcompute.objects.command import StepArguments
from zcompute.objects.errors import ActionForbidden, InstanceBusy, InstanceLocked, InstanceNotFound, OperationConflict
from zcompute.objects.instance import (
    POWER_SHUTDOWN,
    TASK_POWERING_OFF,
    VM_ACTIVE,
    VM_DELETED,
    VM_ERROR,
    VM_STOPPED,
)
from zcompute.objects.report import Observation
from zcompute.objects.task import TASK_PARKED

VM_STATES = sorted(value for name, value in vars(states).items() if name.startswith("VM_") and value != VM_DELETED)
VERBS = [action for action in ACTIONS.values() if action.verb and action is not SOFT_DELETE]


@pytest.fixture
def world() -> Iterator[CellWorld]:
    world = CellWorld("h1")
    yield world
    world.close()


@pytest.fixture
def one(world: CellWorld) -> str:
    """A server that runs on h1."""
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    return uuid


def history(world: CellWorld, uuid: str, operation_id: str):
    return world.database.row(INSTANCE_ACTIONS, (uuid, operation_id))


def told(world: CellWorld, uuid: str) -> list[str]:
    rows = [NOTIFICATIONS.from_row(row) for _, row in sorted(world.database.tables[NOTIFICATIONS.name].items())]
    return [row.event_type for row in rows if row.instance_uuid == uuid and row.event_type != "instance.update"]


@pytest.mark.parametrize("vm_state", VM_STATES)
@pytest.mark.parametrize("action", VERBS, ids=lambda action: action.key)
def test_an_action_begins_in_the_states_of_its_row_and_is_refused_in_all_others(
    world: CellWorld, one: str, action: Action, vm_state: str
) -> None:
    world.put(one, vm_state=vm_state)
    if vm_state in action.vm_states:
        arguments = StepArguments(image_ref="an-image") if action.makes_image else StepArguments()
        world.act(one, action.key, arguments=arguments)
        stays = (action is REBUILD and vm_state == VM_STOPPED) or not action.vm_state
        world.wait_state(one, vm_state if stays else action.vm_state)
        wait_for(lambda: world.task(one) is None)
        assert world.agents["h1"].verbs == [action.verb]
        assert world.task(one) is None
        return
    with pytest.raises(InstanceBusy) as refused:
        world.act(one, action.key)
    expected = f"Cannot '{action.name}' instance {one} while it is in vm_state {vm_state}"
    assert str(refused.value) == expected
    assert world.instance(one).vm_state == vm_state
    assert world.agents["h1"].verbs == []


@pytest.mark.parametrize("action", VERBS, ids=lambda action: action.key)
def test_no_action_begins_while_another_task_is_under_way(world: CellWorld, one: str, action: Action) -> None:
    world.agents["h1"].silent = True
    world.act(one, STOP.key)
    world.wait_state(one, VM_ACTIVE, TASK_POWERING_OFF)
    with pytest.raises(InstanceBusy, match=f"'{action.name}'.*(task_state powering-off|vm_state active)"):
        world.act(one, action.key)


def test_a_lock_keeps_everybody_but_administrators_from_acting(world: CellWorld, one: str) -> None:
    world.act(one, LOCK.key, reason="mine")
    assert (world.instance(one).locked, world.instance(one).locked_reason) == (True, "mine")
    with pytest.raises(InstanceBusy, match=f"Instance {one} is locked"):
        world.act(one, STOP.key)
    world.act(one, STOP.key, administrator=True)
    world.wait_state(one, VM_STOPPED)
    world.act(one, UNLOCK.key)
    assert (world.instance(one).locked, world.instance(one).locked_reason) == (False, None)
    world.act(one, "start")
    world.wait_state(one, VM_ACTIVE)
    assert told(world, one)[2:] == [
        "instance.lock", "instance.power_off.start", "instance.power_off.end", "instance.unlock",
        "instance.power_on.start", "instance.power_on.end",
    ]  # fmt: skip


def test_a_locked_server_is_deleted_by_administrators_only(world: CellWorld, one: str) -> None:
    world.act(one, LOCK.key)
    with pytest.raises(InstanceLocked):
        world.delete(one)
    with pytest.raises(InstanceNotFound):
        world.delete(one, project_id="other")
    world.delete(one, administrator=True)
    world.wait_state(one, VM_DELETED)


def test_an_administrators_lock_is_not_the_users_to_take_away(world: CellWorld, one: str) -> None:
    world.act(one, LOCK.key, administrator=True)
    world.act(one, LOCK.key, reason="mine too")
    with pytest.raises(ActionForbidden):
        world.act(one, UNLOCK.key)
    assert world.instance(one).locked
    world.act(one, UNLOCK.key, administrator=True)
    world.act(one, LOCK.key)
    world.act(one, UNLOCK.key)
    assert not world.instance(one).locked


def test_the_history_has_novas_name_the_host_and_the_end(world: CellWorld, one: str) -> None:
    world.act(one, "reboot_hard", operation_id="op-1")
    wait_for(lambda: history(world, one, "op-1").finished_at_us)
    found = history(world, one, "op-1")
    assert (found.action, found.result, found.request_id) == ("reboot", "Success", "req-1")
    world.act(one, LOCK.key, operation_id="op-2")
    assert (history(world, one, "op-2").action, history(world, one, "op-2").result) == ("lock", "Success")


def test_an_action_asked_for_twice_is_done_once_and_its_id_is_no_other_actions(world: CellWorld, one: str) -> None:
    world.act(one, STOP.key, operation_id="op-1")
    world.wait_state(one, VM_STOPPED)
    world.act(one, STOP.key, operation_id="op-1")
    with pytest.raises(OperationConflict):
        world.act(one, "start", operation_id="op-1")
    assert world.agents["h1"].verbs == ["stop"]
    assert world.instance(one).vm_state == VM_STOPPED


def test_what_the_hypervisor_refuses_leaves_the_server_as_it_was_and_its_history_says_why(
    world: CellWorld, one: str
) -> None:
    world.agents["h1"].broken = True
    world.act(one, STOP.key, operation_id="op-1")
    wait_for(lambda: history(world, one, "op-1").finished_at_us)
    found, row = history(world, one, "op-1"), world.instance(one)
    assert (found.result, found.message) == ("Error", "broken")
    assert (row.vm_state, row.task_state, row.task_id, row.fault) == (VM_ACTIVE, None, None, None)


def test_a_rebuild_takes_its_image_when_it_is_done_and_its_name_at_once(world: CellWorld, one: str) -> None:
    agent = world.agents["h1"]
    agent.silent = True
    arguments = StepArguments(image_ref="new")
    world.act(one, REBUILD.key, arguments=arguments, name="renamed", metadata={"a": "b"}, operation_id="op-1")
    wait_for(lambda: agent.named("step"))
    row = world.instance(one)
    assert (row.name, row.spec.metadata, row.spec.image_ref) == ("renamed", {"a": "b"}, "")
    agent.finish("step", agent.named("step")[-1])
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.spec.image_ref, row.name) == ("new", "renamed")
    assert told(world, one)[2:] == ["instance.rebuild.start", "instance.rebuild.end"]


def test_a_reboot_that_failed_is_told_as_novas(world: CellWorld, one: str) -> None:
    world.agents["h1"].broken = True
    world.act(one, "reboot_hard", operation_id="op-1")
    wait_for(lambda: history(world, one, "op-1").finished_at_us)
    assert told(world, one)[2:] == ["instance.reboot.start", "instance.reboot.error"]


def test_an_agent_of_an_older_release_is_a_definite_no(world: CellWorld, one: str) -> None:
    world.agents["h1"].old = True
    world.act(one, STOP.key, operation_id="op-1")
    wait_for(lambda: history(world, one, "op-1").finished_at_us)
    assert "older release" in history(world, one, "op-1").message
    assert world.instance(one).vm_state == VM_ACTIVE


def test_a_verb_that_the_agent_does_not_know_is_a_definite_no(world: CellWorld, one: str) -> None:
    world.agents["h1"].unknown.add(STOP.verb)
    world.act(one, STOP.key, operation_id="op-1")
    wait_for(lambda: history(world, one, "op-1").finished_at_us)
    assert "the agent of host h1 refuses it: expected another verb" in history(world, one, "op-1").message
    assert world.instance(one).vm_state == VM_ACTIVE


def test_a_host_that_was_told_nothing_and_is_away_fails_the_action(world: CellWorld, one: str) -> None:
    world.agents["h1"].up = False
    world.act(one, STOP.key, operation_id="op-1")
    wait_for(lambda: history(world, one, "op-1").finished_at_us)
    assert "host h1 is not linked" in history(world, one, "op-1").message
    assert world.instance(one).vm_state == VM_ACTIVE


def test_a_word_that_comes_late_changes_no_power_state_that_was_observed(world: CellWorld, one: str) -> None:
    agent = world.agents["h1"]
    agent.silent = True
    world.act(one, STOP.key)
    wait_for(lambda: agent.named("step"))
    row = world.instance(one)
    agent.report(Observation(instance_uuid=one, host="h1", generation=row.generation, power_state=POWER_SHUTDOWN))
    wait_for(lambda: world.instance(one).power_state == POWER_SHUTDOWN)
    agent.finish("step", agent.named("step")[-1])
    assert world.wait_state(one, VM_STOPPED).power_state == POWER_SHUTDOWN


def test_a_server_that_was_never_active_is_refused_what_needs_a_host(world: CellWorld, one: str) -> None:
    world.put(one, vm_state=VM_ERROR, launched_at_us=None)
    with pytest.raises(InstanceBusy, match="which has never been active"):
        world.act(one, STOP.key)
    world.put(one, vm_state=VM_ERROR, launched_at_us=1, host=None)
    with pytest.raises(InstanceBusy, match="is not ready"):
        world.act(one, STOP.key)


def test_what_is_for_administrators_is_refused_to_others(world: CellWorld, one: str) -> None:
    with pytest.raises(ActionForbidden, match="Policy doesn't allow"):
        world.act(one, RESET_STATE.key, vm_state=VM_ACTIVE)


def test_another_owner_adopts_the_server_and_does_the_action(world: CellWorld, one: str) -> None:
    agent = world.agents["h1"]
    agent.silent = True
    world.act(one, STOP.key)
    wait_for(lambda: agent.verbs)
    agent.silent = False
    world.lose_and_regain(one)
    world.wait_state(one, VM_STOPPED)
    generations = [order.generation for name, order in agent.commands if name in ("adopt", "step")]
    assert generations == sorted(generations)
    assert len(agent.named("adopt")) == 1


def test_a_silent_host_parks_the_action_and_its_late_word_ends_it(world: CellWorld, one: str) -> None:
    agent = world.agents["h1"]
    agent.silent = True
    world.act(one, STOP.key)
    wait_for(lambda: agent.named("step"))
    world.engine._runs[one].deadline = 0.0
    world.engine._runs[one].changed.set()
    wait_for(lambda: (task := world.task(one)) is not None and task.state == TASK_PARKED)
    assert world.instance(one).vm_state == VM_ERROR
    assert world.instance(one).task_state is None
    with pytest.raises(InstanceBusy):
        world.act(one, "reboot_hard")
    agent.finish("stop", agent.named("step")[-1])
    world.wait_state(one, VM_STOPPED)
    assert world.instance(one).fault is None


def test_a_host_that_is_forced_down_meanwhile_is_not_waited_for(world: CellWorld, one: str) -> None:
    agent = world.agents["h1"]
    agent.silent = True
    world.act(one, STOP.key, operation_id="op-1")
    wait_for(lambda: agent.named("step"))
    agent.up = False
    world.commands.detach("h1", agent)
    world.forced.add("h1")
    world.commands.force_down("h1", True)
    wait_for(lambda: history(world, one, "op-1").finished_at_us)
    assert "forced down" in history(world, one, "op-1").message
    assert world.instance(one).vm_state == VM_ACTIVE


def test_a_delete_takes_the_place_of_an_action_and_destroys_at_its_host(world: CellWorld, one: str) -> None:
    agent = world.agents["h1"]
    agent.silent = True
    world.act(one, STOP.key, operation_id="op-1")
    wait_for(lambda: agent.named("step"))
    agent.silent = False
    world.delete(one)
    world.wait_state(one, VM_DELETED)
    assert (history(world, one, "op-1").result, agent.domains, world.claims) == ("Error", set(), {})
    agent.finish("stop", agent.named("step")[-1])  # a late word changes nothing
    assert world.instance(one).vm_state == VM_DELETED


def test_an_administrator_resets_a_state_but_never_under_a_task(world: CellWorld, one: str) -> None:
    world.act(one, RESET_STATE.key, vm_state=VM_ERROR, administrator=True)
    assert world.instance(one).vm_state == VM_ERROR
    assert world.instance(one).fault is not None
    world.act(one, RESET_STATE.key, vm_state=VM_ACTIVE, administrator=True)
    assert (world.instance(one).vm_state, world.instance(one).fault) == (VM_ACTIVE, None)
    with pytest.raises(InvalidRequest, match=r"expected a state of active, error, found .deleted."):
        world.act(one, RESET_STATE.key, vm_state=VM_DELETED, administrator=True)
    world.agents["h1"].silent = True
    world.act(one, STOP.key)
    with pytest.raises(InstanceBusy, match="has not ended"):
        world.act(one, RESET_STATE.key, vm_state=VM_ACTIVE, administrator=True)


def test_absent_foreign_and_deleted_servers_are_not_found_and_unknown_actions_are_named(
    world: CellWorld, one: str
) -> None:
    with pytest.raises(InstanceNotFound):
        world.act(str(uuid4()), STOP.key)
    with pytest.raises(InstanceNotFound):
        world.act(one, STOP.key, project_id="other")
    with pytest.raises(InvalidRequest, match="explode"):
        world.act(one, "explode")
    world.delete(one)
    world.wait_state(one, VM_DELETED)
    with pytest.raises(InstanceNotFound):
        world.act(one, STOP.key)
