import msgspec
import pytest

from tests.unit.conductor.tasks.samples import NOW_US, TASK, claiming, new_build, result_of, rows, spawning
from zcompute.conductor.tasks import build_walk, delete_walk
from zcompute.conductor.tasks.decision import park
from zcompute.objects.errors import InstanceBusy, InstanceNotFound
from zcompute.objects.instance import TASK_DELETING, VM_DELETED, VM_ERROR
from zcompute.objects.report import OUTCOME_FAILED
from zcompute.objects.task import TASK_PARKED, TASK_RUNNING, ClaimName

DELETE = "delete-task"


def accept(instance, task, **fields):
    values = {
        "project_id": "demo", "operation_id": "op-d", "request_id": "req-d", "task_id": DELETE, "now_us": NOW_US,
        "deadline_s": 300,
    }  # fmt: skip
    return delete_walk.accept_delete(instance, task, **{**values, **fields})


def active():
    instance, task = spawning("h1")
    return build_walk.spawn_ended(instance, task, result_of(instance, task, "h1"), NOW_US, 60).instance


def test_an_active_instance_is_destroyed_at_its_host_and_its_claim_owed():
    instance, task = rows(accept(active(), None))
    assert (instance.task_state, instance.task_id, instance.command_generation) == (TASK_DELETING, DELETE, 2)
    assert (task.step, task.body.named_hosts) == (delete_walk.STEP_DESTROY, ["h1"])
    assert task.body.release == [ClaimName(host="h1", task_id=TASK, attempt=1)]
    assert instance.claim == f"{TASK}/1"  # in force until the end: nobody may sweep it while the domain runs


@pytest.mark.parametrize("stage", [new_build, claiming, spawning])
def test_a_running_build_is_replaced_with_all_that_it_may_have_left(stage):
    building, build = stage()
    instance, task = rows(accept(building, build))
    assert instance.task_id == DELETE
    assert instance.command_generation == building.command_generation + 1
    expected = {
        "new_build": (delete_walk.STEP_FINISH, [], []),
        "claiming": (delete_walk.STEP_FINISH, [], [1]),
        "spawning": (delete_walk.STEP_DESTROY, ["h1"], [1]),
    }[stage.__name__]
    assert (task.step, task.body.named_hosts, [name.attempt for name in task.body.release]) == expected


def test_claims_owed_by_the_build_are_taken_over():
    building, build = spawning("h1", "h2")
    failed = result_of(building, build, "h1", OUTCOME_FAILED)
    building, build = rows(build_walk.spawn_ended(building, build, failed, NOW_US, 60))
    _, task = rows(accept(building, build))
    assert {(name.host, name.attempt) for name in task.body.release} == {("h1", 1), ("h2", 2)}


def test_a_repeat_changes_nothing_and_a_parked_delete_is_revived():
    instance, task = rows(accept(active(), None))
    assert accept(instance, task, task_id="another") is None
    parked, parked_task = rows(park(instance, task, "silent", NOW_US))
    assert (parked.vm_state, parked.task_state, parked_task.state) == (VM_ERROR, None, TASK_PARKED)
    revived, revived_task = rows(accept(parked, parked_task, now_us=NOW_US + 5))
    assert (revived.task_state, revived_task.state, revived_task.id) == (TASK_DELETING, TASK_RUNNING, DELETE)
    assert revived_task.deadline_at_us == NOW_US + 5 + 300_000_000


@pytest.mark.parametrize("change", [{"vm_state": VM_DELETED}, {"project_id": "other"}])
def test_deleted_or_foreign_instances_are_not_found(change):
    with pytest.raises(InstanceNotFound):
        accept(msgspec.structs.replace(active(), **change), None)
    with pytest.raises(InstanceNotFound):
        accept(None, None)


def test_a_refusal_on_its_way_and_unknown_kinds_are_busy():
    instance, task = new_build()
    refused = build_walk.refuse_build(instance, task, "c1", "no room", NOW_US).instance
    with pytest.raises(InstanceBusy):
        accept(refused, None)
    with pytest.raises(InstanceBusy):
        accept(instance, msgspec.structs.replace(task, kind="of a later release"))


def test_all_hosts_must_answer_before_claims_are_released():
    instance, task = rows(accept(active(), None))
    task.body.named_hosts.append("h2")
    _, task = rows(
        delete_walk.destroy_ended(instance, task, result_of(instance, task, "h1"), NOW_US, 60), instance, task
    )
    assert (task.step, task.body.destroyed) == (delete_walk.STEP_DESTROY, ["h1"])
    _, task = rows(delete_walk.hosts_are_clean(instance, task, ["h2"], NOW_US, 60), instance, task)
    assert (task.step, task.body.destroyed) == (delete_walk.STEP_FINISH, ["h1", "h2"])


def test_a_failed_destroy_is_a_new_attempt_under_a_new_generation():
    instance, task = rows(accept(active(), None))
    failed = result_of(instance, task, "h1", OUTCOME_FAILED, message="stuck")
    after, task_after = rows(delete_walk.destroy_ended(instance, task, failed, NOW_US, 60))
    assert (after.command_generation, task_after.attempt) == (instance.command_generation + 1, 2)
    assert task_after.body.fault.message == "stuck"


def test_a_late_answer_ends_a_parked_delete():
    instance, task = rows(accept(active(), None))
    instance, task = rows(park(instance, task, "silent", NOW_US))
    after, task_after = rows(
        delete_walk.destroy_ended(instance, task, result_of(instance, task, "h1"), NOW_US, 60), instance, task
    )
    assert (after.task_state, task_after.state, task_after.step) == (
        TASK_DELETING, TASK_RUNNING, delete_walk.STEP_FINISH,
    )  # fmt: skip


def test_the_end_tells_the_root_in_the_same_decision():
    instance, task = rows(accept(active(), None))
    decision = delete_walk.finish_delete(instance, task, NOW_US)
    assert decision.ended
    assert (decision.instance.vm_state, decision.instance.task_id, decision.instance.claim) == (VM_DELETED, None, None)
    assert (decision.outbox.kind, decision.outbox.generation) == (delete_walk.OUTBOX_DELETED, 1)
