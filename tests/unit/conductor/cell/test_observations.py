import msgspec
import pytest

from tests.unit.conductor.tasks.samples import NOW_US, claiming, new_build, result_of, rows, spawning
from zcompute.conductor.cell.observations import judge_observation, judge_step_result
from zcompute.conductor.cell.reports import OBSERVED
from zcompute.conductor.tasks.build_walk import spawn_ended
from zcompute.conductor.tasks.decision import raise_generation
from zcompute.conductor.tasks.delete_walk import accept_delete
from zcompute.objects.instance import VM_DELETED
from zcompute.objects.report import (
    VERDICT_ALREADY_THERE,
    VERDICT_APPLIED,
    VERDICT_INVALID,
    VERDICT_NOT_YET,
    VERDICT_NOT_YOURS,
    VERDICT_STALE,
    VERDICT_SUPERSEDED,
    Observation,
)


def seen(instance, host="h1", **fields):
    values = {"instance_uuid": instance.uuid, "host": host, "generation": instance.generation, "power_state": 4}
    return Observation(**{**values, **fields})


@pytest.mark.parametrize("fields", [{"power_state": 4, "progress": 7}, {"gone": True}, {"power_state": 1}])
def test_an_observation_changes_nothing_but_what_it_is_said_to_change(fields):
    instance = observed()
    decision = judge_observation(instance, seen(instance, **fields), 3, 1, None).decision
    image = msgspec.structs.replace(decision.instance, updated_at_us=NOW_US, revision=9)
    differs = {name for name in instance.__struct_fields__ if getattr(instance, name) != getattr(image, name)}
    assert differs <= set(OBSERVED)
    assert {"agent_epoch", "observed_seq", "updated_at_us"} <= differs


def observed(epoch=2, seq=10):
    instance, _ = spawning("h1")
    return msgspec.structs.replace(instance, agent_epoch=epoch, observed_seq=seq, generation=3)


@pytest.mark.parametrize(
    ("epoch", "seq", "verdict"),
    [
        (2, 11, VERDICT_APPLIED),
        (3, 1, VERDICT_APPLIED),
        (2, 10, VERDICT_ALREADY_THERE),
        (2, 9, VERDICT_STALE),
        (1, 99, VERDICT_STALE),
    ],
)
def test_order_is_by_epoch_then_sequence(epoch, seq, verdict):
    instance = observed()
    judged = judge_observation(instance, seen(instance), epoch, seq, ())
    assert judged.verdict == verdict
    if verdict == VERDICT_APPLIED:
        after = judged.decision.instance
        assert (after.power_state, after.agent_epoch, after.observed_seq) == (4, epoch, seq)
        assert (after.vm_state, after.task_state, after.host) == (
            instance.vm_state, instance.task_state, instance.host,
        )  # fmt: skip
    else:
        assert judged.decision is None


def test_a_domain_that_is_gone_has_no_power_state():
    instance = observed()
    judged = judge_observation(instance, seen(instance, gone=True), 2, 11, ())
    assert judged.decision.instance.power_state == 0


@pytest.mark.parametrize(
    ("host", "generation", "named", "verdict"),
    [
        ("h1", 4, (), VERDICT_INVALID),
        ("h9", 4, (), VERDICT_INVALID),
        ("h1", 2, (), VERDICT_SUPERSEDED),
        ("h2", 2, ("h2",), VERDICT_NOT_YET),
        ("h2", 3, ("h2",), VERDICT_NOT_YET),
        ("h2", 2, ("h3",), VERDICT_SUPERSEDED),
        ("h2", 0, (), VERDICT_NOT_YOURS),
        ("h2", 3, (), VERDICT_NOT_YOURS),
        ("h2", 2, None, VERDICT_NOT_YET),
    ],
)
def test_only_the_granted_host_observes(host, generation, named, verdict):
    instance = observed()
    judged = judge_observation(instance, seen(instance, host, generation=generation), 9, 99, named)
    assert (judged.verdict, judged.decision) == (verdict, None)


