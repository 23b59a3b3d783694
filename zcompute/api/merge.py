"""Pages of several cells and of the root, merged into one as they come: pure.

A row is settled once every cell that may still have one before it has shown how far it is: those cells are asked for
their next rows, and no others. So a list holds a little more than the page it makes, whatever the number of cells.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

from zcompute.objects.build_request import BUILD_ERROR, BuildRequest
from zcompute.objects.instance import Instance
from zcompute.objects.messages.instances import InstanceBrief
from zcompute.objects.server_list import Order, as_asked_of_root, instance_of, sort_key

Listed = Instance | InstanceBrief
"""A row: whole, or as a list without details needs it. It has the sort keys, and what Merge compares."""

SHARE_ROWS_MIN = 8
# Of servers spread over cells by chance, a cell has its mean share and so many standard deviations more in one of 25
# pages of ten cells: then it is asked a second time.
SHARE_DEVIATIONS = 2.5
CUTS_MAX = 8  # replies that were cut for their bytes (2 MB each): then the page ends where it is


@dataclass(frozen=True)
class Ask:
    """What a cell is asked for: so many rows behind these values (None: from the query's own marker on)."""

    rows: int
    after: list[int | str | None] | None


class _Source:
    """What is known of one cell: its last row, and how many rows it was asked for last."""

    __slots__ = ("asked", "last")

    def __init__(self) -> None:
        self.asked = 0
        self.last: Listed | None = None


def share_of(rows: int, cells: int) -> int:
    """How many rows to ask each of so many cells for, to fill so many rows."""
    if cells <= 1:
        return rows
    mean = rows / cells
    return min(rows, max(SHARE_ROWS_MIN, ceil(mean + SHARE_DEVIATIONS * sqrt(mean * (1 - 1 / cells)))))


class Merge:
    """The first ``limit`` servers of all cells in the order given, each once.

    A server that is in a cell and still a build request is shown as the cell has it, unless the build request is in
    error or of a later generation (the cell's row is then a left-over of a refusal). Of two cells the later
    generation counts. The build requests must have been read before the cells: a server leaves the root only after
    its cell has committed it.
    """

    def __init__(
        self,
        order: Order,
        limit: int,
        cells: Iterable[str],
        pending: Sequence[BuildRequest] = (),
        *,
        pending_cut: bool = False,
    ) -> None:
        self.page: list[Listed] = []
        self.more = False  # the page has fewer than ``limit`` servers, and there are more
        self._order = order
        self._limit = limit
        self._key, self._descending = sort_key(order)
        self._open = {cell: _Source() for cell in cells}
        self._alone = len(self._open) == 1 and not pending
        self._pending = {request.uuid: request for request in pending}
        self._rows: list[Listed] = [instance_of(request) for request in pending]
        self._of_root = {row.uuid: row for row in self._rows}
        self._seen = set(self._of_root)
        self._chosen: dict[str, Listed] | None = None  # which row counts, by uuid; None while no server came twice
        self._settled: set[str] = set()  # once one did
        self._is_sorted = False
        self._cuts = 0
        self._wall = (
            self._key(self._rows[-1]) if pending_cut and self._rows else None
        )  # the root says no more than this

    @property
    def rows_held(self) -> int:
        """Rows in memory now."""
        return len(self.page) + len(self._rows)

    def asks(self) -> dict[str, Ask]:
        """Whom to ask for what; nobody when the page is done. What comes of it is told by ``add`` or ``drop``."""
        if not self._is_sorted:
            self._settle()
        wanted = self._limit - len(self.page)
        if wanted <= 0 or self.more:
            return {}
        bound = self._bound()
        idle = [cell for cell, source in self._open.items() if source.last is None or self._key(source.last) == bound]
        share = share_of(wanted, len(idle))
        found = {}
        for cell in idle:
            source = self._open[cell]
            rows = min(wanted, max(share, source.asked * 2))
            found[cell] = Ask(rows, None if source.last is None else self._order.values(source.last))
        return found

    def add(
        self, cell: str, rows: Sequence[Listed], asked: Ask, *, cut: bool = False, without: Collection[str] = ()
    ) -> None:
        """What a cell answered; fewer rows than asked for mean that it has no more, unless they were ``cut``. Those of
        ``without`` are of servers that are in another cell."""
        source = self._open.get(cell)
        if source is None:
            return
        self._is_sorted = False
        rows = rows[: asked.rows]
        if cut and rows:
            self._cuts += 1
            source.last = rows[-1]
        elif len(rows) < asked.rows:
            del self._open[cell]
        else:
            source.asked, source.last = asked.rows, rows[-1]
        if without:
            rows = [row for row in rows if row.uuid not in without]
        if not self._alone:
            self._choose(rows)
        self._rows += rows

    def _choose(self, rows: Sequence[Listed]) -> None:
        """Which row of each server counts. Mostly each is in one place, which a set tells ten times as fast."""
        chosen = self._chosen
        if chosen is None:
            known_before = len(self._seen)
            self._seen.update([row.uuid for row in rows])
            if len(self._seen) == known_before + len(rows):
                return
            self._settled = {row.uuid for row in self.page}
            chosen = self._chosen = {row.uuid: row for row in (*self.page, *self._rows)}
        for row in rows:
            known = chosen.setdefault(row.uuid, row)
            if known is not row and row.uuid not in self._settled and self._is_newer(row, known):
                chosen[row.uuid] = row

    def drop(self, cell: str) -> None:
        """It does not answer: its rows from here on are missing."""
        self._open.pop(cell, None)
        self._is_sorted = False

    def _settle(self) -> None:
        """Take into the page what no cell can still have a row before."""
        self._is_sorted = True
        rows = self._rows
        if not self._alone:
            rows.sort(key=self._key, reverse=self._descending)
        cut = len(rows)
        if self._open:
            if any(source.last is None for source in self._open.values()):
                return
            cut = self._count_upto(self._bound())
        if self._wall is not None:
            upto_wall = self._count_upto(self._wall)
            self.more = upto_wall <= cut
            cut = min(cut, upto_wall)
        settled = rows[:cut]
        del rows[:cut]
        if not self._alone:
            if (chosen := self._chosen) is not None:
                settled = [row for row in settled if chosen[row.uuid] is row]
                self._settled.update([row.uuid for row in settled])
            if self._pending:
                settled = [self._as_asked(row) for row in settled]
        self.page += settled
        del self.page[self._limit :]
        self.more = (self.more or self._cuts >= CUTS_MAX) and 0 < len(self.page) < self._limit

    def _bound(self) -> Any:
        """The key up to which all cells have shown their rows; None where one has shown nothing, or none is left."""
        keys: list[Any] = [self._key(source.last) for source in self._open.values() if source.last is not None]
        if not keys or len(keys) < len(self._open):
            return None
        return max(keys) if self._descending else min(keys)

    def _count_upto(self, bound: Any) -> int:
        """How many of the sorted rows come at or before this key."""
        rows, key, descending = self._rows, self._key, self._descending
        low, high = 0, len(rows)
        while low < high:
            middle = (low + high) // 2
            here = key(rows[middle])
            if (here < bound) if descending else (bound < here):
                high = middle
            else:
                low = middle + 1
        return low

    def _is_newer(self, row: Listed, known: Listed) -> bool:
        """Whether a cell's row counts instead of what is known of the server."""
        request = self._pending.get(row.uuid)
        if request is not None:
            if request.state == BUILD_ERROR or request.generation > row.mapping_generation:
                return False
            if known is self._of_root[row.uuid]:
                return True
        return row.mapping_generation > known.mapping_generation

    def _as_asked(self, row: Listed) -> Listed:
        request = self._pending.get(row.uuid)
        return row if request is None else as_asked_of_root(row, request)
