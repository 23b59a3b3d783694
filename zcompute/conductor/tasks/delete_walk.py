"""The decisions of a delete: pure. Steps: destroy (at every host that may have the instance) -> finish."""

import msgspec

from zcompute.conductor.tasks.build_walk import HOST_TOLD, refusal_pending
from zcompute.conductor.tasks.decision import CREATE_ERROR, DELETE_END, DELETE_START, Decision, make_fault
from zcompute.conductor.tasks.moves.plans import PLANS
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.errors import InstanceBusy, InstanceNotFound
from zcompute.objects.instance import POWER_NOSTATE, TASK_DELETING, VM_DELETED, VM_ERROR, Instance
from zcompute.objects.report import OUTCOME_DONE, StepResult
from zcompute.objects.task import (
    CROSSING_KINDS,
    TASK_ACT,
    TASK_BUILD,
    TASK_DELETE,
    TASK_PARKED,
    TASK_RUNNING,
    ClaimName,
    Task,
    TaskBody,
)

STEP_DESTROY = "destroy"
STEP_FINISH = "finish"

OUTBOX_DELETED = "deleted"
PRE_EMPTED = frozenset({TASK_BUILD, TASK_ACT, *PLANS}) - CROSSING_KINDS
REASON_DELETED = "the server was deleted while it was built"
REASON_PRE_EMPTED = "the server was deleted meanwhile"


def accept_delete(
    instance: Instance | None,
    task: Task | None,
    *,
    project_id: str,
    operation_id: str,
    request_id: str,
    task_id: str,
    now_us: int,
    deadline_s: int,
) -> Decision | None:
    """Take a delete in. None: it is under way already, nothing to do.

    A task under way is pre-empted: the delete task takes its place in the same commit, with the hosts that may have the
    instance and the claims to be released.
    Raises InstanceNotFound for an absent, deleted or other project's instance, InstanceBusy while a refusal is on its
    way to the root, or for a task that this release does not know.
    """
    if instance is None or instance.vm_state == VM_DELETED or instance.project_id != project_id:
        uuid = "" if instance is None else instance.uuid
        raise InstanceNotFound("no such instance in this cell", uuid=uuid)
    if refusal_pending(instance):
        raise _busy(instance, "its build was refused here and is being handed back to the root cell: try again")
    deadline_at_us = now_us + deadline_s * 1_000_000
    if task is not None and task.kind == TASK_DELETE:
        return _revive(instance, task, deadline_at_us) if task.state == TASK_PARKED else None
    if task is not None and task.kind not in PRE_EMPTED:
        raise _busy(instance, f"a task of kind {task.kind} is under way: try again")
    body = _leftovers(instance, task)
    fresh = Task(
        id=task_id,
        instance_uuid=instance.uuid,
        kind=TASK_DELETE,
        step=STEP_DESTROY if body.named_hosts else STEP_FINISH,
        attempt=1,
        deadline_at_us=deadline_at_us,
        operation_id=operation_id,
        request_id=request_id,
        body=body,
        created_at_us=now_us,
    )
    deleting = msgspec.structs.replace(
        instance,
        task_state=TASK_DELETING,
        task_id=task_id,
        command_generation=instance.command_generation + 1,
        shelved_image_ref=None,
    )
    building = task is not None and task.kind == TASK_BUILD
    interrupted = building and task is not None and task.step in HOST_TOLD and instance.vm_state != VM_ERROR
    return Decision(
        instance=deleting,
        task=fresh,
        events=(CREATE_ERROR, DELETE_START) if interrupted else (DELETE_START,),
        failed="" if task is None else REASON_DELETED if building else REASON_PRE_EMPTED,
    )


