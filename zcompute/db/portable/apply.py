"""A batch as SQLAlchemy Core statements inside an open transaction."""

from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from zcompute.db.batch import Batch, Change, Delete, HandOver, Insert, Numbering, Purge, Update, ordered
from zcompute.db.errors import BadRow, GuardFailed, ReceiverDead, StoreError
from zcompute.db.portable.failures import DataRefused, translated
from zcompute.db.row_errors import bad_row, unique_columns
from zcompute.db.schema import TABLES, cell_state, lanes, notifications, partitions
from zcompute.db.tables import REVISION_COLUMN, Key, TableCodec

_STATEMENTS_CACHED_MAX = 256


class FenceMissed(StoreError):
    """The lane's watermark did not move. ``found``: alive, term, applied, nonce; None when the lane is gone."""

    def __init__(self, found: tuple[int, int, int, int] | None) -> None:
        super().__init__("the lane's watermark did not move")
        self.found = found


class RowsRefused(StoreError):
    """A table's rows were refused; raised inside the transaction, named after it."""

    def __init__(self, change: Insert | Update, reason: str) -> None:
        super().__init__(reason)
        self.change = change
        self.reason = reason


def apply(connection: sa.Connection, batch: Batch) -> None:
    """Move the watermark and make the changes. Raises FenceMissed, GuardFailed, ReceiverDead, RowsRefused."""
    if batch.hand_over is not None:
        _lock_lanes(connection, sorted((batch.lane_id, batch.hand_over.to_lane)))
    _fence(connection, batch)
    for change in ordered(batch.changes):
        _make(connection, change)
    for purge in batch.purges:
        _purge(connection, purge)
    for numbering in sorted(batch.numberings, key=lambda each: each.partition_id):
        _number(connection, batch.lane_id, numbering)
    if batch.hand_over is not None:
        _hand_over(connection, batch.lane_id, batch.hand_over)


def _fence(connection: sa.Connection, batch: Batch) -> None:
    moved = connection.execute(
        sa.update(lanes)
        .where(
            lanes.c.lane_id == batch.lane_id,
            lanes.c.alive.is_(True),
            lanes.c.term == batch.term,
            lanes.c.applied == batch.number - 1,
        )
        .values(applied=batch.number, nonce=batch.nonce)
    )
    if moved.rowcount == 1:
        return
    row = connection.execute(
        sa.select(lanes.c.alive, lanes.c.term, lanes.c.applied, lanes.c.nonce).where(lanes.c.lane_id == batch.lane_id)
    ).first()
    raise FenceMissed(None if row is None else (int(row[0]), row[1], row[2], row[3]))


def _lock_lanes(connection: sa.Connection, lane_ids: list[int]) -> None:
    for lane_id in lane_ids:
        connection.execute(sa.select(lanes.c.alive).where(lanes.c.lane_id == lane_id).with_for_update()).first()


def _make(connection: sa.Connection, change: Change) -> None:
    table = change.table
    statement: sa.Insert | sa.Update | sa.Delete
    rows: list[dict[str, Any]]
    if isinstance(change, Insert):
        statement, rows = _insert(table.name), [_named("v_", table.columns, row) for row in change.rows]
    elif isinstance(change, Update):
        columns = (*table.key_columns, *change.columns)
        statement, rows = _update(table.name, change.columns), [_named("v_", columns, row) for row in change.rows]
    else:
        statement, rows = _delete(table.name), [_named("v_", table.key_columns, key) for key in change.keys]
    try:
        with translated():
            made = connection.execute(statement, rows).rowcount
    except DataRefused as error:
        if isinstance(change, Delete):
            raise BadRow(table.name, None, str(error)) from error
        raise RowsRefused(change, str(error)) from error
    if made != len(rows):
        raise GuardFailed(table.name)


