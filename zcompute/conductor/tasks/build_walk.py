"""The decisions of a build: pure. Steps: schedule -> claim -> spawn; abandon behind the deadline, after a failure or
before any host was told; cancel (the host that was told destroys it) -> abandon when an operator aborts it.

Five commits when all goes well: the intake, the journal of the claim, the claim itself (at the host's owner), the
journal of the spawn (host, reporter generation and claim in force, all in one), and the result.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from zcompute.conductor.tasks.decision import CREATE_END, CREATE_ERROR, CREATE_START, Decision, make_fault
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.instance import (
    TASK_SCHEDULING,
    TASK_SPAWNING,
    VM_ACTIVE,
    VM_BUILDING,
    VM_ERROR,
    Instance,
)
from zcompute.objects.report import OUTCOME_DONE, StepResult
from zcompute.objects.task import TASK_BUILD, TASK_PARKED, TASK_RUNNING, ClaimName, Task, TaskBody

STEP_SCHEDULE = "schedule"
STEP_CLAIM = "claim"
STEP_SPAWN = "spawn"
STEP_ABANDON = "abandon"
STEP_CANCEL = "cancel"
HOST_TOLD = frozenset({STEP_SPAWN, STEP_CANCEL})  # the host of the attempt under way may have something

OUTBOX_REFUSED = "refused"
ABORTED = "the build was aborted by an operator"
REASON_CHARS_MAX = 255
REFUSALS_SHOWN_MAX = 5


def begin_build(request: BuildRequest, task_id: str, now_us: int, deadline_s: int) -> Decision:
    """Take a build request in: the instance, and its task at the first step."""
    instance = Instance(
        uuid=request.uuid,
        project_id=request.project_id,
        user_id=request.user_id,
        name=request.name,
        flavor=request.flavor,
        spec=request.spec,
        mapping_generation=request.generation,
        created_at_us=request.created_at_us or now_us,
        vm_state=VM_BUILDING,
        task_state=TASK_SCHEDULING,
        task_id=task_id,
    )
    task = Task(
        id=task_id,
        instance_uuid=request.uuid,
        kind=TASK_BUILD,
        step=STEP_SCHEDULE,
        deadline_at_us=now_us + deadline_s * 1_000_000,
        operation_id=request.operation_id,
        request_id=request.request_id,
        created_at_us=now_us,
    )
    return Decision(instance=instance, task=task)


def begin_attempt(task: Task, hosts: Sequence[str]) -> Decision:
    """Journal the next attempt, on the first of ``hosts``, before its claim is asked for."""
    body = task.body
    host = hosts[0]
    named = body.named_hosts if host in body.named_hosts else [*body.named_hosts, host]
    return Decision(
        task=msgspec.structs.replace(
            task,
            step=STEP_CLAIM,
            attempt=task.attempt + 1,
            body=msgspec.structs.replace(body, host=host, candidates=list(hosts[1:]), named_hosts=named),
        )
    )


def claim_refused(instance: Instance, task: Task, reason: str) -> Decision:
    """The host has no room, or the server group no place there: the next candidate, or the scheduler once more. A
    member's place may have been reserved before the room was refused: it is owed back."""
    return next_attempt(task, reason, () if instance.spec.group is None else (_claim_of(task),))


def begin_spawn(instance: Instance, task: Task) -> Decision:
    """The claim is granted: host, reporter generation and claim in force change in this one commit."""
    return Decision(
        instance=msgspec.structs.replace(
            instance,
            host=task.body.host,
            claim=f"{task.id}/{task.attempt}",
            generation=instance.generation + 1,
            command_generation=instance.command_generation + 1,
            agent_epoch=0,
            observed_seq=0,
            task_state=TASK_SPAWNING,
        ),
        task=msgspec.structs.replace(task, step=STEP_SPAWN),
        events=(CREATE_START,),
    )


