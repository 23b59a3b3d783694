"""Where an instance is to go, for builds and for every move: the one place that asks the scheduler, and the claim at a
host's owner."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from zcompute.conductor.tasks.run import TaskRun
from zcompute.objects.flavor import Amounts
from zcompute.objects.messages.hosts import ClaimReply, ClaimRequest, SelectRequest
from zcompute.objects.methods import CLAIM


@dataclass(frozen=True)
class Found:
    """Hosts that fit, best first; ``reasons``: how many each filter turned away."""

    hosts: list[str]
    reasons: Mapping[str, int]


def select_hosts(run: TaskRun, amounts: Amounts, ignored: Collection[str]) -> Found:
    """Ask a scheduler. Raises the bus' errors, DeadlinePassed."""
    reply = run.env.schedulers.select(
        SelectRequest(
            instance_uuids=[run.uuid],
            amounts=amounts,
            alternates=run.settings.alternates,
            availability_zone=run.instance.spec.availability_zone,
            ignore_hosts=sorted(ignored),
        ),
        timeout_ms=run.left_ms(run.settings.select_ms_max),
        one_ms_max=run.settings.select_one_ms_max,
    )
    return Found([host for host in (reply.hosts[0] if reply.hosts else []) if host not in ignored], reply.reasons)


def claim_present(run: TaskRun, amounts: Amounts) -> ClaimReply:
    """Claim for the attempt under way at the owner of its host; silence repeats the same claim. Raises BusError."""
    task = run.now_task()
    host = task.body.host or ""
    request = ClaimRequest(instance_uuid=run.uuid, task_id=task.id, attempt=task.attempt, host=host, amounts=amounts)
    reply: ClaimReply = run.env.router.call(host, CLAIM, request, timeout_ms=run.left_ms(run.settings.claim_ms_max))
    return reply
