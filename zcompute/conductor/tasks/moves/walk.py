"""The decisions of moves: pure. Every step on raises the command generation, so that what a host was told in an earlier
step, and has not heard, is stale when it comes late."""

import msgspec

from zcompute.conductor.tasks.build_walk import next_attempt
from zcompute.conductor.tasks.charge import charged, resized
from zcompute.conductor.tasks.decision import Decision, make_fault
from zcompute.conductor.tasks.moves.plans import (
    PLANS,
    STEP_FINISH,
    STEP_ROLLED_BACK,
    UNDO,
)
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import (
    LEFT,
    POWER_NOSTATE,
    VM_ACTIVE,
    VM_DELETED,
    VM_ERROR,
    Instance,
    Move,
)
from zcompute.objects.report import OUTCOME_DONE, StepResult
from zcompute.objects.task import (
    TASK_CONFIRM_RESIZE,
    TASK_EXPORT,
    TASK_IMPORT,
    TASK_PARKED,
    TASK_RESIZE,
    TASK_REVERT_RESIZE,
    TASK_RUNNING,
    TASK_UNSHELVE,
    ClaimName,
    Task,
    TaskBody,
)

REASON_CHARS_MAX = 255


def flavor_of(instance: Instance, task: Task) -> Flavor:
    """The flavor that the server is to have after the move."""
    return task.body.arguments.flavor or instance.flavor


def claim_in_force(instance: Instance) -> list[ClaimName]:
    """The claim that the instance's row names, if any."""
    if not instance.claim or not instance.host:
        return []
    task_id, _, attempt = instance.claim.rpartition("/")
    return [ClaimName(host=instance.host, task_id=task_id, attempt=int(attempt))]


def former_claim(move: Move) -> ClaimName:
    """The claim that keeps the room of a stopped copy."""
    task_id, _, attempt = move.former_claim.rpartition("/")
    return ClaimName(host=move.former_host, task_id=task_id, attempt=int(attempt))


# -- on -----------------------------------------------------------------------------------------------------------


def advance(
    instance: Instance, task: Task, now_us: int, ending_s: int, body: TaskBody | None = None, failed: str = ""
) -> Decision:
    """To the next step."""
    plan = PLANS[task.kind]
    decision = go_to(instance, task, plan.after(task.step), now_us, ending_s, body, failed)
    return msgspec.structs.replace(decision, events=plan.events.get(task.step, ()))


def go_to(
    instance: Instance,
    task: Task,
    step: str,
    now_us: int,
    ending_s: int,
    body: TaskBody | None = None,
    failed: str = "",
) -> Decision:
    """To a step. A task that was parked is under way again, and the server shows it; each step has some time."""
    parked = task.state == TASK_PARKED
    moved = msgspec.structs.replace(
        instance,
        task_state=PLANS[task.kind].task_state(step) or instance.task_state,
        vm_state=task.body.former_vm_state if parked else instance.vm_state,
        fault=task.body.fault if parked else instance.fault,
        command_generation=instance.command_generation + 1,
    )
    ending_at_us = now_us + ending_s * 1_000_000
    return Decision(
        instance=moved,
        task=msgspec.structs.replace(
            task,
            step=step,
            state=TASK_RUNNING,
            body=msgspec.structs.replace(body or task.body, failures=0),
            deadline_at_us=max(task.deadline_at_us, ending_at_us),
        ),
        failed=failed,
    )


def claimed(instance: Instance, task: Task, now_us: int, ending_s: int) -> Decision:
    """The destination has room."""
    return advance(instance, task, now_us, ending_s)


def again(instance: Instance, task: Task, reason: str) -> Decision:
    """The same step in a further attempt: there is no way back, and the host may do it the next time."""
    body = msgspec.structs.replace(task.body, failures=task.body.failures + 1)
    return Decision(
        instance=msgspec.structs.replace(instance, command_generation=instance.command_generation + 1),
        task=msgspec.structs.replace(task, attempt=task.attempt + 1, body=body),
        failed=reason,
    )


# -- the way back -------------------------------------------------------------------------------------------------


def roll_back(instance: Instance, task: Task, reason: str, now_us: int, ending_s: int) -> Decision:
    """Towards what was before the move. The first reason is the one that is told."""
    body = task.body
    present = [ClaimName(host=body.host, task_id=task.id, attempt=task.attempt)] if body.host else []
    body = msgspec.structs.replace(
        body,
        result=body.result or reason[:REASON_CHARS_MAX],
        release=[*body.release, *(name for name in present if name not in body.release)],
    )
    undos = PLANS[task.kind].undos(task.step)
    return go_to(instance, task, undos[0] if undos else STEP_ROLLED_BACK, now_us, ending_s, body, reason)


