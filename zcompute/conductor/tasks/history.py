"""What a task's decision adds to its instance's history: an action for each operation, an event for each step.

An event is written once, when its step ends: it is new by the decision itself, which moves the task on and can happen
once only. What is under way is the task's step, which its row has.
"""

import msgspec

from zcompute.conductor.change import Change
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, INSTANCE_ACTIONS, Key, TableCodec
from zcompute.objects.actions import ACTIONS
from zcompute.objects.history import RESULT_ERROR, RESULT_SUCCESS, InstanceAction, InstanceActionEvent
from zcompute.objects.instance import VM_ERROR, Instance
from zcompute.objects.task import TASK_BUILD, TASK_EXPORT, TASK_IMPORT, Task

MESSAGE_CHARS_MAX = 255
# Nova's, where a task's kind is called otherwise.
ACTION_NAMES = {TASK_BUILD: "create", TASK_EXPORT: "migrate", TASK_IMPORT: "migrate"}
ATTEMPTS_TOLD_MAX = 20  # of one step: a host that fails it again and again writes no more rows than that
REPLACED = "another task has taken its place"


def operation_of(task: Task) -> str:
    """The id of the operation that a task carries out."""
    return task.operation_id or task.id


def action_key(task: Task) -> tuple[TableCodec[InstanceAction], Key]:
    """The row that a decision on this task may change: name it where the decision is submitted."""
    return INSTANCE_ACTIONS, (task.instance_uuid, operation_of(task))


def event_name(task: Task) -> str:
    """What the task's present step is called in the history."""
    return f"{task.body.action or task.kind}_{task.step}"


def action_name(task: Task) -> str:
    """What a task's operation is called in the history: Nova's names."""
    action = ACTIONS.get(task.body.action)
    return action.name if action is not None else ACTION_NAMES.get(task.kind, task.kind)


def record(change: Change, instance: Instance, former: Task | None, task: Task | None, failed: str) -> None:
    """Write the history of one decision: ``former`` is the task before it, ``task`` the one after it.

    ``failed`` says why a step that ends here did not succeed.
    """
    replaced = former is not None and task is not None and former.id != task.id
    if former is not None:
        if replaced:
            failed = failed or REPLACED
        moved = task is None or replaced or (task.step, task.attempt) != (former.step, former.attempt)
        tried_again = task is not None and not replaced and task.step == former.step
        if moved and not (tried_again and former.attempt > ATTEMPTS_TOLD_MAX):
            result = RESULT_ERROR if failed else RESULT_SUCCESS
            change.append(INSTANCE_ACTION_EVENTS, _ended(former, change.now_us, failed, result))
        if task is None or replaced:
            _finish(change, instance, former, failed)
    if task is not None and (former is None or replaced):
        _begin(change, instance, task)


def step_under_way(task: Task) -> InstanceActionEvent:
    """The task's present step, as an event without an end."""
    return _ended(task, 0, "", "")


def _ended(task: Task, now_us: int, failed: str, result: str) -> InstanceActionEvent:
    hosts = [task.body.host] if task.body.host else task.body.named_hosts[:1]
    return InstanceActionEvent(
        instance_uuid=task.instance_uuid,
        operation_id=operation_of(task),
        task_id=task.id,
        event=event_name(task),
        attempt=task.attempt,
        host=hosts[0] if hosts else "",
        started_at_us=task.body.step_began_at_us or task.created_at_us,
        finished_at_us=now_us,
        result=result,
        message=failed[:MESSAGE_CHARS_MAX],
    )


def _begin(change: Change, instance: Instance, task: Task) -> None:
    """One that is there already (the same operation, come back from another cell) is under way again."""
    table, key = action_key(task)
    former = change.get(table, key)
    if former is not None:
        change.put(table, msgspec.structs.replace(former, finished_at_us=None, result="", message=""))
        return
    change.put(
        table,
        InstanceAction(
            instance_uuid=task.instance_uuid,
            operation_id=operation_of(task),
            action=action_name(task),
            request_id=task.request_id,
            user_id=instance.user_id,
            project_id=instance.project_id,
            started_at_us=change.now_us,
        ),
    )


def _finish(change: Change, instance: Instance, task: Task, failed: str) -> None:
    """Tasks of a release without history have no action: nothing to finish."""
    table, key = action_key(task)
    former = change.get(table, key)
    if former is None:
        return
    if not failed and instance.vm_state == VM_ERROR:
        failed = instance.fault.message if instance.fault is not None else "the instance is in ERROR"
    change.put(
        table,
        msgspec.structs.replace(
            former,
            finished_at_us=change.now_us,
            result=RESULT_ERROR if failed else RESULT_SUCCESS,
            message=failed[:MESSAGE_CHARS_MAX],
        ),
    )
