"""What a project is charged: a usage row per server, and their total in the same decision. Pure.

The total (PROJECT_USAGES) is a derived row: the ledger reads it when the project is first touched, as the sum of the
committed usage rows, and keeps it as it keeps every row: undone with a decision that is refused, dropped when the
partition is lost. It stays right because whoever changes a usage row names the total with it.
"""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from zcompute.conductor.change import Change
from zcompute.db.tables import PROJECT_USAGES, QUOTAS, USAGES, TableCodec
from zcompute.objects.build_request import Usage
from zcompute.objects.errors import QuotaExceeded
from zcompute.objects.flavor import Flavor
from zcompute.objects.quota import UNLIMITED, Amount, Limits, ProjectUsage

Key = tuple[TableCodec[Any], tuple[Any, ...]]


def total_key(project_id: str) -> Key:
    """The row to be named by every decision that changes a usage row of the project."""
    return (PROJECT_USAGES, (project_id,))


def total_of(change: Change, project_id: str) -> ProjectUsage:
    """What the project has by the decisions so far."""
    return change.get(PROJECT_USAGES, (project_id,)) or ProjectUsage(project_id=project_id)


def limits_of(change: Change, project_id: str, default: Limits) -> Limits:
    """The limits in force."""
    quota = change.get(QUOTAS, (project_id,))
    return default if quota is None else quota.limits.over(default)


def charge(change: Change, usages: Sequence[Usage]) -> None:
    """Servers of one project count from now on, or count otherwise than before."""
    if not usages:
        return
    total = total_of(change, usages[0].project_id)
    instances, cores, ram_mb = total.instances, total.cores, total.ram_mb
    for usage in usages:
        former = change.get(USAGES, (usage.uuid,))
        if former is None:
            instances += 1
            cores += usage.cores
            ram_mb += usage.ram_mb
        else:
            cores += usage.cores - former.cores
            ram_mb += usage.ram_mb - former.ram_mb
        change.put(USAGES, usage)
    change.put(PROJECT_USAGES, replace(total, instances=instances, cores=cores, ram_mb=ram_mb))


def release(change: Change, uuid: str) -> None:
    """A server counts no more. Once: a repeat finds no row, and changes nothing."""
    usage = change.get(USAGES, (uuid,))
    if usage is None:
        return
    total = total_of(change, usage.project_id)
    less = replace(
        total,
        instances=total.instances - 1,
        cores=total.cores - usage.cores,
        ram_mb=total.ram_mb - usage.ram_mb,
    )
    change.put(PROJECT_USAGES, less)
    change.delete(USAGES, (uuid,))


def amount_of(flavor: Flavor) -> Amount:
    """What one server of this flavor counts."""
    return Amount(instances=1, cores=flavor.vcpus, ram_mb=flavor.memory_mb)


def allowed_count(limits: Limits, used: Amount, each: Amount, min_count: int, max_count: int) -> int:
    """How many of ``min_count`` to ``max_count`` servers the limits leave room for: as many as fit, as in Nova.

    Raises QuotaExceeded, in Nova's words, when not even ``min_count`` do.
    """
    room = max_count
    over = []
    for name, limit in limits.by_name():
        if limit == UNLIMITED or not each.of(name):
            continue
        left = limit - used.of(name)
        if left < each.of(name) * max_count:
            over.append((name, limit))
            room = min(room, left // each.of(name))
    if room >= min_count:
        return room
    raise _exceeded(over, used, each, min_count, max_count)


def _exceeded(
    over: Sequence[tuple[str, int]], used: Amount, each: Amount, min_count: int, max_count: int
) -> QuotaExceeded:
    asked = each.times(max_count)
    count = str(max_count) if min_count == max_count else f"{min_count}-{max_count}"
    names = ", ".join(name for name, _ in over)
    requested = ", ".join(count if name == "instances" else str(asked.of(name)) for name, _ in over)
    have = ", ".join(str(used.of(name)) for name, _ in over)
    allowed = ", ".join(str(limit) for _, limit in over)
    return QuotaExceeded(
        f"Quota exceeded for {names}: Requested {requested}, but already used {have} of {allowed} {names}",
        resource=names,
        limit=allowed,
        used=have,
        requested=requested,
    )