def call_off(instance: Instance, task: Task, reason: str, now_us: int, ending_s: int) -> Decision:
    """The first step has done nothing: there is nothing to undo."""
    body = msgspec.structs.replace(task.body, result=task.body.result or reason[:REASON_CHARS_MAX])
    return go_to(instance, task, STEP_ROLLED_BACK, now_us, ending_s, body, reason)


def undone(instance: Instance, task: Task, now_us: int, ending_s: int) -> Decision:
    """An undo is done: the next one, the end of the way back, or (nothing but this destination was wrong) the next
    candidate."""
    if task.body.result:
        undos = PLANS[task.kind].undos(task.step)
        return go_to(instance, task, undos[0] if undos else STEP_ROLLED_BACK, now_us, ending_s)
    return next_destination(instance, task, task.body.refused.get(task.body.host or "", ""), now_us, ending_s)


def next_destination(instance: Instance, task: Task, reason: str, now_us: int, ending_s: int) -> Decision:
    """Nothing is, or will be, on the present one: its claim is owed back."""
    claim = ClaimName(host=task.body.host or "", task_id=task.id, attempt=task.attempt)
    owed = any((name.host, name.task_id) == (claim.host, claim.task_id) for name in task.body.release)
    present = go_to(instance, task, task.step, now_us, ending_s)  # under way again, if it was parked
    following = next_attempt(present.task or task, reason, [] if owed else [claim])
    return msgspec.structs.replace(following, instance=present.instance)


def prepare_failed(instance: Instance, task: Task, reason: str, now_us: int, ending_s: int) -> Decision:
    """This destination does not take it: what it may have begun is undone, then another is tried. Its claim is owed by
    its name from here on: further attempts are those of the undo."""
    host = task.body.host or ""
    body = msgspec.structs.replace(
        task.body,
        refused={**task.body.refused, host: reason[:REASON_CHARS_MAX]},
        release=[*task.body.release, ClaimName(host=host, task_id=task.id, attempt=task.attempt)],
    )
    return go_to(instance, task, UNDO[task.step], now_us, ending_s, body, reason)


def rolled_back(instance: Instance, task: Task, now_us: int) -> Decision:
    """The server is what it was; its history says why. What was to come from another cell is not here."""
    if task.kind == TASK_IMPORT:
        return Decision(instance=left_cell(instance, now_us), ended=True, failed=task.body.result)
    former = msgspec.structs.replace(
        instance, vm_state=task.body.former_vm_state, task_state=None, task_id=None, fault=task.body.fault, crossing=""
    )
    events = PLANS[task.kind].events.get(STEP_ROLLED_BACK, ())
    owed = _owed(instance, former, task, now_us)
    return Decision(instance=former, ended=True, outbox=owed, events=events, failed=task.body.result)


def _owed(before: Instance, after: Instance, task: Task, now_us: int) -> OutboxEntry | None:
    """The root is to be told what the server is charged from now on. A revert gave its flavor back with the switch."""
    if task.kind not in (TASK_RESIZE, TASK_REVERT_RESIZE) and charged(before, task) == charged(after, None):
        return None
    return resized(after, task.request_id, now_us)


# -- the switch ---------------------------------------------------------------------------------------------------


def switch(instance: Instance, task: Task, now_us: int, ending_s: int) -> Decision:
    """Host, reporter generation, claim in force and flavor change in this one commit. The destination's claim was
    committed before; the source's is released after, or kept for the copy that the source keeps."""
    plan, body = PLANS[task.kind], task.body
    keeps = plan.leaves_copy
    if not keeps:
        body = msgspec.structs.replace(body, release=[*body.release, *claim_in_force(instance)])
    move = Move(
        kind=task.kind,
        former_host=instance.host or "",
        former_claim=instance.claim or "",
        former_flavor=instance.flavor,
        former_vm_state=body.former_vm_state,
        since_us=now_us,
        operation_id=task.operation_id,
    )
    switched = msgspec.structs.replace(
        instance,
        host=body.host,
        claim=f"{task.id}/{task.attempt}",
        generation=instance.generation + 1,
        agent_epoch=0,
        observed_seq=0,
        flavor=flavor_of(instance, task),
        move=move if keeps else None,
        crossing="",
    )
    return advance(switched, task, now_us, ending_s, body)


def switch_back(instance: Instance, task: Task, now_us: int, ending_s: int) -> Decision:
    """The source's copy is the instance again: the same in the other direction."""
    move = instance.move
    if move is None:
        return Decision()
    body = msgspec.structs.replace(task.body, release=[*task.body.release, *claim_in_force(instance)])
    switched = msgspec.structs.replace(
        instance,
        host=move.former_host,
        claim=move.former_claim,
        generation=instance.generation + 1,
        agent_epoch=0,
        observed_seq=0,
        flavor=move.former_flavor,
        move=None,
    )
    return advance(switched, task, now_us, ending_s, body)


