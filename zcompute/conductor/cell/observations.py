"""Who may say what of an instance, and what is newer: the verdicts on reports, decided purely (design, section 6).

A report's epoch is its link's. Observations are ordered by (reporter generation, agent epoch, sequence) and accepted
from the granted host only; step results are accepted when their (generation, task, step, attempt) is the one under way.
"""

from collections.abc import Collection

import msgspec

from zcompute.conductor.tasks.build_walk import STEP_SPAWN
from zcompute.conductor.tasks.decision import Decision
from zcompute.conductor.tasks.results import AWAITED
from zcompute.objects.instance import POWER_NOSTATE, VM_DELETED, Instance
from zcompute.objects.report import (
    OUTCOME_DONE,
    VERDICT_ALREADY_THERE,
    VERDICT_APPLIED,
    VERDICT_INVALID,
    VERDICT_NOT_YET,
    VERDICT_NOT_YOURS,
    VERDICT_STALE,
    VERDICT_SUPERSEDED,
    Observation,
    StepResult,
)
from zcompute.objects.task import Task

# The detail that says: a host which has begun anew since the delete still has the domain.
GHOST = "the instance is deleted, and is on a host that was not asked to destroy it"


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The answer to a report, and what it changes (None: nothing)."""

    verdict: str
    detail: str = ""
    decision: Decision | None = None


def judge_observation(
    instance: Instance | None,
    observation: Observation,
    agent_epoch: int,
    seq: int,
    named_hosts: Collection[str] | None,
) -> Verdict:
    """What to do with an observation. ``named_hosts`` are those of the running task, None when they are not known
    here (the task has not been read yet)."""
    if instance is None:
        return Verdict(VERDICT_NOT_YOURS, "no such instance")
    if instance.vm_state == VM_DELETED:
        left_behind = not observation.gone and agent_epoch > instance.agent_epoch
        return Verdict(VERDICT_SUPERSEDED, GHOST if left_behind else "the instance is deleted")
    if observation.generation > instance.generation:
        return Verdict(
            VERDICT_INVALID, f"generation {observation.generation} was never granted, newest is {instance.generation}"
        )
    if observation.host != instance.host or observation.generation < instance.generation:
        return _of_other_grant(instance, observation, named_hosts)
    watermark, now = (instance.agent_epoch, instance.observed_seq), (agent_epoch, seq)
    if now == watermark:
        return Verdict(VERDICT_ALREADY_THERE)
    if now < watermark:
        return Verdict(VERDICT_STALE, f"epoch and sequence {now} are behind {watermark}")
    observed = msgspec.structs.replace(
        instance,
        power_state=POWER_NOSTATE if observation.gone else observation.power_state,
        progress=observation.progress,
        agent_epoch=agent_epoch,
        observed_seq=seq,
    )
    return Verdict(VERDICT_APPLIED, decision=Decision(instance=observed))


def _of_other_grant(instance: Instance, observation: Observation, named_hosts: Collection[str] | None) -> Verdict:
    """Not from the host that is granted now: named in the task, granted formerly, or neither."""
    if observation.host == instance.host:
        return Verdict(VERDICT_SUPERSEDED, f"generation {observation.generation} is behind {instance.generation}")
    unread = named_hosts is None and instance.task_id is not None
    if unread or observation.host in (named_hosts or ()):
        return Verdict(VERDICT_NOT_YET, "the host is named in a task, it is not granted")
    if 0 < observation.generation < instance.generation:
        return Verdict(VERDICT_SUPERSEDED, "another host is granted now")
    return Verdict(VERDICT_NOT_YOURS, "the host has no grant")


def judge_step_result(
    instance: Instance | None, task: Task | None, result: StepResult, now_us: int, ending_s: int
) -> Verdict:
    """What to do with the outcome of a step. ``task`` is the one that the result names, None when it has ended."""
    if instance is None:
        return Verdict(VERDICT_NOT_YOURS, "no such instance")
    if task is None or instance.task_id != task.id:
        return _of_ended_task(instance, result)
    if result.generation > instance.command_generation:
        return Verdict(
            VERDICT_INVALID, f"generation {result.generation} was never sent, newest is {instance.command_generation}"
        )
    under_way = (instance.command_generation, task.step, task.attempt)
    if (result.generation, result.step, result.attempt) != under_way:
        return Verdict(VERDICT_SUPERSEDED, f"(generation, step, attempt) under way is {under_way}")
    awaited = AWAITED.get((task.kind, task.step))
    if awaited is None:
        return Verdict(VERDICT_SUPERSEDED, f"step {task.step} of a {task.kind} task waits for no result")
    hosts = awaited.hosts(task)
    if result.host not in hosts:
        return Verdict(VERDICT_NOT_YOURS, f"the step under way is on {', '.join(hosts) or 'no host'}")
    if result.host in awaited.heard(task):
        return Verdict(VERDICT_ALREADY_THERE)
    return Verdict(VERDICT_APPLIED, decision=awaited.ended(instance, task, result, now_us, ending_s))


def _of_ended_task(instance: Instance, result: StepResult) -> Verdict:
    named = result.outcome == OUTCOME_DONE and instance.claim == f"{result.task_id}/{result.attempt}"
    if named and result.step == STEP_SPAWN and instance.launched_at_us is not None:
        return Verdict(VERDICT_ALREADY_THERE)
    return Verdict(VERDICT_SUPERSEDED, "the task has ended")