def destroy_ended(instance: Instance, task: Task, result: StepResult, now_us: int, ending_s: int) -> Decision:
    """One host's word. When all have answered done, the claims can be released. A failure is kept for the fault, and
    a new attempt under a new command generation is made until the deadline."""
    if result.outcome != OUTCOME_DONE:
        fault = make_fault(result.message or f"host {result.host} could not destroy it", now_us)
        body = msgspec.structs.replace(task.body, fault=fault)
        return Decision(
            instance=msgspec.structs.replace(instance, command_generation=instance.command_generation + 1),
            task=msgspec.structs.replace(task, attempt=task.attempt + 1, body=body),
            failed=fault.message,
        )
    return hosts_are_clean(instance, task, [result.host], now_us, ending_s)


def hosts_are_clean(instance: Instance, task: Task, hosts: list[str], now_us: int, ending_s: int) -> Decision:
    """These hosts have destroyed it, or are forced down."""
    destroyed = [*task.body.destroyed, *(host for host in hosts if host not in task.body.destroyed)]
    body = msgspec.structs.replace(task.body, destroyed=destroyed)
    if set(body.named_hosts) - set(destroyed):
        return Decision(task=msgspec.structs.replace(task, body=body))
    revived = task.state == TASK_PARKED
    return Decision(
        instance=msgspec.structs.replace(instance, task_state=TASK_DELETING) if revived else None,
        task=msgspec.structs.replace(
            task,
            step=STEP_FINISH,
            state=TASK_RUNNING,
            body=body,
            deadline_at_us=max(task.deadline_at_us, now_us + ending_s * 1_000_000),
        ),
    )


def finish_delete(instance: Instance, task: Task, now_us: int) -> Decision:
    """Gone: the root is told by an outbox row of the same commit."""
    deleted = msgspec.structs.replace(
        instance,
        vm_state=VM_DELETED,
        task_state=None,
        task_id=None,
        claim=None,
        move=None,
        power_state=POWER_NOSTATE,
        deleted_at_us=now_us,
        soft_deleted_at_us=None,
    )
    entry = OutboxEntry(
        instance_uuid=instance.uuid,
        project_id=instance.project_id,
        kind=OUTBOX_DELETED,
        generation=instance.mapping_generation,
        request_id=task.request_id,
        created_at_us=now_us,
    )
    return Decision(instance=deleted, ended=True, outbox=entry, events=(DELETE_END,))


def _leftovers(instance: Instance, task: Task | None) -> TaskBody:
    """Hosts that may have the instance, and claims that hold room for it."""
    hosts = [instance.host] if instance.host else []
    release = [_claim_in_force(instance)] if instance.claim and instance.host else []
    move = instance.move
    if move is not None:
        hosts += [move.former_host] if move.former_host not in hosts else []
        release.append(_claim_named(move.former_claim, move.former_host))
    if task is not None:
        release += [name for name in task.body.release if name not in release]
        if task.kind != TASK_ACT and task.body.host:
            attempt = ClaimName(host=task.body.host, task_id=task.id, attempt=task.attempt)
            release += [attempt] if attempt not in release else []
        if task.kind != TASK_BUILD or task.step in HOST_TOLD:
            hosts += [host for host in task.body.named_hosts if host not in hosts]
    return TaskBody(named_hosts=hosts, release=release)


def _claim_in_force(instance: Instance) -> ClaimName:
    return _claim_named(instance.claim or "", instance.host or "")


def _claim_named(name: str, host: str) -> ClaimName:
    task_id, _, attempt = name.rpartition("/")
    return ClaimName(host=host, task_id=task_id, attempt=int(attempt))


def _revive(instance: Instance, task: Task, deadline_at_us: int) -> Decision:
    return Decision(
        instance=msgspec.structs.replace(instance, task_state=TASK_DELETING),
        task=msgspec.structs.replace(task, state=TASK_RUNNING, deadline_at_us=deadline_at_us),
    )


def _busy(instance: Instance, why: str) -> InstanceBusy:
    return InstanceBusy(
        f"instance {instance.uuid} cannot be deleted now: {why}",
        uuid=instance.uuid,
        vm_state=instance.vm_state,
        task_state=instance.task_state or "",
    )
