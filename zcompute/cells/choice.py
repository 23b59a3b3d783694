"""Which cell gets a server: pure. Spreads softly, by how many such servers each cell could still take."""

from collections.abc import Collection, Iterable

from zcompute.objects.cell import CellCapacity
from zcompute.objects.flavor import Amounts


def choose_cell(
    capacities: Iterable[CellCapacity], amounts: Amounts, tried: Collection[str], disabled: Collection[str]
) -> str | None:
    """The cell with most room for servers of this size, of those that have a host large enough; None for none.

    A cell may appear several times (one capacity a conductor). ``tried`` cells have definitely refused, ``disabled``
    ones take nothing new. Among equals the first by name.
    """
    best: tuple[int, str] | None = None
    for name, capacity in sorted(_by_cell(capacities).items()):
        if name in tried or name in disabled or not amounts.fits_in(capacity.largest_free):
            continue
        room = servers_that_fit(capacity.free, amounts)
        if room > 0 and (best is None or room > best[0]):
            best = (room, name)
    return None if best is None else best[1]


def servers_that_fit(free: Amounts, amounts: Amounts) -> int:
    """How many servers of this size the free amounts hold, if hosts did not matter."""
    rooms = [
        have // need
        for have, need in (
            (free.vcpus, amounts.vcpus),
            (free.memory_mb, amounts.memory_mb),
            (free.disk_gb, amounts.disk_gb),
        )
        if need > 0
    ]
    return max(0, min(rooms, default=1))


def _by_cell(capacities: Iterable[CellCapacity]) -> dict[str, CellCapacity]:
    cells: dict[str, CellCapacity] = {}
    for capacity in capacities:
        known = cells.get(capacity.cell)
        if known is None:
            cells[capacity.cell] = capacity
            continue
        cells[capacity.cell] = CellCapacity(
            cell=capacity.cell,
            service_id="",
            free=known.free.plus(capacity.free),
            largest_free=_larger(known.largest_free, capacity.largest_free),
            hosts=known.hosts + capacity.hosts,
        )
    return cells


def _larger(one: Amounts, other: Amounts) -> Amounts:
    return Amounts(
        vcpus=max(one.vcpus, other.vcpus),
        memory_mb=max(one.memory_mb, other.memory_mb),
        disk_gb=max(one.disk_gb, other.disk_gb),
    )
