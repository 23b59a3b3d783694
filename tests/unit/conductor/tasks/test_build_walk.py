import msgspec

from tests.unit.conductor.tasks.samples import (
    NOW_US,
    TASK,
    build_request,
    claiming,
    new_build,
    result_of,
    rows,
    spawning,
)
from zcompute.conductor.tasks import build_walk as walk
from zcompute.conductor.tasks.decision import park
from zcompute.objects.instance import POWER_SHUTDOWN, TASK_SCHEDULING, TASK_SPAWNING, VM_ACTIVE, VM_BUILDING, VM_ERROR
from zcompute.objects.report import OUTCOME_FAILED
from zcompute.objects.task import TASK_RUNNING, ClaimName


def test_intake_keeps_what_the_client_and_the_root_said():
    instance, task = new_build()
    assert (instance.vm_state, instance.task_state, instance.task_id) == (VM_BUILDING, TASK_SCHEDULING, TASK)
    assert instance.created_at_us == NOW_US - 5
    assert instance.mapping_generation == 1
    assert (task.step, task.operation_id, task.request_id) == (walk.STEP_SCHEDULE, "op", "req-1")
    assert task.deadline_at_us == NOW_US + 300_000_000


def test_the_attempt_is_named_before_its_claim():
    _, task = claiming("h1", "h2", "h3")
    assert (task.step, task.attempt, task.body.host) == (walk.STEP_CLAIM, 1, "h1")
    assert task.body.candidates == ["h2", "h3"]
    assert task.body.named_hosts == ["h1"]


def test_the_switch_is_one_decision_of_host_generation_and_claim():
    instance, task = spawning("h1")
    assert (instance.host, instance.claim, instance.generation) == ("h1", f"{TASK}/1", 1)
    assert (instance.command_generation, instance.task_state, task.step) == (1, TASK_SPAWNING, walk.STEP_SPAWN)


def test_a_result_done_is_active_and_ends_the_task_in_one_decision():
    instance, task = spawning("h1")
    decision = walk.spawn_ended(instance, task, result_of(instance, task, "h1"), NOW_US, 60)
    assert decision.ended
    active = decision.instance
    assert (active.vm_state, active.task_state, active.task_id, active.power_state) == (VM_ACTIVE, None, None, 1)
    assert active.launched_at_us == NOW_US
    assert active.claim == f"{TASK}/1"


def test_a_result_that_comes_behind_a_newer_observation_leaves_what_was_observed():
    instance, task = spawning("h1")
    observed = msgspec.structs.replace(instance, power_state=POWER_SHUTDOWN, agent_epoch=1, observed_seq=3)
    active = walk.spawn_ended(observed, task, result_of(instance, task, "h1"), NOW_US, 60).instance
    assert (active.vm_state, active.power_state) == (VM_ACTIVE, POWER_SHUTDOWN)


def test_a_refused_claim_goes_to_the_next_candidate_and_releases_nothing():
    instance, task = claiming("h1", "h2")
    _, after = rows(walk.claim_refused(instance, task, "full"), instance, task)
    assert (after.step, after.attempt, after.body.host) == (walk.STEP_CLAIM, 2, "h2")
    assert after.body.refused == {"h1": "full"}
    assert after.body.named_hosts == ["h2"]
    assert after.body.release == []


def test_the_last_refused_candidate_goes_back_to_the_scheduler():
    instance, task = claiming("h1")
    _, after = rows(walk.claim_refused(instance, task, "full"), instance, task)
    assert (after.step, after.body.host, after.body.reschedules) == (walk.STEP_SCHEDULE, None, 1)


def test_a_failed_spawn_owes_its_claim_and_tries_the_next_host():
    instance, task = spawning("h1", "h2")
    failed = result_of(instance, task, "h1", OUTCOME_FAILED, message="no image")
    decision = walk.spawn_ended(instance, task, failed, NOW_US, 60)
    after, task_after = rows(decision)
    assert task_after.body.release == [ClaimName(host="h1", task_id=TASK, attempt=1)]
    assert (task_after.step, task_after.attempt, task_after.body.host) == (walk.STEP_CLAIM, 2, "h2")
    assert (after.host, after.claim, after.task_state) == (None, None, TASK_SCHEDULING)
    assert after.generation == 1  # the next grant is one higher: the failed host's is superseded


def test_a_failure_after_parking_ends_in_error_without_another_copy():
    instance, task = spawning("h1", "h2")
    instance, task = rows(park(instance, task, "silent", NOW_US))
    failed = result_of(instance, task, "h1", OUTCOME_FAILED, message="broken")
    after, task_after = rows(walk.spawn_ended(instance, task, failed, NOW_US, 60))
    assert (task_after.step, task_after.state) == (walk.STEP_ABANDON, TASK_RUNNING)
    assert [name.host for name in task_after.body.release] == ["h1"]
    assert (after.vm_state, after.host, after.claim, after.fault.message) == (VM_ERROR, None, None, "broken")
    end = walk.end_abandoned(after)
    assert end.ended
    assert end.instance.task_id is None


def test_a_success_after_parking_is_active_without_fault():
    instance, task = spawning("h1")
    instance, task = rows(park(instance, task, "silent", NOW_US))
    assert (instance.vm_state, instance.task_state, instance.claim) == (VM_ERROR, None, f"{TASK}/1")
    decision = walk.spawn_ended(instance, task, result_of(instance, task, "h1"), NOW_US, 60)
    assert (decision.instance.vm_state, decision.instance.fault, decision.ended) == (VM_ACTIVE, None, True)


def test_a_refusal_carries_the_whole_request_back_and_waits_for_the_root():
    instance, task = new_build()
    decision = walk.refuse_build(instance, task, "c1", "no room", NOW_US)
    assert decision.ended
    entry = decision.outbox
    assert (entry.kind, entry.generation, entry.reason) == (walk.OUTBOX_REFUSED, 1, "no room")
    assert entry.build_request == build_request()
    assert walk.refusal_pending(decision.instance)
    assert not walk.refusal_pending(instance)


def test_the_reason_names_filters_and_hosts_and_stays_short():
    _, task = claiming("h1")
    assert "scheduler knows no host" in walk.refusal_reason(task.body, {})
    for number in range(8):
        task.body.refused[f"h{number}"] = "full"
    reason = walk.refusal_reason(task.body, {"RamFilter": 3, "DiskFilter": 0})
    assert "RamFilter turned away 3 hosts" in reason
    assert "DiskFilter" not in reason
    assert "3 hosts more refused" in reason
