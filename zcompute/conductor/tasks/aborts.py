"""Which kinds of task an operator may abort, and retry, and what follows: pure. Kinds add their rows."""

from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from zcompute.conductor.tasks.build_walk import STEP_ABANDON, STEP_CANCEL, STEP_SPAWN, abort_build
from zcompute.conductor.tasks.decision import Decision
from zcompute.conductor.tasks.moves.plans import (
    PLANS,
    STEP_BUILD,
    STEP_CLAIM,
    STEP_MIGRATE,
    STEP_PREPARE,
    STEP_REACH,
    STEP_SCHEDULE,
    STEP_SEND,
    STEP_SHUT_DOWN,
    STEP_SNAPSHOT,
)
from zcompute.conductor.tasks.moves.walk import roll_back
from zcompute.conductor.tasks.settings import ACT_DEADLINES_S, MOVE_DEADLINES_S, TaskSettings
from zcompute.objects.actions import ACTIONS
from zcompute.objects.errors import TaskRefused
from zcompute.objects.instance import TASK_DELETING, TASK_SCHEDULING, TASK_SPAWNING, VM_BUILDING, Instance
from zcompute.objects.task import TASK_ACT, TASK_BUILD, TASK_DELETE, TASK_LIVE_MIGRATE, TASK_PARKED, TASK_RUNNING, Task


@dataclass(frozen=True)
class Word:
    """An operator's word on a task: the rows that it meets, and the time."""

    instance: Instance
    task: Task
    now_us: int
    settings: TaskSettings


def retry(word: Word) -> Decision:
    """A parked task is begun again at its step with a new deadline; what its instance shows is what the task's kind
    says of it, and stays as it is where the kind says nothing. Raises TaskRefused for one that is not parked."""
    task = word.task
    if task.state != TASK_PARKED:
        raise refused(task, f"it is {task.state}, only parked tasks are begun again")
    retrial = RETRIALS.get(task.kind, _as_it_is)(word)
    deadline_at_us = word.now_us + retrial.deadline_s * 1_000_000
    return Decision(instance=retrial.instance, task=replace(task, state=TASK_RUNNING, deadline_at_us=deadline_at_us))


def abort(word: Word) -> Decision:
    """Raises TaskRefused where the kind of task, or its step, does not allow it."""
    function = ABORTS.get(word.task.kind)
    if function is None:
        raise refused(word.task, f"tasks of kind {word.task.kind} cannot be aborted")
    return function(word)


def complete(word: Word) -> Decision:
    """A live migration comes to its end, as Nova's live_migration_force_complete.

    Raises TaskRefused for any other task, and where its source does not hand the domain over just now.
    """
    task = word.task
    if task.kind != TASK_LIVE_MIGRATE:
        raise refused(task, "only a live migration is completed")
    if task.step != STEP_MIGRATE or task.state != TASK_RUNNING or task.body.result:
        raise refused(task, f"it is completed while its source hands the server over (step {STEP_MIGRATE})")
    return Decision(task=replace(task, body=replace(task.body, complete=True)))


def refused(task: Task, why: str) -> TaskRefused:
    """The error that says why."""
    return TaskRefused(
        f"task {task.id} ({task.kind} of instance {task.instance_uuid}, step {task.step}): {why}",
        task_id=task.id,
        kind=task.kind,
        step=task.step,
        state=task.state,
    )


@dataclass(frozen=True)
class Retrial:
    """What the instance shows while the task runs again, None: as it is; and for how long it may."""

    instance: Instance | None
    deadline_s: int


Abort = Callable[[Word], Decision]
Retry = Callable[[Word], Retrial]


def _abort_build(word: Word) -> Decision:
    if word.task.step in (STEP_CANCEL, STEP_ABANDON):
        raise refused(word.task, "it is being ended already")
    settings = word.settings
    return abort_build(word.instance, word.task, word.now_us, settings.delete_deadline_s, settings.ending_s_max)


def _retry_build(word: Word) -> Retrial:
    told = word.task.step in (STEP_SPAWN, STEP_CANCEL)
    building = replace(
        word.instance,
        vm_state=VM_BUILDING,
        task_state=TASK_SPAWNING if told else TASK_SCHEDULING,
        fault=None,
    )
    return Retrial(building, word.settings.build_deadline_s)


def _retry_delete(word: Word) -> Retrial:
    return Retrial(replace(word.instance, task_state=TASK_DELETING), word.settings.delete_deadline_s)


def _retry_act(word: Word) -> Retrial:
    body = word.task.body
    action = ACTIONS.get(body.action)
    task_state = None if action is None else action.task_state
    acting = replace(word.instance, vm_state=body.former_vm_state, task_state=task_state, fault=body.fault)
    deadline_s = ACT_DEADLINES_S.get(task_state or "", word.settings.act_deadline_s_max)
    return Retrial(acting, min(deadline_s, word.settings.act_deadline_s_max))


def _as_it_is(word: Word) -> Retrial:
    return Retrial(None, word.settings.retry_deadline_s)


def _abort_move(word: Word) -> Decision:
    """Back to where it was; not behind the switch. While the source hands a running domain over it is told to abort:
    only its own word says then on which side the domain is."""
    if word.task.step not in ABORTABLE_STEPS:
        raise refused(word.task, f"a move can be aborted in {', '.join(ABORTABLE_STEPS)}; from here it goes its way")
    if word.task.step == STEP_MIGRATE:
        return Decision(task=replace(word.task, body=replace(word.task.body, result=ABORTED_MOVE)))
    return roll_back(word.instance, word.task, ABORTED_MOVE, word.now_us, word.settings.ending_s_max)


def _retry_move(word: Word) -> Retrial:
    task, settings = word.task, word.settings
    moving = replace(
        word.instance,
        vm_state=task.body.former_vm_state,
        task_state=PLANS[task.kind].task_state(task.step) or word.instance.task_state,
        fault=task.body.fault,
    )
    return Retrial(moving, min(MOVE_DEADLINES_S[task.kind], settings.move_deadline_s_max))


ABORTED_MOVE = "the move was aborted by an operator"
ABORTABLE_STEPS = (
    STEP_SCHEDULE, STEP_CLAIM, STEP_REACH, STEP_PREPARE, STEP_SEND, STEP_MIGRATE, STEP_SHUT_DOWN, STEP_SNAPSHOT,
    STEP_BUILD,
)  # fmt: skip

ABORTS: dict[str, Abort] = {
    TASK_BUILD: _abort_build,
    **{plan.kind: _abort_move for plan in PLANS.values() if {STEP_SCHEDULE, STEP_SHUT_DOWN}.intersection(plan.steps)},
}
RETRIALS: dict[str, Retry] = {
    TASK_BUILD: _retry_build,
    TASK_DELETE: _retry_delete,
    TASK_ACT: _retry_act,
    **dict.fromkeys(PLANS, _retry_move),
}
