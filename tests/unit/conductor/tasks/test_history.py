"""Every operation has one action, every step that ended one event, and each phase is told once, in order."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.unit.conductor.cell.cell_world import QUICK, CellWorld
from tests.unit.conductor.ledger_world import wait_for
from zcompute.conductor.tasks.history import step_under_way
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, INSTANCE_ACTIONS, INSTANCES
from zcompute.objects.base import unpack
from zcompute.objects.history import RESULT_ERROR, RESULT_SUCCESS, InstanceAction
from zcompute.objects.instance import TASK_DELETING, TASK_SPAWNING, VM_ACTIVE, VM_BUILDING, VM_DELETED, VM_ERROR
from zcompute.objects.notification import Notification, payload_document
from zcompute.objects.partition import partition_of
from zcompute.objects.report import VERDICT_APPLIED


@pytest.fixture
def make() -> Iterator[Any]:
    worlds: list[CellWorld] = []

    def build(*hosts: str, **fields: Any) -> CellWorld:
        worlds.append(CellWorld(*hosts, **fields))
        return worlds[-1]

    yield build
    for world in worlds:
        world.close()


def actions(world: CellWorld) -> list[InstanceAction]:
    rows = world.database.tables["instance_actions"].values()
    return sorted((INSTANCE_ACTIONS.from_row(row) for row in rows), key=lambda action: action.started_at_us)


def events(world: CellWorld) -> list[tuple[str, int, str, str]]:
    rows = [INSTANCE_ACTION_EVENTS.from_row(row) for row in world.database.tables["instance_action_events"].values()]
    assert all(row.started_at_us <= row.finished_at_us for row in rows)
    rows.sort(key=lambda row: (row.finished_at_us, row.attempt))
    return [(row.event, row.attempt, row.host, row.result) for row in rows]


def told(world: CellWorld, *, updates: bool = False) -> list[str]:
    """Event types in the order of their numbers."""
    rows = sorted(world.database.tables["notifications"].values())
    return [row[3] for row in rows if updates or row[3] != "instance.update"]


def documents(world: CellWorld, event_type: str) -> list[tuple[Notification, dict[str, Any]]]:
    rows = sorted(world.database.tables["notifications"].values())
    found = [unpack(row[5], Notification) for row in rows if row[3] == event_type]
    return [(body, payload_document(body.payload)["data"]) for body in found]


def test_a_boot_is_one_action_with_an_event_a_step(make: Any) -> None:
    world = make("h1")
    uuid = world.build()
    world.build()
    world.wait_state(uuid, VM_ACTIVE)
    (action,) = actions(world)
    assert (action.action, action.operation_id, action.request_id) == ("create", "op", "req-1")
    assert (action.user_id, action.project_id, action.result, action.message) == ("u", "demo", RESULT_SUCCESS, "")
    assert action.finished_at_us is not None
    assert events(world) == [
        ("build_schedule", 0, "", RESULT_SUCCESS),
        ("build_claim", 1, "h1", RESULT_SUCCESS),
        ("build_spawn", 1, "h1", RESULT_SUCCESS),
    ]
    assert told(world) == ["instance.create.start", "instance.create.end"]
    states = [
        (data["state_update"]["old_state"], data["state"], data["task_state"], data["power_state"])
        for _, data in documents(world, "instance.update")
    ]
    assert states == [
        (None, VM_BUILDING, "scheduling", "pending"),
        (VM_BUILDING, VM_BUILDING, "spawning", "pending"),
        (VM_BUILDING, VM_ACTIVE, None, "running"),
    ]
    assert told(world, updates=True)[-2:] == ["instance.update", "instance.create.end"]
    ((end, data),) = documents(world, "instance.create.end")
    assert (end.request_id, end.project_id, end.publisher_id, end.priority) == ("req-1", "demo", "conductor:c1", "INFO")
    assert (data["host"], data["flavor"]["name"], data["fault"]) == ("h1", "m1.tiny", None)


def test_refused_claims_are_events_that_failed(make: Any) -> None:
    world = make("h1", "h2", "h3")
    world.full = {"h1", "h2"}
    world.wait_state(world.build(), VM_ACTIVE)
    assert events(world)[1:] == [
        ("build_claim", 1, "h1", RESULT_ERROR),
        ("build_claim", 2, "h2", RESULT_ERROR),
        ("build_claim", 3, "h3", RESULT_SUCCESS),
        ("build_spawn", 3, "h3", RESULT_SUCCESS),
    ]
    assert told(world) == ["instance.create.start", "instance.create.end"]


def test_a_spawn_that_failed_is_told_and_tried_elsewhere(make: Any) -> None:
    world = make("h1", "h2")
    world.agents["h1"].broken = True
    world.wait_state(world.build(), VM_ACTIVE)
    assert ("build_spawn", 1, "h1", RESULT_ERROR) in events(world)
    create = "instance.create."
    assert told(world) == [create + "start", create + "error", create + "start", create + "end"]
    ((error, data),) = documents(world, create + "error")
    assert (error.priority, data["fault"]["exception_message"]) == ("ERROR", "broken")
    assert actions(world)[0].result == RESULT_SUCCESS


def test_a_build_without_hosts_ends_its_action_with_the_reason(make: Any) -> None:
    world = make("h1")
    world.full = {"h1"}
    world.build()
    wait_for(lambda: world.owed)
    (action,) = actions(world)
    assert action.result == RESULT_ERROR
    assert "h1: full" in action.message
    assert events(world)[-1][:1] == ("build_schedule",)
    assert told(world) == []


def test_a_build_that_comes_back_from_another_cell_is_the_same_action_again(make: Any) -> None:
    world = make("h1")
    world.full = {"h1"}
    uuid = world.build()
    wait_for(lambda: world.owed)
    row = world.instance(uuid)
    gone = msgspec.structs.replace(row, vm_state=VM_DELETED, revision=row.revision + 1)
    world.ledger.commit(
        partition_of(uuid),
        [(INSTANCES, (uuid,))],
        lambda change: change.put(INSTANCES, gone),
        timeout_ms=1000,
    )
    world.full = set()
    world.build(generation=2)
    world.wait_state(uuid, VM_ACTIVE)
    (action,) = actions(world)
    assert (action.result, action.message) == (RESULT_SUCCESS, "")
    assert [event[0] for event in events(world)].count("build_schedule") == 3


def test_each_delete_is_an_action_of_its_own_and_a_repeat_adds_nothing(make: Any) -> None:
    world = make("h1")
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    agent = world.agents["h1"]
    agent.silent = True
    world.delete(uuid)
    world.delete(uuid)
    world.delete(uuid, operation_id="another")
    world.wait_state(uuid, VM_ACTIVE, TASK_DELETING)
    wait_for(lambda: agent.named("destroy"))
    agent.finish("destroy", agent.named("destroy")[-1])
    world.wait_state(uuid, VM_DELETED)
    assert [(each.action, each.operation_id, each.result) for each in actions(world)] == [
        ("create", "op", RESULT_SUCCESS),
        ("delete", "op-d", RESULT_SUCCESS),
        ("delete", "another", RESULT_SUCCESS),
    ]
    assert events(world)[-2:] == [
        ("delete_destroy", 1, "h1", RESULT_SUCCESS),
        ("delete_finish", 1, "h1", RESULT_SUCCESS),
    ]
    assert told(world)[2:] == ["instance.delete.start", "instance.delete.end"]


def test_a_delete_ends_the_build_that_it_interrupts(make: Any) -> None:
    world = make("h1")
    world.agents["h1"].silent = True
    uuid = world.build()
    world.wait_state(uuid, VM_BUILDING, TASK_SPAWNING)
    world.agents["h1"].silent = False
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)
    results = {each.action: (each.result, each.message) for each in actions(world)}
    assert results["delete"] == (RESULT_SUCCESS, "")
    assert results["create"] == (RESULT_ERROR, "the server was deleted while it was built")
    assert ("build_spawn", 1, "h1", RESULT_ERROR) in events(world)
    create, delete = "instance.create.", "instance.delete."
    assert told(world) == [create + "start", create + "error", delete + "start", delete + "end"]


def test_a_result_that_comes_before_its_task_was_read_is_decided_all_the_same(make: Any) -> None:
    world = make("h1")
    agent = world.agents["h1"]
    agent.silent = True
    uuid = world.build()
    wait_for(lambda: agent.named("spawn"))
    world.engine.lose([partition_of(uuid)])
    world.ledger._cache.clear()
    agent.finish("spawn", agent.named("spawn")[-1])
    world.wait_state(uuid, VM_ACTIVE)
    wait_for(lambda: agent.verdicts == [VERDICT_APPLIED])
    assert actions(world)[0].result == RESULT_SUCCESS


def test_a_parked_build_is_told_once_and_its_end_is_told_when_it_comes(make: Any) -> None:
    world = make("h1", settings=replace(QUICK, build_deadline_s=1))
    agent = world.agents["h1"]
    agent.silent = True
    uuid = world.build()
    world.wait_state(uuid, VM_ERROR)
    assert told(world) == ["instance.create.start", "instance.create.error"]
    assert actions(world)[0].finished_at_us is None
    under_way = step_under_way(world.task(uuid))
    assert (under_way.event, under_way.attempt, under_way.host) == ("build_spawn", 1, "h1")
    assert under_way.started_at_us > 0
    agent.finish("spawn", agent.named("spawn")[-1])
    world.wait_state(uuid, VM_ACTIVE)
    assert told(world)[2:] == ["instance.create.end"]
