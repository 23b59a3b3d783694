"""What one commit does to an instance and its task. Decided purely, applied in the ledger's decide functions."""

from collections.abc import Iterable

import msgspec

from zcompute.conductor.change import Change
from zcompute.conductor.notices import (
    INSTANCE_CREATE_ERROR,
    INSTANCE_DELETE_END,
    INSTANCE_DELETE_START,
    EventFacts,
    instance_event,
)
from zcompute.conductor.tasks.history import record
from zcompute.conductor.tasks.imaging import OUTBOX_IMAGED, image_awaited, imaged, not_made
from zcompute.db.tables import INSTANCES, ROOT_OUTBOX, TASKS
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.image import IMAGE_DELETED, ImageOutcome
from zcompute.objects.instance import VM_ERROR, VM_RESIZED, VM_SHELVED, VM_SHELVED_OFFLOADED, Fault, Instance
from zcompute.objects.notification_payloads import ERROR
from zcompute.objects.task import TASK_BUILD, TASK_PARKED, ClaimName, Task

FAULT_CHARS_MAX = 255
IMAGE_OF_USE = frozenset({VM_SHELVED, VM_SHELVED_OFFLOADED, VM_ERROR})
"""vm_states in which the image of a shelved server has its disk: in ERROR nobody knows better."""
FORCED_DOWN = "it is forced down"

CREATE_START = "instance.create.start"
CREATE_END = "instance.create.end"
CREATE_ERROR = INSTANCE_CREATE_ERROR
DELETE_START = INSTANCE_DELETE_START
DELETE_END = INSTANCE_DELETE_END


class Decision(msgspec.Struct, frozen=True):
    """New images of the rows; None leaves a row as it is. ``ended``: the task's row goes.

    ``events`` are notifications of the action's phases; ``failed`` says why the step that ends here did not succeed;
    ``made``: the image that the task was to make is there, which leaves the outbox to it.
    """

    instance: Instance | None = None
    task: Task | None = None
    ended: bool = False
    outbox: OutboxEntry | None = None
    made: ImageOutcome | None = None
    events: tuple[str, ...] = ()
    failed: str = ""


class Snapshot(msgspec.Struct, frozen=True):
    """The rows as committed. ``task`` None: the instance has no task under way (any more)."""

    instance: Instance | None
    task: Task | None
    outbox: OutboxEntry | None = None


def apply(change: Change, former: Snapshot, decision: Decision) -> Snapshot:
    """Put a decision's rows, and return what they are then. Adds to the instance's history, and tells of it."""
    now_us = change.now_us
    instance, task = former.instance, former.task
    if decision.instance is not None:
        of_use = decision.instance.vm_state in IMAGE_OF_USE
        instance = msgspec.structs.replace(
            decision.instance,
            updated_at_us=now_us,
            decided=decision.instance.decided + 1,
            resized_at_us=_waits_since_us(decision.instance),
            shelved_at_us=_shelved_since_us(decision.instance, now_us),
            shelved_image_ref=decision.instance.shelved_image_ref if of_use else None,
        )
        change.put(INSTANCES, instance)
    if decision.ended:
        if former.task is not None:
            change.delete(TASKS, (former.task.id,))
        task = None
    elif decision.task is not None:
        task = msgspec.structs.replace(decision.task, updated_at_us=now_us)
        if not _same_step(former.task, task):
            task.body = msgspec.structs.replace(task.body, step_began_at_us=now_us)
        if former.task is not None and former.task.id != task.id:
            change.delete(TASKS, (former.task.id,))
        change.put(TASKS, task)
    outbox = decision.outbox or _of_image(former, instance, task, decision, now_us)
    if outbox is not None:
        owe(change, outbox)
    carried_out = task or former.task
    if instance is not None and carried_out is not None:
        change.request_id = carried_out.request_id
        record(change, instance, former.task, task, decision.failed)
    facts = _facts(carried_out)
    for event in decision.events:
        if instance is None:
            break
        failure = decision.failed if event.endswith(ERROR) else ""
        change.notify(instance_event(event, instance, change.request_id, failure, change.packed, facts))
    return Snapshot(instance, task, outbox)