# -- the end ------------------------------------------------------------------------------------------------------


def host_is_lost(instance: Instance, task: Task, now_us: int, ending_s: int) -> Decision:
    """The host that runs it since the switch is forced down before it has said so: the move ends, in ERROR."""
    reason = f"host {instance.host} was forced down while it took the instance"
    body = msgspec.structs.replace(task.body, result=reason)
    return go_to(instance, task, STEP_FINISH, now_us, ending_s, body, reason)


def finish(instance: Instance, task: Task, now_us: int) -> Decision:
    """All claims that were owed are released."""
    body, events = task.body, PLANS[task.kind].events
    if task.kind == TASK_EXPORT:
        return Decision(instance=left_cell(instance, now_us), ended=True, events=events.get(STEP_FINISH, ()))
    if body.result:
        lost = msgspec.structs.replace(
            instance, vm_state=VM_ERROR, task_state=None, task_id=None, fault=make_fault(body.result, now_us)
        )
        owed = _owed(instance, lost, task, now_us)
        told = events.get(STEP_ROLLED_BACK, ())
        return Decision(instance=lost, ended=True, outbox=owed, events=told, failed=body.result)
    plan = PLANS[task.kind]
    vm_state = plan.vm_state or (VM_ACTIVE if body.former_vm_state == VM_ERROR else body.former_vm_state)
    move = instance.move
    if move is not None and task.kind == TASK_CONFIRM_RESIZE:
        move = None
    elif move is not None and plan.leaves_copy:
        move = msgspec.structs.replace(move, since_us=now_us)
    ended = msgspec.structs.replace(
        instance,
        vm_state=vm_state,
        launched_at_us=now_us if task.kind == TASK_UNSHELVE else instance.launched_at_us,
        task_state=None,
        task_id=None,
        fault=None,
        move=move,
    )
    owed = _owed(instance, ended, task, now_us)
    return Decision(instance=ended, ended=True, outbox=owed, events=events.get(STEP_FINISH, ()))


def left_cell(instance: Instance, now_us: int) -> Instance:
    """What is kept of a server that is in another cell: it was not deleted, so the root is owed no word of it."""
    return msgspec.structs.replace(
        instance,
        vm_state=VM_DELETED,
        task_state=None,
        task_id=None,
        claim=None,
        move=None,
        fault=None,
        power_state=POWER_NOSTATE,
        deleted_at_us=now_us,
        crossing=LEFT,
    )


# -- words of agents ----------------------------------------------------------------------------------------------


def prepared(instance: Instance, task: Task, result: StepResult, now_us: int, ending_s: int) -> Decision:
    """The destination's word: what it answers is for the source."""
    if result.outcome != OUTCOME_DONE:
        return prepare_failed(instance, task, _reason(result), now_us, ending_s)
    body = msgspec.structs.replace(task.body, answers={**task.body.answers, task.step: result.answer})
    return advance(instance, task, now_us, ending_s, body)


def left(instance: Instance, task: Task, result: StepResult, now_us: int, ending_s: int) -> Decision:
    """The source's word before the switch. One that was to be aborted and is done is done."""
    if result.outcome != OUTCOME_DONE:
        return roll_back(instance, task, _reason(result), now_us, ending_s)
    return advance(instance, task, now_us, ending_s, msgspec.structs.replace(task.body, result=""))


def arrived(instance: Instance, task: Task, result: StepResult, now_us: int, ending_s: int) -> Decision:
    """The word of the host that has it since the switch."""
    if result.outcome != OUTCOME_DONE:
        return again(instance, task, _reason(result))
    power_state = instance.power_state if instance.observed_seq else result.power_state
    return advance(msgspec.structs.replace(instance, power_state=power_state), task, now_us, ending_s)


def cleaned(instance: Instance, task: Task, result: StepResult, now_us: int, ending_s: int) -> Decision:
    """A copy that is not wanted any more is gone."""
    if result.outcome != OUTCOME_DONE:
        return again(instance, task, _reason(result))
    return advance(instance, task, now_us, ending_s)


def undo_ended(instance: Instance, task: Task, result: StepResult, now_us: int, ending_s: int) -> Decision:
    """An undo is tried until it is done."""
    if result.outcome != OUTCOME_DONE:
        return again(instance, task, _reason(result))
    return undone(instance, task, now_us, ending_s)


def _reason(result: StepResult) -> str:
    return result.message or f"host {result.host} could not {result.step}"
