"""The two sides of a move to another cell: what the root's words change, and what is answered. Pure.

Source: hold -> send -> sent -> clean_source -> finish. Target: schedule -> claim -> prepare -> prepared -> switch ->
activate -> finish. Where a side waits for a word, it alone never goes on, nor back: the other cell may have done more
than it knows. Under the move's operation id the history keeps what became of it, so a word that comes late, or again,
finds it done.
"""

from msgspec.structs import replace

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.tasks.decision import Decision
from zcompute.conductor.tasks.moves.plans import (
    BEGIN,
    PLANS,
    STEP_HOLD,
    STEP_PREPARE,
    STEP_PREPARED,
    STEP_SCHEDULE,
    STEP_SENT,
)
from zcompute.conductor.tasks.moves.walk import advance, claim_in_force, roll_back
from zcompute.objects.actions import MIGRATE, check_state
from zcompute.objects.errors import InstanceBusy, InstanceNotFound
from zcompute.objects.group import TOGETHER
from zcompute.objects.history import RESULT_ERROR, RESULT_SUCCESS, InstanceAction
from zcompute.objects.instance import ARRIVING, LEAVING, VM_DELETED, Instance
from zcompute.objects.messages.crossing import (
    CROSS_ABSENT,
    CROSS_DISCARDED,
    CROSS_GONE,
    CROSS_HELD,
    CROSS_KEPT,
    CROSS_PREPARED,
    CROSS_RUNS,
    CROSS_SENT,
    CROSS_UNDER_WAY,
    SOURCE_WORDS,
    TARGET_WORDS,
    WORD_ACTIVATE,
    WORD_DISCARD,
    WORD_HOLD,
    WORD_LEAVE,
    WORD_PREPARE,
    WORD_REOPEN,
    WORD_SEND,
    CrossOrder,
    CrossReply,
)
from zcompute.objects.task import TASK_EXPORT, TASK_IMPORT, Task, TaskBody

GIVEN_UP = "the move was given up before this cell had heard of it"
_BEFORE_SWITCH = frozenset(PLANS[TASK_IMPORT].steps[: PLANS[TASK_IMPORT].steps.index(STEP_PREPARED) + 1])
_WAITS = {STEP_HOLD: CROSS_HELD, STEP_SENT: CROSS_SENT, STEP_PREPARED: CROSS_PREPARED}


def check_order(order: CrossOrder) -> None:
    """Raises InvalidRequest."""
    words = (*SOURCE_WORDS, *TARGET_WORDS)
    if order.word not in words:
        raise InvalidRequest(f"expected a word of {', '.join(words)}, found {order.word!r}", field="word")
    if not order.operation_id or order.generation < 2 or order.deadline_s < 1:
        raise InvalidRequest("expected an operation id, a generation above 1 and a deadline", field="operation_id")
    coming = order.instance
    if order.word != WORD_PREPARE:
        return
    if coming is None or (coming.uuid, coming.project_id) != (order.uuid, order.project_id):
        raise InvalidRequest(f"the word prepare needs the server {order.uuid} of its project", field="instance")


def standing_of(
    order: CrossOrder, instance: Instance | None, task: Task | None, action: InstanceAction | None
) -> CrossReply:
    """How far this side of the move is. ``task`` is the move's own, ``action`` its history."""
    if task is not None and instance is not None and instance.task_id == task.id:
        state = _WAITS.get(task.step, CROSS_UNDER_WAY)
        held = replace(instance, vm_state=task.body.former_vm_state) if state == CROSS_HELD else None  # though parked
        answers = task.body.answers.get(STEP_PREPARE, {})
        return CrossReply(
            state=state, reason=task.body.result, instance=held, host=task.body.host or "", answers=answers
        )
    if action is None:
        return CrossReply(state=CROSS_ABSENT)
    if order.word in SOURCE_WORDS:
        return CrossReply(state=CROSS_GONE if action.result == RESULT_SUCCESS else CROSS_KEPT, reason=action.message)
    here = instance is not None and (instance.vm_state != VM_DELETED or action.result == RESULT_SUCCESS)
    return CrossReply(state=CROSS_RUNS if here else CROSS_DISCARDED, reason=action.message)


def decide(
    order: CrossOrder, instance: Instance | None, task: Task | None, state: str, now_us: int, ending_s: int
) -> Decision | None:
    """What the word changes where this side is at ``state``; None: nothing.

    Raises InstanceNotFound, InstanceBusy (nothing was begun), InvalidRequest.
    """
    if state == CROSS_ABSENT:
        return _first_heard(order, instance, now_us)
    if instance is None or task is None:
        return None
    if order.word == WORD_SEND and state == CROSS_HELD:
        body = replace(
            task.body, destination=order.host, answers={**task.body.answers, STEP_PREPARE: dict(order.answers)}
        )
        return advance(instance, task, now_us, ending_s, body)
    if order.word == WORD_LEAVE and state == CROSS_SENT:
        body = replace(task.body, release=[*task.body.release, *claim_in_force(instance)])
        return advance(instance, task, now_us, ending_s, body)
    if order.word == WORD_ACTIVATE and state == CROSS_PREPARED:
        return advance(instance, task, now_us, ending_s)
    if order.word == WORD_REOPEN and task.step in (STEP_HOLD, *_SENDING):
        return roll_back(instance, task, order.reason or "the move was given up", now_us, ending_s)
    if order.word == WORD_DISCARD and task.step in _BEFORE_SWITCH:
        return roll_back(instance, task, order.reason or "the move was given up", now_us, ending_s)
    return None