def spawn_ended(instance: Instance, task: Task, result: StepResult, now_us: int, ending_s: int) -> Decision:
    """The agent's word on the spawn under way. It may come after the task has parked, and behind an observation that
    the agent made after it: that one says how the machine is now.
    """
    if result.outcome == OUTCOME_DONE:
        active = msgspec.structs.replace(
            instance,
            vm_state=VM_ACTIVE,
            task_state=None,
            task_id=None,
            power_state=instance.power_state if instance.observed_seq else result.power_state,
            launched_at_us=now_us,
            fault=None,
        )
        return Decision(instance=active, ended=True, events=(CREATE_END,))
    reason = result.message or "the hypervisor could not build it"
    if task.state == TASK_PARKED:
        return abandon(instance, task, reason, now_us, ending_s)
    return spawn_given_up(instance, task, reason)


def spawn_given_up(instance: Instance, task: Task, reason: str) -> Decision:
    """Nothing is or will be on the host: its claim is owed back, the next candidate is tried."""
    decision = next_attempt(task, reason, (_claim_of(task),))
    homeless = msgspec.structs.replace(instance, host=None, claim=None, task_state=TASK_SCHEDULING)
    return Decision(instance=homeless, task=decision.task, events=(CREATE_ERROR,), failed=reason)


def spawn_refused(instance: Instance, task: Task, reason: str, now_us: int) -> Decision:
    """The same: its agent cannot be told at all."""
    return spawn_given_up(instance, task, reason)


def host_lost(instance: Instance, task: Task, now_us: int) -> Decision:
    """The host that was told to build it is forced down: the build ends, in ERROR, and nothing is built elsewhere.

    The instance keeps host and claim: what the host may have begun is still its own when it comes back, and a delete
    asks there.
    """
    reason = f"host {task.body.host} was forced down while it built the instance"
    lost = msgspec.structs.replace(
        instance, vm_state=VM_ERROR, task_state=None, task_id=None, fault=make_fault(reason, now_us)
    )
    return Decision(instance=lost, ended=True)


def abandon(instance: Instance, task: Task, reason: str, now_us: int, ending_s: int) -> Decision:
    """A build that is behind its deadline is for certain on no host: it ends in ERROR once its claims are released."""
    owed = [_claim_of(task)] if task.body.host and task.step != STEP_CANCEL else []
    body = msgspec.structs.replace(
        task.body, host=None, named_hosts=[], candidates=[], release=[*task.body.release, *owed]
    )
    return Decision(
        instance=msgspec.structs.replace(
            instance, host=None, claim=None, vm_state=VM_ERROR, task_state=None, fault=make_fault(reason, now_us)
        ),
        task=msgspec.structs.replace(
            task,
            step=STEP_ABANDON,
            state=TASK_RUNNING,
            body=body,
            deadline_at_us=now_us + ending_s * 1_000_000,
        ),
        events=() if instance.vm_state == VM_ERROR else (CREATE_ERROR,),  # told when it parked
        failed=reason,
    )


def abort_build(instance: Instance, task: Task, now_us: int, deadline_s: int, ending_s: int) -> Decision:
    """An operator ends it: at once where no host was told, else once the host has destroyed what it may have begun.

    The claim is owed from here on, by its name: further attempts are those of the cancellation.
    """
    if no_host_told(task):
        return abandon(instance, task, ABORTED, now_us, ending_s)
    body = replace(task.body, candidates=[], release=[*task.body.release, _claim_of(task)])
    return Decision(
        instance=replace(instance, command_generation=instance.command_generation + 1),
        task=replace(
            task,
            step=STEP_CANCEL,
            state=TASK_RUNNING,
            body=body,
            deadline_at_us=now_us + deadline_s * 1_000_000,
        ),
        failed=ABORTED,
    )


