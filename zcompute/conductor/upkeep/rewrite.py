"""Online data migrations: rows brought to another form while the cell works, in bounded steps, by their owners.

One is a small class in MIGRATIONS: it counts what is left in a partition, and does a page of it. Doing a row twice, or
stopping anywhere, does no harm: what is left is always asked of the rows themselves.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from zcompute.conductor.change import Change
from zcompute.conductor.ledger import Ledger
from zcompute.db.store import Store
from zcompute.db.tables import BUILD_REQUESTS, INSTANCES, TASKS, TableCodec
from zcompute.objects.base import VersionedObject
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import Instance, ServerSpec
from zcompute.objects.lowering import FIRST
from zcompute.objects.messages.upkeep import MigrationProgress
from zcompute.objects.stored import LEVELS
from zcompute.objects.task import Task, TaskBody

COMMIT_MS_MAX = 10_000
PAGE_ROWS = 500

_ENCODER = msgspec.msgpack.Encoder()


class DataMigration(Protocol):
    """``name`` is what progress is told by."""

    name: str

    def progress(self, store: Store, partitions: Sequence[int], level: str) -> MigrationProgress:
        """How far it is in these partitions. Raises StoreError."""

    def step(self, ledger: Ledger, store: Store, partition: int, level: str, rows_max: int) -> int:
        """Do at most so many rows of an owned partition; how many were done, 0 when nothing is left.

        Raises StoreError, NotOwner, Busy, DeadlineExceeded.
        """


def stored_head(kind: type[VersionedObject], level: str) -> bytes:
    """With which bytes a packed object of this kind begins, in the version that it has at the level. Pure."""
    version = LEVELS[level].get(kind.__name__, FIRST) if level in LEVELS else kind.VERSION
    packed = _ENCODER.encode((kind.__name__, *min(version, kind.VERSION), None))
    return packed[:-1]


class StoredAtLevel:
    """Packed objects that are not in the version of the committed release level are written anew: after `upgrade
    finalize` nothing is left that only the former release's rules read."""

    def __init__(self, table: TableCodec[Any], columns: dict[str, type[VersionedObject]]) -> None:
        self.name = f"stored_at_level.{table.name}"
        self._table = table
        self._columns = columns

    def _heads(self, level: str) -> dict[str, bytes]:
        return {column: stored_head(kind, level) for column, kind in self._columns.items()}

    def progress(self, store: Store, partitions: Sequence[int], level: str) -> MigrationProgress:
        total, remaining = store.count_packed(self._table, partitions, self._heads(level))
        return MigrationProgress(name=self.name, done=total - remaining, total=total, remaining=remaining)

    def step(self, ledger: Ledger, store: Store, partition: int, level: str, rows_max: int) -> int:
        keys = store.packed_otherwise(self._table, partition, self._heads(level), min(rows_max, PAGE_ROWS))
        if not keys:
            return 0
        fields = tuple(self._columns)

        def decide(change: Change) -> int:
            there = [key for key in keys if change.get(self._table, key) is not None]
            for key in there:
                change.rewrite(self._table, key, fields)
            return len(there)

        named = [(self._table, key) for key in keys]
        return ledger.commit(partition, named, decide, timeout_ms=COMMIT_MS_MAX)


def _of(table: TableCodec[Any], kind: type[VersionedObject], **columns: type[VersionedObject]) -> StoredAtLevel:
    if table.kind is not kind:
        raise TypeError(f"{table.name} holds {table.kind.__name__}, not {kind.__name__}")
    return StoredAtLevel(table, columns)


CELL_MIGRATIONS: tuple[DataMigration, ...] = (
    _of(INSTANCES, Instance, flavor=Flavor, spec=ServerSpec),
    _of(TASKS, Task, body=TaskBody),
)
ROOT_MIGRATIONS: tuple[DataMigration, ...] = (_of(BUILD_REQUESTS, BuildRequest, flavor=Flavor, spec=ServerSpec),)