def _named(prefix: str, columns: tuple[str, ...], row: tuple[Any, ...]) -> dict[str, Any]:
    return {f"{prefix}{column}": value for column, value in zip(columns, row, strict=True)}


@lru_cache(_STATEMENTS_CACHED_MAX)
def _insert(name: str) -> sa.Insert:
    table = TABLES[name]
    return sa.insert(table).values({column.name: sa.bindparam(f"v_{column.name}") for column in table.columns})


@lru_cache(_STATEMENTS_CACHED_MAX)
def _update(name: str, columns: tuple[str, ...]) -> sa.Update:
    table = TABLES[name]
    return (
        sa.update(table)
        .where(*_key_is(table), table.c[REVISION_COLUMN] < sa.bindparam(f"v_{REVISION_COLUMN}"))
        .values({column: sa.bindparam(f"v_{column}") for column in columns})
    )


@lru_cache(_STATEMENTS_CACHED_MAX)
def _delete(name: str) -> sa.Delete:
    return sa.delete(TABLES[name]).where(*_key_is(TABLES[name]))


def _key_is(table: sa.Table) -> list[sa.ColumnElement[bool]]:
    return [column == sa.bindparam(f"v_{column.name}") for column in table.primary_key]


def _purge(connection: sa.Connection, purge: Purge) -> None:
    connection.execute(
        sa.delete(notifications).where(
            notifications.c.partition_id == purge.partition_id, notifications.c.n.between(purge.first, purge.last)
        )
    )


def _number(connection: sa.Connection, mine: int, numbering: Numbering) -> None:
    moved = connection.execute(
        sa.update(partitions)
        .where(
            partitions.c.partition_id == numbering.partition_id,
            partitions.c.lane_id == mine,
            partitions.c.last_n == numbering.before,
        )
        .values(last_n=numbering.after)
    )
    if moved.rowcount != 1:
        raise GuardFailed(partitions.name)


def _hand_over(connection: sa.Connection, mine: int, hand_over: HandOver) -> None:
    alive = connection.scalar(sa.select(lanes.c.alive).where(lanes.c.lane_id == hand_over.to_lane).with_for_update())
    if not alive:
        raise ReceiverDead(f"the receiving lane {hand_over.to_lane} is dead")
    version = connection.scalar(sa.select(cell_state.c.map_version).where(cell_state.c.id == 1).with_for_update())
    if version is None:
        raise GuardFailed(cell_state.name, "cell_state has no row: run `zcompute db upgrade`")
    moved = connection.execute(
        sa.update(partitions)
        .where(partitions.c.lane_id == mine, partitions.c.partition_id.in_(hand_over.partitions))
        .values(lane_id=hand_over.to_lane, owner_epoch=version + 1)
    )
    if moved.rowcount != len(hand_over.partitions):
        raise GuardFailed(partitions.name)
    connection.execute(sa.update(cell_state).where(cell_state.c.id == 1).values(map_version=version + 1))


def named_bad_row(connection: sa.Connection, batch: Batch, refused: RowsRefused) -> BadRow:
    """Which row it was, looked up after the rollback: what is wrong with its values, else who has its unique ones."""
    found = bad_row(batch, refused.change.table.name, refused.reason)
    if found.key is None and isinstance(refused.change, Insert):
        key = _taken(connection, refused.change)
        return BadRow(found.table, key, refused.reason)
    return found


def _taken(connection: sa.Connection, change: Insert) -> Key | None:
    table: TableCodec[Any] = change.table
    schema = TABLES[table.name].c
    for columns in unique_columns(table):
        at = [table.columns.index(column) for column in columns]
        seen: set[tuple[Any, ...]] = set()
        for row in change.rows:
            values = tuple(row[index] for index in at)
            same = [schema[column] == value for column, value in zip(columns, values, strict=True)]
            if values in seen or connection.execute(sa.select(sa.literal(1)).where(*same)).first() is not None:
                return row[: len(table.key_columns)]
            seen.add(values)
    return None