def _waits_since_us(instance: Instance) -> int | None:
    """Since when a move waits to be confirmed or reverted. It follows from the row, and is kept for its index alone:
    set here, of every decision."""
    if instance.move is None or instance.vm_state != VM_RESIZED or instance.task_id is not None:
        return None
    return instance.move.since_us


def _of_image(
    former: Snapshot, instance: Instance | None, task: Task | None, decision: Decision, now_us: int
) -> OutboxEntry | None:
    """What the root is owed of an image: that it is there, or why not where the task that was to make it is no more;
    or that nobody wants it any more."""
    making = former.task
    unwanted = None if former.instance is None else former.instance.shelved_image_ref
    if unwanted is not None and instance is not None and instance.shelved_image_ref is None:
        request_id = making.request_id if making is not None else "" if task is None else task.request_id
        return imaged(instance, ImageOutcome(image_id=unwanted, status=IMAGE_DELETED), request_id, now_us)
    if instance is None or making is None or not image_awaited(making):
        return None
    if decision.made is not None:
        return imaged(instance, decision.made, making.request_id, now_us)
    if task is not None and task.id == making.id:
        return None
    return imaged(instance, not_made(making, decision.failed), making.request_id, now_us)


def _shelved_since_us(instance: Instance, now_us: int) -> int | None:
    """Since when it could be offloaded, in the same way."""
    if instance.vm_state != VM_SHELVED or instance.task_id is not None:
        return None
    return instance.shelved_at_us or now_us


def owe(change: Change, entry: OutboxEntry) -> None:
    """The root is told, once however often it is owed the same word. One of an image is never the same as another."""
    if entry.kind == OUTBOX_IMAGED:
        change.append(ROOT_OUTBOX, entry)
        return
    if change.get(ROOT_OUTBOX, (entry.instance_uuid, entry.kind, entry.generation)) is None:
        change.put(ROOT_OUTBOX, entry)


def _facts(task: Task | None) -> EventFacts:
    if task is None:
        return EventFacts()
    body = task.body
    return EventFacts(body.arguments.image_ref, body.source, body.host, body.arguments.flavor)


def _same_step(former: Task | None, task: Task) -> bool:
    return former is not None and (former.id, former.step, former.attempt) == (task.id, task.step, task.attempt)


def without_released(decision: Decision, released: frozenset[ClaimName]) -> Decision:
    """The same decision, with the claims that were released meanwhile no longer owed."""
    task = decision.task
    if task is None or not released.intersection(task.body.release):
        return decision
    body = msgspec.structs.replace(task.body, release=[name for name in task.body.release if name not in released])
    return msgspec.structs.replace(decision, task=msgspec.structs.replace(task, body=body))


def make_fault(message: str, now_us: int, code: int = 500) -> Fault:
    """A fault as the API shows it."""
    return Fault(message=message[:FAULT_CHARS_MAX], code=code, details=message, created_at_us=now_us)


def park(instance: Instance, task: Task, message: str, now_us: int) -> Decision:
    """The deadline has passed while a host is silent: the fault is shown, claims and generations are kept.

    No other copy is started; a delete, or the host's answer, goes on from here.
    """
    fault = make_fault(message, now_us)
    return Decision(
        instance=msgspec.structs.replace(instance, vm_state=VM_ERROR, task_state=None, fault=fault),
        task=msgspec.structs.replace(task, state=TASK_PARKED),
        events=(CREATE_ERROR,) if task.kind == TASK_BUILD else (),
        failed=message,
    )


def count_as_clean(task: Task, hosts: Iterable[str]) -> Task:
    """These hosts are forced down, so nothing need be destroyed there. It is written down before it is acted on:
    whoever lets such a host work again looks for this mark behind his own commit, and the task looks behind this one
    whether the host is forced down still, so one of the two sees the other."""
    refused = {**task.body.refused, **dict.fromkeys(hosts, FORCED_DOWN)}
    return msgspec.structs.replace(task, body=msgspec.structs.replace(task.body, refused=refused))


def counts_as_clean(task: Task, host: str) -> bool:
    """Whether that was written down."""
    return task.body.refused.get(host) == FORCED_DOWN


def raise_generation(instance: Instance, task: Task, now_us: int) -> Decision:
    """Commands of whoever owned the instance before are stale from here on."""
    return Decision(instance=msgspec.structs.replace(instance, command_generation=instance.command_generation + 1))