def test_without_a_task_an_unread_one_cannot_hide_a_name():
    instance = msgspec.structs.replace(observed(), task_id=None)
    assert judge_observation(instance, seen(instance, "h2", generation=2), 9, 99, None).verdict == VERDICT_SUPERSEDED


def test_absent_and_deleted_instances():
    instance = observed()
    assert judge_observation(None, seen(instance), 2, 11, None).verdict == VERDICT_NOT_YOURS
    deleted = msgspec.structs.replace(instance, vm_state=VM_DELETED)
    assert judge_observation(deleted, seen(instance), 2, 11, None).verdict == VERDICT_SUPERSEDED


def judge(instance, task, result):
    return judge_step_result(instance, task, result, NOW_US, 60)


def test_the_result_under_way_is_applied_once():
    instance, task = spawning("h1")
    result = result_of(instance, task, "h1")
    judged = judge(instance, task, result)
    assert judged.verdict == VERDICT_APPLIED
    assert judged.decision.ended
    after = judged.decision.instance
    assert judge(after, None, result).verdict == VERDICT_ALREADY_THERE
    assert judge(msgspec.structs.replace(after, vm_state=VM_DELETED, claim=None), None, result).verdict == (
        VERDICT_SUPERSEDED
    )


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({"generation": 0}, VERDICT_SUPERSEDED),
        ({"generation": 2}, VERDICT_INVALID),
        ({"step": "claim"}, VERDICT_SUPERSEDED),
        ({"attempt": 2}, VERDICT_SUPERSEDED),
        ({"host": "h2"}, VERDICT_NOT_YOURS),
    ],
)
def test_any_other_result_changes_nothing(fields, verdict):
    instance, task = spawning("h1")
    judged = judge(instance, task, result_of(instance, task, fields.pop("host", "h1"), **fields))
    assert (judged.verdict, judged.decision) == (verdict, None)


def test_a_result_of_before_the_adoption_is_superseded():
    instance, task = spawning("h1")
    result = result_of(instance, task, "h1")
    adopted = raise_generation(instance, task, NOW_US).instance
    assert judge(adopted, task, result).verdict == VERDICT_SUPERSEDED
    assert judge(adopted, task, result_of(adopted, task, "h1")).verdict == VERDICT_APPLIED


def test_the_build_result_of_a_deleted_build_is_superseded():
    instance, task = spawning("h1")
    result = result_of(instance, task, "h1")
    deleting, _ = rows(
        accept_delete(
            instance, task, project_id="demo", operation_id="o", request_id="", task_id="d", now_us=NOW_US, deadline_s=9
        )
    )
    assert judge(deleting, None, result).verdict == VERDICT_SUPERSEDED


def test_destroy_results_count_from_named_hosts_once():
    instance, task = spawning("h1")
    active = spawn_ended(instance, task, result_of(instance, task, "h1"), NOW_US, 60).instance
    deleting, delete = rows(
        accept_delete(
            active, None, project_id="demo", operation_id="o", request_id="", task_id="d", now_us=NOW_US, deadline_s=9
        )
    )
    assert judge(deleting, delete, result_of(deleting, delete, "h7")).verdict == VERDICT_NOT_YOURS
    assert judge(deleting, delete, result_of(deleting, delete, "h1")).verdict == VERDICT_APPLIED
    delete.body.destroyed.append("h1")
    assert judge(deleting, delete, result_of(deleting, delete, "h1")).verdict == VERDICT_ALREADY_THERE


@pytest.mark.parametrize("stage", [new_build, claiming])
def test_steps_that_wait_for_nothing_take_nothing(stage):
    instance, task = stage()
    assert judge(instance, task, result_of(instance, task, "h1")).verdict == VERDICT_SUPERSEDED
    assert judge(None, None, result_of(instance, task, "h1")).verdict == VERDICT_NOT_YOURS
