"""Choosing hosts: filters, then weights, then a random one of the best few, with alternates."""

import numpy as np

from zcompute.objects.errors import SchedulerStale
from zcompute.objects.messages.hosts import SelectReply, SelectRequest
from zcompute.scheduler.errors import SelectionRefused
from zcompute.scheduler.filters import Wanted, passing_hosts
from zcompute.scheduler.host_states import HostStates
from zcompute.scheduler.settings import SelectionSettings
from zcompute.scheduler.weighers import best_rows, spread_weigher


def select(
    states: HostStates,
    request: SelectRequest,
    settings: SelectionSettings,
    random: np.random.Generator,
    now: float,
) -> SelectReply:
    """Hosts for each instance of the request, first the one to try, then alternates; each choice is consumed at once.

    ``now`` is monotonic, in seconds. ``reasons`` are those of the last instance: once one finds no host, none of the
    later ones does. Raises SchedulerStale while a partition is unknown, SelectionRefused over a limit.
    """
    _check(request, settings)
    missing = states.missing_partitions
    if missing:
        raise SchedulerStale(f"hosts of {missing} partitions are not known yet: ask another scheduler", missing=missing)
    states.expire(now)
    wanted = Wanted(
        amounts=request.amounts,
        zone=None if request.availability_zone is None else states.zone_id(request.availability_zone),
        ignore_rows=tuple(states.rows(request.ignore_hosts)),
        only_rows=tuple(states.rows(request.only_hosts)) if request.only_hosts else None,
    )
    hosts: list[list[str]] = []
    reasons: dict[str, int] = {}
    for _ in request.instance_uuids:
        if hosts and not hosts[-1]:
            hosts.append([])
            continue
        chosen, reasons = _select_one(states, wanted, request.alternates, settings, random, now)
        hosts.append(chosen)
    return SelectReply(hosts=hosts, reasons=reasons)


def _select_one(
    states: HostStates,
    wanted: Wanted,
    alternates: int,
    settings: SelectionSettings,
    random: np.random.Generator,
    now: float,
) -> tuple[list[str], dict[str, int]]:
    view = states.view()
    passing, reasons = passing_hosts(view, wanted)
    rows = np.flatnonzero(passing)
    if not len(rows):
        return [], reasons
    best = best_rows(spread_weigher(view), rows, max(settings.host_subset_size, alternates + 1), random)
    first = best.pop(int(random.integers(min(settings.host_subset_size, len(best)))))
    states.consume(first, wanted.amounts, now)
    return [states.name(row) for row in (first, *best[:alternates])], reasons


def _check(request: SelectRequest, settings: SelectionSettings) -> None:
    limits = (
        ("instance_uuids", len(request.instance_uuids), settings.instances_per_call_max),
        ("alternates", request.alternates, settings.alternates_max),
        ("ignore_hosts", len(request.ignore_hosts), settings.ignore_hosts_max),
        ("only_hosts", len(request.only_hosts), settings.ignore_hosts_max),
    )
    for field, found, limit in limits:
        if not 0 <= found <= limit:
            raise SelectionRefused(f"{field}: expected 0 to {limit}, found {found}", field=field)
    if min(request.amounts.vcpus, request.amounts.memory_mb, request.amounts.disk_gb) < 0:
        raise SelectionRefused(f"amounts: expected none below 0, found {request.amounts}", field="amounts")
