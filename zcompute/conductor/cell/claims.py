"""Claims on a host's room: what fits, what is granted, what may be swept. Pure.

A host's used amounts change only together with a claim's row, in one commit at the owner of the host.
"""

from dataclasses import dataclass
from typing import Protocol

import msgspec

from zcompute.config import SchedulerConfig
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HOST_UP, Claim, Host
from zcompute.objects.instance import Instance
from zcompute.objects.messages.hosts import ClaimRequest
from zcompute.objects.task import ClaimName, Task


@dataclass(frozen=True)
class ClaimDecision:
    """granted or refused(reason). ``host`` and ``claim`` are the new rows, None when nothing changes."""

    granted: bool
    reason: str = ""
    host: Host | None = None
    claim: Claim | None = None


def room_of(host: Host, ratios: SchedulerConfig) -> Amounts:
    """What may be promised on a host in all: its amounts times the allocation ratios."""
    return Amounts(
        vcpus=int(host.total.vcpus * ratios.cpu_allocation_ratio),
        memory_mb=int(host.total.memory_mb * ratios.ram_allocation_ratio),
        disk_gb=int(host.total.disk_gb * ratios.disk_allocation_ratio),
    )


def free_on(host: Host, ratios: SchedulerConfig) -> Amounts:
    """What can still be promised; never below zero (a ratio may have been lowered)."""
    free = room_of(host, ratios).minus(host.used)
    return Amounts(vcpus=max(0, free.vcpus), memory_mb=max(0, free.memory_mb), disk_gb=max(0, free.disk_gb))


def takes_new(host: Host) -> bool:
    """Whether new instances may come: up, enabled, not forced down."""
    return host.state == HOST_UP and not host.disabled and not host.forced_down


def decide_claim(
    host: Host | None, existing: Claim | None, request: ClaimRequest, ratios: SchedulerConfig, now_us: int
) -> ClaimDecision:
    """Grant or refuse. The same claim again is granted again and changes nothing."""
    if existing is not None:
        same = (existing.host, existing.amounts) == (request.host, request.amounts)
        return ClaimDecision(same, "" if same else f"claim {existing.name} is in force on host {existing.host}")
    if host is None:
        return ClaimDecision(False, f"host {request.host} is not known")
    if not takes_new(host):
        state = "forced down" if host.forced_down else "disabled" if host.disabled else host.state
        return ClaimDecision(False, f"host {request.host} is {state}")
    lacking = _lacking(request.amounts, free_on(host, ratios))
    if lacking:
        return ClaimDecision(False, lacking)
    claim = Claim(
        instance_uuid=request.instance_uuid,
        task_id=request.task_id,
        attempt=request.attempt,
        host=request.host,
        amounts=request.amounts,
        created_at_us=now_us,
    )
    fuller = msgspec.structs.replace(
        host, used=host.used.plus(request.amounts), instances=host.instances + 1, updated_at_us=now_us
    )
    return ClaimDecision(True, host=fuller, claim=claim)


def decide_release(host: Host | None, claim: Claim | None, now_us: int) -> Host | None:
    """The host's row without the claim; None when there is no such claim (it counts as released)."""
    if claim is None or host is None:
        return None
    return msgspec.structs.replace(
        host, used=host.used.minus(claim.amounts), instances=host.instances - 1, updated_at_us=now_us
    )


class Named(Protocol):
    """A claim, or the place in a server group that was reserved with it."""

    instance_uuid: str
    task_id: str
    attempt: int
    host: str

    @property
    def name(self) -> str: ...


def in_force(claim: Named, instance: Instance | None, task: Task | None) -> bool:
    """A claim is in force while the instance's row or its running task names it; the row names that of the copy which a
    move has left, too."""
    if instance is not None and instance.claim == claim.name:
        return True
    move = None if instance is None else instance.move
    if move is not None and (move.former_host, move.former_claim) == (claim.host, claim.name):
        return True
    if task is None or task.instance_uuid != claim.instance_uuid:
        return False
    if task.id == claim.task_id and task.attempt == claim.attempt and task.body.host == claim.host:
        return True
    return ClaimName(host=claim.host, task_id=claim.task_id, attempt=claim.attempt) in task.body.release


def _lacking(wanted: Amounts, free: Amounts) -> str:
    """In Nova's manner: "insufficient memory_mb: requested 512, free 0", for each resource that lacks; "" if none."""
    names = ("vcpus", "memory_mb", "disk_gb")
    return "; ".join(
        f"insufficient {name}: requested {getattr(wanted, name)}, free {getattr(free, name)}"
        for name in names
        if getattr(wanted, name) > getattr(free, name)
    )
