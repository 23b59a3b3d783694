"""Which build request is handed off next: per cell in order, with back-off, a share of the workers for each. No I/O.

Times are monotonic seconds, given by the caller.
"""

import heapq
from collections import deque
from dataclasses import dataclass

from zcompute.conductor.root.settings import HandOffLimits
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.partition import partition_of

NO_CELL = ""


@dataclass(eq=False)
class Item:
    """One server under way to its cell.

    ``unsent``: this conductor decided the cell itself and has certainly not sent the request there yet. ``checked``:
    the row was seen by the ledger as it is here. ``sending``: a call to the cell is open. ``held``: its refusal is
    being decided, so it must not be sent.
    """

    build_request: BuildRequest
    partition: int
    unsent: bool
    checked: bool
    acknowledged: bool = False
    attempts: int = 0
    due: float = 0.0
    unreachable_since: float | None = None
    running: bool = False
    sending: bool = False
    held: bool = False
    successor: BuildRequest | None = None

    @property
    def cell(self) -> str:
        return self.build_request.cell or NO_CELL


class HandOffQueue:
    """All items of this conductor by uuid. An item is waiting (for its due time), ready, or running."""

    def __init__(self, limits: HandOffLimits) -> None:
        self._limits = limits
        self._items: dict[str, Item] = {}
        self._ready: dict[str, deque[Item]] = {}
        self._running: dict[str, int] = {}
        self._running_cell: dict[str, str] = {}
        self._waiting: list[tuple[float, int, Item]] = []
        self._ticket = 0

    def __len__(self) -> int:
        return len(self._items)

    def get(self, uuid: str) -> Item | None:
        return self._items.get(uuid)

    def put(self, build_request: BuildRequest, *, decided_here: bool) -> None:
        """Take it up, unless this generation or a newer one is here already.

        ``decided_here``: it comes from a decision of this conductor just committed, not from a scan of the database.
        """
        item = self._items.get(build_request.uuid)
        if item is not None:
            newest = item.successor or item.build_request
            if build_request.generation <= newest.generation:
                return
            if item.running:
                item.successor = build_request
                return
            self._remove(item)
        item = Item(build_request, partition_of(build_request.project_id), decided_here, decided_here)
        self._items[build_request.uuid] = item
        self._make_ready(item)

    def take(self, now: float) -> Item | None:
        """The next item to work on, marked running; cells take turns. None when nothing is ready or allowed."""
        self._promote(now)
        if len(self._running_cell) >= self._limits.workers_max:
            return None
        for cell in list(self._ready):
            if self._running.get(cell, 0) >= self._limits.per_cell_max:
                continue
            item = self._pop_ready(cell)
            if item is not None:
                item.running = True
                self._running[cell] = self._running.get(cell, 0) + 1
                self._running_cell[item.build_request.uuid] = cell
                return item
        return None

    def again(self, item: Item, due: float) -> None:
        """It was worked on and is not finished: once more at ``due``."""
        if not self._stopped(item):
            return
        if item.successor is not None:
            self._succeed(item)
            return
        item.due = due
        self._wait(item)

    def finish(self, item: Item) -> None:
        """Nothing is left to do for this generation."""
        if not self._stopped(item):
            return
        if item.successor is not None:
            self._succeed(item)
        else:
            self._remove(item)

    def hurry(self, cell: str) -> None:
        """The cell has become reachable: what waits for it is due now."""
        for item in self._items.values():
            if item.cell in (cell, NO_CELL) and not item.running and item.due > 0.0:
                item.due = 0.0
                self._wait(item)

    def drop(self, partitions: set[int]) -> list[Item]:
        """Forget all items of these partitions; those running are returned, for their workers to be ended."""
        dropped = [item for item in self._items.values() if item.partition in partitions]
        for item in dropped:
            self._remove(item)
        return [item for item in dropped if item.running]

    def next_due(self) -> float | None:
        """When the next waiting item is due."""
        return self._waiting[0][0] if self._waiting else None

    def _make_ready(self, item: Item) -> None:
        self._ready.setdefault(item.cell, deque()).append(item)

    def _wait(self, item: Item) -> None:
        self._ticket += 1
        heapq.heappush(self._waiting, (item.due, self._ticket, item))

    def _promote(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            due, _, item = heapq.heappop(self._waiting)
            current = self._items.get(item.build_request.uuid)
            if current is item and not item.running and item.due == due and item.due != -1.0:
                item.due = -1.0  # ready: an older entry of the heap must not make it ready twice
                self._make_ready(item)

    def _pop_ready(self, cell: str) -> Item | None:
        """The cell's first live item; the cell goes to the end of the round."""
        queue = self._ready.pop(cell)
        found = None
        while queue and found is None:
            item = queue.popleft()
            if self._items.get(item.build_request.uuid) is item and not item.running:
                found = item
        if queue:
            self._ready[cell] = queue
        return found

    def _stopped(self, item: Item) -> bool:
        """Take it from the running ones; False if it was dropped meanwhile."""
        item.running = item.sending = False
        uuid = item.build_request.uuid
        if self._items.get(uuid) is not item:
            return False
        self._forget_running(uuid)
        return True

    def _forget_running(self, uuid: str) -> None:
        cell = self._running_cell.pop(uuid, None)
        if cell is not None:
            self._running[cell] -= 1
            if not self._running[cell]:
                del self._running[cell]

    def _succeed(self, item: Item) -> None:
        successor = item.successor
        self._remove(item)
        if successor is not None:
            self.put(successor, decided_here=True)

    def _remove(self, item: Item) -> None:
        uuid = item.build_request.uuid
        if self._items.get(uuid) is item:
            del self._items[uuid]
            self._forget_running(uuid)
