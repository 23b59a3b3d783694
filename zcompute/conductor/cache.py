"""The newest decided rows of the owned partitions, bounded; absent rows are remembered too."""

from collections import OrderedDict
from typing import Any

import msgspec

RowKey = tuple[str, tuple[Any, ...]]  # table name, key


class Entry(msgspec.Struct, eq=False, gc=False):
    """One row as last decided (None = absent). ``revision`` outlives a deletion, so that a row that comes back in
    the same batch still has a higher one. ``pins`` counts the uncommitted decisions that put it."""

    row: Any | None
    revision: int
    pins: int = 0


class RowCache:
    """Least recently used rows go first; pinned rows stay, so the limit is exceeded by pending rows at most."""

    def __init__(self, rows_max: int, evict_scan_max: int) -> None:
        self._rows_max = rows_max
        self._evict_scan_max = evict_scan_max
        self._entries: OrderedDict[tuple[int, RowKey], Entry] = OrderedDict()
        self._of_partition: dict[int, set[RowKey]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, partition: int, rowkey: RowKey) -> Entry | None:
        place = (partition, rowkey)
        entry = self._entries.get(place)
        if entry is not None:
            self._entries.move_to_end(place)
        return entry

    def add(self, partition: int, rowkey: RowKey, row: Any | None, revision: int) -> None:
        """A row as read from the primary. What is already here was decided later than it was read, and stays."""
        place = (partition, rowkey)
        if place in self._entries:
            return
        self._entries[place] = Entry(row, revision)
        self._of_partition.setdefault(partition, set()).add(rowkey)
        if len(self._entries) > self._rows_max:
            self._evict()

    def drop(self, partition: int) -> None:
        """Forget a partition that was lost."""
        for rowkey in self._of_partition.pop(partition, ()):
            del self._entries[(partition, rowkey)]

    def clear(self) -> None:
        self._entries.clear()
        self._of_partition.clear()

    def _evict(self) -> None:
        for _ in range(self._evict_scan_max):
            if len(self._entries) <= self._rows_max:
                return
            place, entry = self._entries.popitem(last=False)
            if entry.pins:
                self._entries[place] = entry
            else:
                self._of_partition[place[0]].discard(place[1])
