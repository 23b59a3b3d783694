"""Deleted servers with their history, and the root's old operations, put aside: each with its rows in one transaction.

A row leaves its table and enters ``archived_rows`` by the same numbered batch of its partition's lane, so a crash at
any point leaves it in exactly one of the two. What was archived is purged by its own age.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from zcompute.conductor.change import Change, Keys
from zcompute.conductor.ledger import Ledger
from zcompute.db.store import Store
from zcompute.db.tables import (
    ARCHIVED_ROWS,
    INSTANCE_ACTION_EVENTS,
    INSTANCE_ACTIONS,
    INSTANCES,
    OPERATIONS,
    ROOT_OUTBOX,
    TASKS,
    Key,
    TableCodec,
)
from zcompute.objects.archive import ArchivedRow, archived_body
from zcompute.objects.instance import VM_DELETED

COMMIT_MS_MAX = 10_000
EVENTS_PAGE = 1000  # of one server, by one decision

Counts = dict[str, int]


def put_aside(change: Change, table: TableCodec[Any], key: Key) -> int:
    """Archive one row of the change's partition; how many there were."""
    row = change.get(table, key)
    if row is None:
        return 0
    columns = dict(zip(table.columns, table.to_row(row, change.partition, change.packed), strict=True))
    archived = ArchivedRow(
        partition_id=change.partition,
        archived_at_us=change.now_us,
        source=table.name,
        row_key="/".join(map(str, key)),
        body=archived_body(columns),
    )
    change.append(ARCHIVED_ROWS, archived)
    change.delete(table, key)
    return 1


class Archiver(Protocol):
    """Archives rows of one partition."""

    def archive(self, partition: int, before_us: int, rows_max: int, *, dry_run: bool) -> tuple[Counts, bool]:
        """At most about ``rows_max`` rows that ended before; by table how many, and whether there is more.

        Raises StoreError, NotOwner, Busy, DeadlineExceeded.
        """


class Servers:
    """Deleted servers: the instance's row, its actions and their events. One that the root is still owed word of, or
    that has a task, stays."""

    def __init__(self, ledger: Ledger, store: Store) -> None:
        self._ledger = ledger
        self._store = store

    def archive(self, partition: int, before_us: int, rows_max: int, *, dry_run: bool) -> tuple[Counts, bool]:
        page = self._store.expired(INSTANCES, partition, "deleted_at_us", before_us, rows_max)
        uuids = [row.uuid for row in page if row.vm_state == VM_DELETED and row.task_id is None]
        if not uuids:
            return {}, False
        where = {"instance_uuid": uuids}
        held = {row.instance_uuid for row in self._store.scan(ROOT_OUTBOX, partitions=[partition], where=where,
                                                              limit=len(uuids))}  # fmt: skip
        held |= {row.instance_uuid for row in self._store.scan(TASKS, partitions=[partition], where=where,
                                                               limit=len(uuids))}  # fmt: skip
        counts: Counts = {}
        done = 0
        for uuid in uuids:
            if uuid in held:
                continue
            if done >= rows_max:
                return counts, True
            for name, rows in self._server(partition, uuid, before_us, dry_run=dry_run).items():
                counts[name] = counts.get(name, 0) + rows
                done += rows
        return counts, len(page) == rows_max and done > 0

    def _server(self, partition: int, uuid: str, before_us: int, *, dry_run: bool) -> Counts:
        """Events go first, page by page, where there are many: the instance's row is the last to go."""
        counts: Counts = {}
        where = {"instance_uuid": uuid}
        while True:
            events = self._store.scan(INSTANCE_ACTION_EVENTS, partitions=[partition], where=where, limit=EVENTS_PAGE)
            actions = self._store.scan(INSTANCE_ACTIONS, partitions=[partition], where=where, limit=EVENTS_PAGE)
            last = len(events) < EVENTS_PAGE and len(actions) < EVENTS_PAGE
            keys: list[tuple[TableCodec[Any], Key]] = [(INSTANCES, (uuid,))]
            keys += [(INSTANCE_ACTION_EVENTS, INSTANCE_ACTION_EVENTS.key_of(row)) for row in events]
            if last:
                keys += [(INSTANCE_ACTIONS, INSTANCE_ACTIONS.key_of(row)) for row in actions]
            went = _counted(keys) if dry_run else self._commit(partition, keys, uuid, before_us, last)
            for name, rows in went.items():
                counts[name] = counts.get(name, 0) + rows
            if last or dry_run or not went:
                return counts

    def _commit(self, partition: int, keys: Keys, uuid: str, before_us: int, last: bool) -> Counts:
        def decide(change: Change) -> Counts:
            instance = change.get(INSTANCES, (uuid,))
            if instance is None or instance.vm_state != VM_DELETED or instance.task_id is not None:
                return {}
            if instance.deleted_at_us is None or instance.deleted_at_us >= before_us:
                return {}
            going = [named for named in keys if last or named[0] is not INSTANCES]
            return _put_all_aside(change, going)

        return self._ledger.commit(partition, keys, decide, timeout_ms=COMMIT_MS_MAX)


class Operations:
    """The root's operations: once archived, a repeat of the request is a new one."""

    def __init__(self, ledger: Ledger, store: Store) -> None:
        self._ledger = ledger
        self._store = store

    def archive(self, partition: int, before_us: int, rows_max: int, *, dry_run: bool) -> tuple[Counts, bool]:
        page = self._store.expired(OPERATIONS, partition, "created_at_us", before_us, rows_max)
        keys = [(OPERATIONS, OPERATIONS.key_of(row)) for row in page]
        if dry_run or not keys:
            return _counted(keys), len(page) == rows_max
        counts: Counts = self._ledger.commit(
            partition, keys, lambda change: _put_all_aside(change, keys), timeout_ms=COMMIT_MS_MAX
        )
        return counts, len(page) == rows_max


class Archived:
    """What was archived: goes for good."""

    def __init__(self, ledger: Ledger, store: Store) -> None:
        self._ledger = ledger
        self._store = store

    def archive(self, partition: int, before_us: int, rows_max: int, *, dry_run: bool) -> tuple[Counts, bool]:
        page = self._store.expired(ARCHIVED_ROWS, partition, "archived_at_us", before_us, rows_max)
        keys = [(ARCHIVED_ROWS, ARCHIVED_ROWS.key_of(row)) for row in page]
        if keys and not dry_run:

            def decide(change: Change) -> None:
                for table, key in keys:
                    change.delete(table, key)

            self._ledger.commit(partition, keys, decide, timeout_ms=COMMIT_MS_MAX)
        counts: Counts = {}
        for row in page:
            counts[row.source] = counts.get(row.source, 0) + 1
        return counts, len(page) == rows_max


def _put_all_aside(change: Change, keys: Sequence[tuple[TableCodec[Any], Key]]) -> Counts:
    counts: Counts = {}
    for table, key in keys:
        if rows := put_aside(change, table, key):
            counts[table.name] = counts.get(table.name, 0) + rows
    return counts


def _counted(keys: Keys) -> Counts:
    counts: Counts = {}
    for table, _ in keys:
        counts[table.name] = counts.get(table.name, 0) + 1
    return counts
