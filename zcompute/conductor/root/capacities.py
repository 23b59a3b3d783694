"""What the cells say they have free, less what was handed to them since: soft state for the choice of a cell."""

from collections import deque
from collections.abc import Collection, Iterable

from zcompute.cells.choice import Wanted, by_cell, choose_cell, has_zone
from zcompute.conductor.root.settings import RootSettings
from zcompute.objects.cell import CellCapacity
from zcompute.objects.flavor import Amounts


def sum_capacities(cell: str, reports: Iterable[CellCapacity]) -> CellCapacity:
    """One capacity for the whole cell from those of its conductors, whose partitions do not overlap."""
    return by_cell([CellCapacity(cell=cell, service_id="", free=Amounts(), largest_free=Amounts()), *reports])[cell]


class _Handed:
    """What was handed to one cell, in time slices, until its reports can be trusted to include it."""

    def __init__(self) -> None:
        self.slices: deque[tuple[float, Amounts]] = deque()
        self.total = Amounts()

    def add(self, amounts: Amounts, now: float, slice_s: float) -> None:
        self.total = self.total.plus(amounts)
        if self.slices and now - self.slices[-1][0] < slice_s:
            started, sum_of_slice = self.slices[-1]
            self.slices[-1] = (started, sum_of_slice.plus(amounts))
        else:
            self.slices.append((now, amounts))

    def expire(self, before: float) -> None:
        while self.slices and self.slices[0][0] < before:
            self.total = self.total.minus(self.slices.popleft()[1])


class Capacities:
    """Kept in memory per (cell, service) for ``capacity_ms_max``. A server handed to a cell counts against it for
    ``handed_ms_max``: by then the cell has claimed for it, and the reports show it. Times are monotonic seconds."""

    def __init__(self, settings: RootSettings) -> None:
        self._settings = settings
        self._reports: dict[str, dict[str, tuple[float, CellCapacity]]] = {}
        self._handed: dict[str, _Handed] = {}

    def report(self, capacity: CellCapacity, now: float) -> None:
        """The newest word of one conductor. Cells beyond ``cells_max`` are not kept."""
        if capacity.cell not in self._reports and len(self._reports) >= self._settings.cells_max:
            return
        services = self._reports.setdefault(capacity.cell, {})
        if capacity.service_id in services or len(services) < 2 * self._settings.conductors_max:
            services[capacity.service_id] = (now, capacity)

    def hand(self, cell: str, amounts: Amounts, now: float) -> None:
        """Count a server that was just decided to go to ``cell``."""
        self._handed.setdefault(cell, _Handed()).add(amounts, now, self._settings.handed_slice_ms / 1000)

    def known(self, now: float) -> list[CellCapacity]:
        """One capacity per cell that has reported lately, by name."""
        oldest = now - self._settings.capacity_ms_max / 1000
        result = []
        for cell in sorted(self._reports):
            services = self._reports[cell]
            for service_id in [s for s, (at, _) in services.items() if at < oldest]:
                del services[service_id]
            if not services:
                del self._reports[cell]
                self._handed.pop(cell, None)
                continue
            total = sum_capacities(cell, (capacity for _, capacity in services.values()))
            handed = self._handed.get(cell)
            if handed is not None:
                handed.expire(now - self._settings.handed_ms_max / 1000)
                total.free = total.free.minus(handed.total)
            result.append(total)
        return result

    def of(self, cell: str, now: float) -> CellCapacity | None:
        """The capacity of one cell, None when it has not reported lately."""
        return next((capacity for capacity in self.known(now) if capacity.cell == cell), None)

    def choose(self, wanted: Wanted, tried: Collection[str], closed: Collection[str], now: float) -> str | None:
        """The cell for one more server, counted at once; None when no known cell is left.

        Where none has room by its own word, a first choice still goes to the cell with the most: its scheduler is
        the judge, and its refusal is definite and has a reason. Where a zone was asked for, a cell with hosts in it
        goes first. Once a cell has refused, only those that fit are tried.
        """
        known = self.known(now)
        cell = choose_cell(known, wanted, tried, closed)
        if cell is None and not tried:
            rest = [capacity for capacity in known if capacity.cell not in closed and wanted.within(capacity.cell)]
            cell = (
                max(rest, key=lambda c: (has_zone(c, wanted.zone), c.hosts > 0, c.free.memory_mb)).cell
                if rest
                else None
            )
        if cell is not None:
            self.hand(cell, wanted.amounts, now)
        return cell
