"""The newest decided rows of the owned partitions, bounded; absent rows are remembered too."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec

RowKey = tuple[str, tuple[Any, ...]]  # table name, key


class Entry(msgspec.Struct, eq=False, gc=False):
    """One row as last decided (None = absent). ``revision`` outlives a deletion, so that a row that comes back in
    the same batch still has a higher one. ``pins`` counts the uncommitted decisions that put it; ``used`` says that it
    was asked for since eviction last came by, ``gone`` that it is no row of the cache any more."""

    row: Any | None
    revision: int
    partition: int = 0
    rowkey: RowKey = ("", ())
    pins: int = 0
    used: bool = False
    gone: bool = False


Rows = Mapping[RowKey, Entry]


class RowCache:
    """The oldest rows go first, but one that was used since its last turn has another; pinned rows stay, so the limit
    is exceeded by pending rows at most.

    Not the least recently used, although nearly: to keep that order would cost every decision a walk through the
    neighbours of its row, which are cold memory among hundreds of thousands.
    """

    def __init__(self, rows_max: int, evict_scan_max: int) -> None:
        self._rows_max = rows_max
        self._evict_scan_max = evict_scan_max
        self._count = 0
        self._queue: deque[Entry] = deque()  # by age; those that are gone as well, at most half of it
        self._of_partition: dict[int, dict[RowKey, Entry]] = {}

    def __len__(self) -> int:
        return self._count

    def rows(self, partition: int) -> Rows:
        """The partition's rows, as long as it is not dropped."""
        return self._of_partition.setdefault(partition, {})

    def get(self, partition: int, rowkey: RowKey) -> Entry | None:
        rows = self._of_partition.get(partition)
        return None if rows is None else rows.get(rowkey)

    def add(self, partition: int, rowkey: RowKey, row: Any | None, revision: int) -> None:
        """A row as read from the primary. What is already here was decided later than it was read, and stays."""
        rows = self._of_partition.setdefault(partition, {})
        if rowkey in rows:
            return
        entry = rows[rowkey] = Entry(row, revision, partition, rowkey)
        self._queue.append(entry)
        self._count += 1
        if self._count > self._rows_max:
            self._evict()

    def drop(self, partition: int) -> None:
        """Forget a partition that was lost."""
        dropped = self._of_partition.pop(partition, {})
        for entry in dropped.values():
            entry.gone = True
        self._count -= len(dropped)
        if len(self._queue) > 2 * self._count:
            self._queue = deque([entry for entry in self._queue if not entry.gone])

    def clear(self) -> None:
        """Forget all rows."""
        for rows in self._of_partition.values():
            rows.clear()
        self._queue.clear()
        self._count = 0

    def _evict(self) -> None:
        for sparing in (True, False):  # were all in use, the oldest go all the same
            for _ in range(self._evict_scan_max):
                if self._count <= self._rows_max:
                    return
                entry = self._queue.popleft()
                if entry.gone:
                    continue
                if entry.pins or (sparing and entry.used):
                    entry.used = False
                    self._queue.append(entry)
                else:
                    entry.gone = True
                    del self._of_partition[entry.partition][entry.rowkey]
                    self._count -= 1
