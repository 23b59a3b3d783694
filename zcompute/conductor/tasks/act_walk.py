"""The decisions of an act, one verb at the instance's host: pure. One step: apply.

Two commits when all goes well: the intake with the task_state, and the result.
"""

from typing import Any

import msgspec

from zcompute.conductor.tasks.decision import Decision
from zcompute.conductor.tasks.imaging import image_awaited, made
from zcompute.objects.actions import ACTIONS, REBUILD, RESTORE, SOFT_DELETE, Action
from zcompute.objects.command import VERB_REBOOT
from zcompute.objects.instance import VM_RESIZED, VM_STOPPED, Instance
from zcompute.objects.messages.instances import InstanceActionRequest
from zcompute.objects.notification_payloads import ERROR, EVENT_TYPES
from zcompute.objects.report import OUTCOME_DONE, StepResult
from zcompute.objects.task import TASK_ACT, Task, TaskBody

STEP_APPLY = "apply"


def begin_act(
    action: Action,
    instance: Instance,
    request: InstanceActionRequest,
    *,
    task_id: str,
    request_id: str,
    now_us: int,
    deadline_s: int,
) -> Decision:
    """Take an action in whose state was checked."""
    host = instance.host or ""
    arguments = request.arguments
    if action.verb == VERB_REBOOT:
        arguments = msgspec.structs.replace(arguments, hard=action.key == "reboot_hard")
    task = Task(
        id=task_id,
        instance_uuid=instance.uuid,
        kind=TASK_ACT,
        step=STEP_APPLY,
        attempt=1,
        deadline_at_us=now_us + deadline_s * 1_000_000,
        operation_id=request.operation_id,
        request_id=request_id,
        body=TaskBody(
            host=host,
            named_hosts=[host],
            action=action.key,
            arguments=arguments,
            former_vm_state=instance.vm_state,
            fault=instance.fault,
        ),
        created_at_us=now_us,
    )
    acting = msgspec.structs.replace(
        instance,
        task_state=action.task_state,
        task_id=task_id,
        command_generation=instance.command_generation + 1,
    )
    return Decision(instance=acting, task=task, events=(f"instance.{action.event}.start",))


def act_ended(instance: Instance, task: Task, result: StepResult, now_us: int, ending_s: int) -> Decision:
    """The agent's word. It may come after the task has parked: what the server was before is in the task. The power
    state is left to the agent's observations: they are ordered, and this word may come behind a newer one."""
    if result.outcome != OUTCOME_DONE:
        return act_failed(instance, task, result.message or f"host {result.host} could not do it")
    action = ACTIONS[task.body.action]
    ended = msgspec.structs.replace(
        instance,
        vm_state=state_after(action, instance, task),
        task_state=None,
        task_id=None,
        fault=None,
        **_changes(action, instance, task, now_us),
    )
    image = image_awaited(task)
    return Decision(
        instance=ended,
        ended=True,
        made=made(image, result) if image else None,
        events=(f"instance.{action.event}.end",),
    )


def state_after(action: Action, instance: Instance, task: Task) -> str:
    """The vm_state that a done action leads to. A restored server whose move waits is RESIZED again: its other copy is
    not forgotten."""
    former = task.body.former_vm_state
    if action is RESTORE and instance.move is not None:
        return VM_RESIZED
    if action is REBUILD and former == VM_STOPPED:
        return former
    return action.vm_state or former


def _changes(action: Action, instance: Instance, task: Task, now_us: int) -> dict[str, Any]:
    """What else of the row a done action changes."""
    if action is REBUILD:
        spec = msgspec.structs.replace(instance.spec, image_ref=task.body.arguments.image_ref)
        return {"spec": spec, "launched_at_us": now_us}
    if action is SOFT_DELETE:
        return {"soft_deleted_at_us": now_us}
    if action is RESTORE:
        return {"soft_deleted_at_us": None}
    return {}


def act_failed(instance: Instance, task: Task, reason: str) -> Decision:
    """It was definitely not done: the server is what it was, and its history says why; so does a notification, where
    Nova has one for it."""
    former = msgspec.structs.replace(
        instance, vm_state=task.body.former_vm_state, task_state=None, task_id=None, fault=task.body.fault
    )
    action = ACTIONS.get(task.body.action)
    event = "" if action is None else f"instance.{action.event}.{ERROR}"
    return Decision(instance=former, ended=True, failed=reason, events=(event,) if event in EVENT_TYPES else ())


def act_refused(instance: Instance, task: Task, reason: str, now_us: int) -> Decision:
    """The host's agent cannot be told at all."""
    return act_failed(instance, task, reason)


def act_host_lost(instance: Instance, task: Task, now_us: int) -> Decision:
    """Its host is forced down: whether it was done is nobody's concern any more."""
    return act_failed(instance, task, f"host {task.body.host} was forced down meanwhile")
