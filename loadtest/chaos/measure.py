"""What the faults cost, in OpenStack's terms (rally's reliability metrics): service downtime, MTTR, degradation.

Pure: a history in, numbers out. The service is what a machine's change of state gets: to be durable. An update waits
from its report until it, or a newer one of its instance, is acknowledged as durable.
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median

from loadtest.chaos.check import value_by_name, waits
from loadtest.chaos.history import Answer, Event, Fault, Report
from zcompute.cli.up.boots import percentile
from zcompute.objects.report import VERDICT_ALREADY_THERE, VERDICT_APPLIED

BIN_S = 0.1
DEGRADED_TIMES = 3.0  # an update that waits longer than this many times the median without a fault is degraded
DEGRADED_S_MIN = 0.1
FOUND_S_MAX = 0.5  # a fault finds updates that have waited for so long: batches are held for a moment before it
SILENT = ("database", "promote")  # with these nothing at all is acknowledged in the cell for a while
BASE_AFTER_S = 1.0  # so long after a fault is over, or before one, the service counts as undisturbed


@dataclass(frozen=True)
class Cost:
    """One fault: the longest wait of any update (s), from the fault until no update is degraded any more, until it was
    undone, and the longest time without any acknowledgement."""

    name: str
    t: float
    stall_s: float
    recovered_s: float
    mean_wait_s: float
    undone_s: float
    silent_s: float


def acknowledged(events: Iterable[Event]) -> list[float]:
    """When each report was first said to be durable."""
    first: dict[tuple[str, int], float] = {}
    for event in events:
        if isinstance(event, Answer) and event.verdict in (VERDICT_APPLIED, VERDICT_ALREADY_THERE):
            first.setdefault((event.agent, event.seq), event.t)
    return sorted(first.values())


def costs(events: Sequence[Event]) -> tuple[list[Cost], list[float]]:
    """Each fault's cost, and the waits of the undisturbed time."""
    reports = [event for event in events if isinstance(event, Report)]
    answers = [event for event in events if isinstance(event, Answer)]
    faults = sorted((event for event in events if isinstance(event, Fault)), key=lambda fault: fault.t)
    found = [(report.t, end - report.t) for report, end in waits(reports, answers, value_by_name(reports))]
    found = sorted((t, wait) for t, wait in found if math.isfinite(wait))
    base = [wait for t, wait in found if not _disturbed(t, t + wait, faults)]
    limit = max(DEGRADED_S_MIN, DEGRADED_TIMES * (median(base) if base else 0.0))
    times = acknowledged(events)
    result = []
    longest = max((wait for _, wait in found), default=0.0)
    for place, fault in enumerate(faults):
        end = fault.over + BASE_AFTER_S
        if place + 1 < len(faults):
            end = min(end, faults[place + 1].t)
        inside = found[bisect_left(found, (fault.t - longest, 0.0)) : bisect_left(found, (end, 0.0))]
        # What a fault finds waiting waits for it, unless it has done so for long: then for the one before.
        after = faults[place + 1].t if place + 1 < len(faults) else math.inf
        hit = [
            (t, wait)
            for t, wait in inside
            if t + wait >= fault.t and fault.t - t <= FOUND_S_MAX and (t + wait < after or after - t > FOUND_S_MAX)
        ]
        slow = [(t, wait) for t, wait in hit if wait > limit]
        recovered = max((t + wait for t, wait in slow), default=fault.t) - fault.t
        waited = [wait for _, wait in slow]
        stall = max((wait for _, wait in hit), default=0.0)
        waited_s = mean(waited) if waited else 0.0
        silent = _silence(times, fault.t, end)
        result.append(Cost(fault.name, fault.t, stall, recovered, waited_s, fault.undone - fault.t, silent))
    return result, sorted(base)


def _silence(times: Sequence[float], begin: float, end: float) -> float:
    """The longest time without one of these, of those that touch the span."""
    around = times[max(0, bisect_left(times, begin) - 1) : bisect_left(times, end) + 1]
    return max((later - former for former, later in pairwise(around)), default=0.0)


def _disturbed(begin: float, end: float, faults: Sequence[Fault]) -> bool:
    return any(fault.t - BASE_AFTER_S <= end and begin <= fault.over + BASE_AFTER_S for fault in faults)


def metrics(events: Sequence[Event]) -> dict[str, float]:
    """The report's numbers but for the violations."""
    found, base = costs(events)
    times = acknowledged(events)
    numbers: dict[str, float] = {
        "acknowledged": len(times),
        "kills": sum(cost.name in ("kill", "all") for cost in found),
        "faults": len(found),
        "updates_per_second": round(len(times) / (times[-1] - times[0]), 1) if len(times) > 1 else 0.0,
        "wait_p50_s": round(percentile(base, 50), 4),
        "wait_p99_s": round(percentile(base, 99), 4),
    }
    by_name: dict[str, list[Cost]] = defaultdict(list)
    for cost in found:
        by_name[cost.name].append(cost)
    quiet = mean(base) if base else 0.0
    for name, some in sorted(by_name.items()):
        stalls = sorted(cost.stall_s for cost in some)
        degraded = mean([cost.mean_wait_s for cost in some])
        numbers[f"count_{name}"] = len(some)
        numbers[f"stall_p50_s_{name}"] = round(percentile(stalls, 50), 3)
        numbers[f"stall_p99_s_{name}"] = round(percentile(stalls, 99), 3)
        if name in SILENT:
            silences = sorted(cost.silent_s for cost in some)
            numbers[f"undone_s_{name}"] = round(mean([cost.undone_s for cost in some]), 3)
            numbers[f"silent_p50_s_{name}"] = round(percentile(silences, 50), 3)
            numbers[f"silent_p99_s_{name}"] = round(percentile(silences, 99), 3)
        numbers[f"mttr_s_{name}"] = round(mean([cost.recovered_s for cost in some]), 3)
        numbers[f"degradation_s_{name}"] = round(max(0.0, degraded - quiet), 3)
        numbers[f"degradation_times_{name}"] = round(degraded / quiet, 1) if quiet else 0.0
    numbers["downtime_s"] = round(downtime(times, found), 2)
    return numbers


def downtime(times: Sequence[float], found: Sequence[Cost]) -> float:
    """Seconds of the run in which nothing at all was acknowledged, in whole bins."""
    if len(times) < 2:
        return 0.0
    bins = {int((t - times[0]) / BIN_S) for t in times}
    return (int((times[-1] - times[0]) / BIN_S) + 1 - len(bins)) * BIN_S


def throughput(times: Sequence[float], bin_s: float) -> tuple[list[float], list[float]]:
    """Seconds since the first, and acknowledgements a second, by bin."""
    if not times:
        return [], []
    counts = [0] * (int((times[-1] - times[0]) / bin_s) + 1)
    for t in times:
        counts[int((t - times[0]) / bin_s)] += 1
    return [place * bin_s for place in range(len(counts))], [count / bin_s for count in counts]