_SENDING = PLANS[TASK_EXPORT].steps[1:3]


def _first_heard(order: CrossOrder, instance: Instance | None, now_us: int) -> Decision | None:
    """The first word of the move that comes here."""
    if order.word == WORD_HOLD:
        return _export(order, instance, now_us)
    if order.word == WORD_PREPARE:
        return _import(order, instance, now_us)
    if order.word in (WORD_REOPEN, WORD_DISCARD):
        return None  # never_begun says what is kept of it
    raise InvalidRequest(f"the word {order.word} of a move that was never begun here", field="word")


def never_begun(order: CrossOrder, now_us: int, request_id: str) -> InstanceAction | None:
    """What keeps a first word that is still on its way from beginning a move that was given up; None for words that
    give nothing up."""
    if order.word not in (WORD_REOPEN, WORD_DISCARD):
        return None
    return InstanceAction(
        instance_uuid=order.uuid,
        operation_id=order.operation_id,
        action=MIGRATE.name,
        request_id=request_id,
        user_id="",
        project_id=order.project_id,
        started_at_us=now_us,
        finished_at_us=now_us,
        result=RESULT_ERROR,
        message=GIVEN_UP,
    )


def _export(order: CrossOrder, instance: Instance | None, now_us: int) -> Decision:
    """The server is held: nothing else is done with it until the move has ended."""
    if instance is None or instance.vm_state == VM_DELETED or instance.project_id != order.project_id:
        raise InstanceNotFound("no such instance in this cell", uuid=order.uuid)
    check_state(MIGRATE, instance, administrator=True)
    if instance.mapping_generation != order.generation - 1:
        raise _busy(instance, f"the cell has it under generation {instance.mapping_generation} of its mapping")
    if instance.move is not None:
        raise _busy(instance, "a move within its cell is neither confirmed nor reverted")
    group = instance.spec.group
    if group is not None and group.policy in TOGETHER:
        raise _busy(instance, f"it is a member of server group {group.uuid}, whose servers stay in one cell")
    host = instance.host or ""
    task = _task(order, TASK_EXPORT, STEP_HOLD, now_us)
    task.body = TaskBody(source=host, named_hosts=[host], former_vm_state=instance.vm_state, fault=instance.fault)
    return Decision(
        instance=replace(
            instance,
            task_state=PLANS[TASK_EXPORT].task_state(STEP_HOLD),
            task_id=task.id,
            command_generation=instance.command_generation + 1,
            crossing=LEAVING,
        ),
        task=task,
        events=PLANS[TASK_EXPORT].events[BEGIN],
    )


def _import(order: CrossOrder, former: Instance | None, now_us: int) -> Decision:
    """A row for the server that is to come, not listed. It goes on from the numbers that this cell has used for it, if
    it ever was here: its hosts refuse lower ones."""
    coming = order.instance
    if coming is None:
        raise InvalidRequest("the word prepare needs the server", field="instance")
    if former is not None and former.vm_state != VM_DELETED:
        raise _busy(former, "it is in the cell that it is to be moved to")
    task = _task(order, TASK_IMPORT, STEP_SCHEDULE, now_us)
    task.body = TaskBody(source=order.host, former_vm_state=coming.vm_state)
    generation, commanded = (former.generation, former.command_generation) if former is not None else (0, 0)
    arriving = replace(
        coming,
        mapping_generation=order.generation,
        task_state=PLANS[TASK_IMPORT].task_state(STEP_SCHEDULE),
        task_id=task.id,
        host=None,
        claim=None,
        fault=None,
        move=None,
        generation=generation,
        command_generation=commanded + 1,
        agent_epoch=0,
        observed_seq=0,
        decided=max(coming.decided, 0 if former is None else former.decided),
        updated_at_us=now_us,
        crossing=ARRIVING,
    )
    return Decision(instance=arriving, task=task)


def _task(order: CrossOrder, kind: str, step: str, now_us: int) -> Task:
    """The move's operation id is its task's: a move has one task in a cell."""
    return Task(
        id=order.operation_id,
        instance_uuid=order.uuid,
        kind=kind,
        step=step,
        deadline_at_us=now_us + order.deadline_s * 1_000_000,
        operation_id=order.operation_id,
        created_at_us=now_us,
    )


def _busy(instance: Instance, why: str) -> InstanceBusy:
    return InstanceBusy(
        f"Cannot migrate instance {instance.uuid} to another cell: {why}",
        uuid=instance.uuid,
        vm_state=instance.vm_state,
        task_state=instance.task_state or "",
    )