def cancel_ended(instance: Instance, task: Task, result: StepResult, now_us: int, ending_s: int) -> Decision:
    """The host's word on the cancellation. A failure is tried again, under a new generation, until the deadline."""
    if result.outcome == OUTCOME_DONE:
        return abandon(instance, task, ABORTED, now_us, ending_s)
    return Decision(
        instance=replace(instance, command_generation=instance.command_generation + 1),
        task=replace(task, attempt=task.attempt + 1),
        failed=result.message or f"host {result.host} could not destroy it",
    )


def no_host_told(task: Task) -> bool:
    """Whether a build is at a step before any host of its present attempt was sent a command: what was tried before
    has failed there for certain."""
    return task.kind == TASK_BUILD and task.step in (STEP_SCHEDULE, STEP_CLAIM)


def end_abandoned(instance: Instance) -> Decision:
    """All claims are released: the instance stays, in ERROR, without a task."""
    return Decision(instance=msgspec.structs.replace(instance, task_id=None), ended=True)


def refuse_build(instance: Instance, task: Task, cell: str, reason: str, now_us: int) -> Decision:
    """This cell definitely does not build it: the whole build request goes back to the root in the same commit.

    The row stays as it is (BUILD) until the root has acknowledged: it then shows the server itself, or another cell.
    """
    request = BuildRequest(
        uuid=instance.uuid,
        project_id=instance.project_id,
        user_id=instance.user_id,
        name=instance.name,
        flavor=instance.flavor,
        spec=instance.spec,
        operation_id=task.operation_id,
        request_id=task.request_id,
        created_at_us=instance.created_at_us,
        cell=cell,
        generation=instance.mapping_generation,
    )
    entry = OutboxEntry(
        instance_uuid=instance.uuid,
        project_id=instance.project_id,
        kind=OUTBOX_REFUSED,
        generation=instance.mapping_generation,
        reason=reason[:REASON_CHARS_MAX],
        build_request=request,
        request_id=task.request_id,
        created_at_us=now_us,
    )
    waiting = msgspec.structs.replace(
        instance, vm_state=VM_BUILDING, task_state=TASK_SCHEDULING, task_id=None, host=None, claim=None
    )
    return Decision(instance=waiting, ended=True, outbox=entry, failed=reason)


def refusal_pending(instance: Instance) -> bool:
    """A refusal is on its way to the root: the only case of a building instance without a task."""
    return instance.vm_state == VM_BUILDING and instance.task_id is None


def refusal_reason(body: TaskBody, filters: Mapping[str, int]) -> str:
    """Why no host took it: what the filters turned away, what hosts answered."""
    parts = [f"{name} turned away {count} hosts" for name, count in sorted(filters.items()) if count]
    refused = list(body.refused.items())
    parts += [f"{host}: {reason}" for host, reason in refused[:REFUSALS_SHOWN_MAX]]
    if len(refused) > REFUSALS_SHOWN_MAX:
        parts.append(f"and {len(refused) - REFUSALS_SHOWN_MAX} hosts more refused")
    return "; ".join(parts) or "the scheduler knows no host that fits"


def _claim_of(task: Task) -> ClaimName:
    return ClaimName(host=task.body.host or "", task_id=task.id, attempt=task.attempt)


def next_attempt(task: Task, reason: str, release: Sequence[ClaimName]) -> Decision:
    """The next candidate, or the scheduler once more. The present one has definitely failed: it is named no longer."""
    body = task.body
    failed = body.host or ""
    body = msgspec.structs.replace(
        body,
        host=None,
        named_hosts=[host for host in body.named_hosts if host != failed],
        refused={**body.refused, failed: reason[:REASON_CHARS_MAX]},
        release=[*body.release, *release],
    )
    if body.candidates:
        return replace(begin_attempt(msgspec.structs.replace(task, body=body), body.candidates), failed=reason)
    body = msgspec.structs.replace(body, reschedules=body.reschedules + 1)
    return Decision(task=msgspec.structs.replace(task, step=STEP_SCHEDULE, body=body), failed=reason)
