"""Which cell gets a server: pure. Spreads softly, by how many such servers each cell could still take."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from zcompute.objects.cell import CellCapacity, ZoneCapacity
from zcompute.objects.flavor import Amounts


@dataclass(frozen=True)
class Wanted:
    """What one server needs of a cell. ``zone``: the availability zone asked for, ``cell``: the only one that will do;
    None for any."""

    amounts: Amounts
    zone: str | None = None
    cell: str | None = None

    def within(self, cell: str) -> bool:
        """Whether this cell will do."""
        return self.cell in (None, cell)


def choose_cell(
    capacities: Iterable[CellCapacity], wanted: Wanted, tried: Collection[str], closed: Collection[str]
) -> str | None:
    """The cell with most room for servers of this size, of those that have a host large enough; None for none.

    A cell may appear several times (one capacity a conductor). ``tried`` cells have definitely refused, ``closed``
    ones take nothing new. Where a zone is asked for only hosts in it count. Among equals the first by name.
    """
    best: tuple[int, str] | None = None
    amounts = wanted.amounts
    for name, capacity in sorted(by_cell(capacities).items()):
        if name in tried or name in closed or not wanted.within(name):
            continue
        part = in_zone(capacity, wanted.zone)
        if part is None or not amounts.fits_in(part.largest_free):
            continue
        room = min(servers_that_fit(part.free, amounts), servers_that_fit(capacity.free, amounts))
        if room > 0 and (best is None or room > best[0]):
            best = (room, name)
    return None if best is None else best[1]


def in_zone(capacity: CellCapacity, zone: str | None) -> CellCapacity | ZoneCapacity | None:
    """The part of a capacity that counts for a zone; all of it for None, or where the cell tells of no zones (one of
    the release before); None for a zone in which the cell has no hosts."""
    if zone is None or (capacity.hosts and not capacity.zones):
        return capacity
    return next((part for part in capacity.zones if part.zone == zone), None)


def has_zone(capacity: CellCapacity, zone: str | None) -> bool:
    """Whether the cell has hosts in this zone."""
    return in_zone(capacity, zone) is not None


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


def by_cell(capacities: Iterable[CellCapacity]) -> dict[str, CellCapacity]:
    """One capacity a cell, from those of its conductors."""
    cells: dict[str, CellCapacity] = {}
    for capacity in capacities:
        known = cells.get(capacity.cell)
        cells[capacity.cell] = capacity if known is None else _both(known, capacity)
    return cells


def _both(one: CellCapacity, other: CellCapacity) -> CellCapacity:
    zones = {part.zone: part for part in one.zones}
    for part in other.zones:
        known = zones.get(part.zone)
        zones[part.zone] = (
            part
            if known is None
            else ZoneCapacity(
                zone=part.zone,
                free=known.free.plus(part.free),
                largest_free=_larger(known.largest_free, part.largest_free),
                hosts=known.hosts + part.hosts,
            )
        )
    return CellCapacity(
        cell=one.cell,
        service_id="",
        free=one.free.plus(other.free),
        largest_free=_larger(one.largest_free, other.largest_free),
        hosts=one.hosts + other.hosts,
        zones=[zones[zone] for zone in sorted(zones)],
    )


def _larger(one: Amounts, other: Amounts) -> Amounts:
    """Field by field: what no single host of either exceeds."""
    return Amounts(
        vcpus=max(one.vcpus, other.vcpus),
        memory_mb=max(one.memory_mb, other.memory_mb),
        disk_gb=max(one.disk_gb, other.disk_gb),
    )
