"""Filters: which hosts may take an instance, and how many each filter turned away.

Named as Nova names them, because operators know these names from fault messages. Each sees only the hosts that the
former ones left, so that the counts add up to the hosts turned away.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zcompute.objects.flavor import Amounts
from zcompute.scheduler.host_states import BoolColumn, View


@dataclass(frozen=True)
class Wanted:
    """What an instance needs. ``zone`` is the number of its availability zone, ``only_rows`` the hosts of which one it
    is to be; None for any."""

    amounts: Amounts
    zone: int | None = None
    ignore_rows: tuple[int, ...] = ()
    only_rows: tuple[int, ...] | None = None


Filter = Callable[[View, Wanted], BoolColumn]


def ignore_hosts_filter(view: View, wanted: Wanted) -> BoolColumn:
    """Not one of the hosts that the caller ruled out."""
    passing = np.ones(len(view), dtype=np.bool_)
    passing[list(wanted.ignore_rows)] = False
    return passing


def affinity_filter(view: View, wanted: Wanted) -> BoolColumn:
    """One of the hosts that the caller named: for now those of a server group."""
    passing = np.ones(len(view), dtype=np.bool_)
    if wanted.only_rows is not None:
        passing[:] = False
        passing[list(wanted.only_rows)] = True
    return passing


def compute_filter(view: View, _wanted: Wanted) -> BoolColumn:
    """Up and enabled."""
    return view.usable


def availability_zone_filter(view: View, wanted: Wanted) -> BoolColumn:
    """In the zone asked for."""
    if wanted.zone is None:
        return np.ones(len(view), dtype=np.bool_)
    in_zone: BoolColumn = view.zones == wanted.zone
    return in_zone


def ram_filter(view: View, wanted: Wanted) -> BoolColumn:
    """Room for its memory; an instance never overcommits against itself (Nova's RamFilter)."""
    memory_mb = wanted.amounts.memory_mb
    fits: BoolColumn = (view.free_memory_mb >= memory_mb) & (view.total_memory_mb >= memory_mb)
    return fits


def core_filter(view: View, wanted: Wanted) -> BoolColumn:
    """Room for its cores; an instance never overcommits against itself (Nova's CoreFilter)."""
    fits: BoolColumn = (view.free_vcpus >= wanted.amounts.vcpus) & (view.total_vcpus >= wanted.amounts.vcpus)
    return fits


def disk_filter(view: View, wanted: Wanted) -> BoolColumn:
    """Room for its disk."""
    fits: BoolColumn = view.free_disk_gb >= wanted.amounts.disk_gb
    return fits


FILTERS: tuple[tuple[str, Filter], ...] = (
    ("IgnoreHostsFilter", ignore_hosts_filter),
    ("ServerGroupAffinityFilter", affinity_filter),
    ("ComputeFilter", compute_filter),
    ("AvailabilityZoneFilter", availability_zone_filter),
    ("RamFilter", ram_filter),
    ("CoreFilter", core_filter),
    ("DiskFilter", disk_filter),
)


def passing_hosts(view: View, wanted: Wanted) -> tuple[BoolColumn, dict[str, int]]:
    """Which hosts pass all filters, and how many each filter turned away (those that turned none away left out)."""
    passing = np.ones(len(view), dtype=np.bool_)
    left = len(view)
    reasons: dict[str, int] = {}
    for name, host_filter in FILTERS:
        passing &= host_filter(view, wanted)
        now_left = int(np.count_nonzero(passing))
        if now_left < left:
            reasons[name] = left - now_left
        left = now_left
    return passing, reasons
