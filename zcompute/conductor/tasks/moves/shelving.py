"""The decisions of shelving, beside those that every move has: pure.

A server is shelved when its image is made: from that commit on its disk is of no more use, and there is no way back.
One that is offloaded is on no host, and has no claim: its project is charged for it all the same, as in Nova.
"""

import msgspec

from zcompute.conductor.tasks.decision import Decision
from zcompute.conductor.tasks.imaging import made
from zcompute.conductor.tasks.moves.walk import advance, call_off, claim_in_force, roll_back, undone
from zcompute.objects.instance import POWER_SHUTDOWN, VM_SHELVED, VM_STOPPED, Instance
from zcompute.objects.report import OUTCOME_DONE, StepResult
from zcompute.objects.task import Task


def first_step_ended(instance: Instance, task: Task, result: StepResult, now_us: int, ending_s: int) -> Decision:
    """The host's word on being shut down, or started again. What failed was not done."""
    if result.outcome != OUTCOME_DONE:
        return call_off(instance, task, _reason(result), now_us, ending_s)
    return advance(instance, task, now_us, ending_s)


def snapshot_ended(instance: Instance, task: Task, result: StepResult, now_us: int, ending_s: int) -> Decision:
    """The image is made: the server is shelved, wherever the task still goes."""
    if result.outcome != OUTCOME_DONE:
        return roll_back(instance, task, _reason(result), now_us, ending_s)
    body = msgspec.structs.replace(
        task.body,
        answers={**task.body.answers, task.step: result.answer},
        former_vm_state=VM_SHELVED,
        fault=None,
    )
    shelved = msgspec.structs.replace(
        instance, vm_state=VM_SHELVED, fault=None, shelved_image_ref=task.body.arguments.image_ref
    )
    decision = advance(shelved, msgspec.structs.replace(task, body=body), now_us, ending_s)
    return msgspec.structs.replace(decision, made=made(task.body.arguments.image_ref, result))


def leave(instance: Instance, task: Task, now_us: int, ending_s: int) -> Decision:
    """It is on no host any more, in this one commit; its claim there is owed back."""
    body = msgspec.structs.replace(task.body, release=[*task.body.release, *claim_in_force(instance)])
    homeless = msgspec.structs.replace(
        instance,
        host=None,
        claim=None,
        generation=instance.generation + 1,
        agent_epoch=0,
        observed_seq=0,
        power_state=POWER_SHUTDOWN,
        progress=0,
    )
    return advance(homeless, task, now_us, ending_s, body)


def stays_down(instance: Instance, task: Task, now_us: int, ending_s: int) -> Decision:
    """On the way back: it ran no more before it was shelved, or its memory is lost now."""
    body = msgspec.structs.replace(task.body, former_vm_state=VM_STOPPED)
    return undone(instance, msgspec.structs.replace(task, body=body), now_us, ending_s)


def _reason(result: StepResult) -> str:
    return result.message or f"host {result.host} could not {result.step}"
