"""Reads of objects by key and by page; the lists that clients see are in zcompute.db.lists."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from zcompute.db import group_standings, usage_sums
from zcompute.db.columns import is_ascii
from zcompute.db.schema import TABLES
from zcompute.db.session import Session
from zcompute.db.store import SCAN_ROWS_MAX, ToldRow
from zcompute.db.tables import GROUP_STANDINGS, PARTITION_COLUMN, PROJECT_USAGES, Key, TableCodec
from zcompute.db.where import Where
from zcompute.objects.base import VersionedObject

T = TypeVar("T", bound=VersionedObject)

FETCH_KEYS_MAX = 500  # a statement; more keys are fetched by several

_DERIVED: Mapping[str, Callable[[Session, Sequence[Key]], Mapping[Key, Any]]] = {
    PROJECT_USAGES.name: usage_sums.of_projects,
    GROUP_STANDINGS.name: group_standings.of_groups,
}


def fetch(session: Session, table: TableCodec[T], keys: Sequence[Key]) -> dict[Key, T]:
    """Store.fetch."""
    if table.derived:
        return cast(dict[Key, T], _DERIVED[table.name](session, keys))
    found: dict[Key, T] = {}
    wanted = [key for key in dict.fromkeys(keys) if _possible(table, key)]
    for start in range(0, len(wanted), FETCH_KEYS_MAX):
        where = Where()
        _add_keys(where, table, wanted[start : start + FETCH_KEYS_MAX])
        for stored in session.objects(table, where.select(table), **where.values):
            found[table.key_of(stored)] = stored
    return found


def _possible(table: TableCodec[Any], key: Key) -> bool:
    """Can there be such a row? Comparing an ASCII column with another text would read the whole table."""
    if len(key) != len(table.key_columns):
        raise ValueError(f"expected a key {table.key_columns} of {table.name}, found {key!r}")
    columns = TABLES[table.name].c
    return all(
        not (isinstance(value, str) and is_ascii(columns[name].type)) or value.isascii()
        for name, value in zip(table.key_columns, key, strict=True)
    )


def _add_keys(where: Where, table: TableCodec[Any], keys: Sequence[Key]) -> None:
    if len(table.key_columns) == 1:
        where.equals(table.key_columns[0], [key[0] for key in keys])
        return
    # (a = .. AND b = ..) OR ...: both databases use the primary key for this, and not for (a, b) IN (...).
    either = []
    for at, key in enumerate(keys):
        names = [f"k{at}_{part}" for part in range(len(key))]
        either.append(" AND ".join(f"{c} = :{n}" for c, n in zip(table.key_columns, names, strict=True)))
        where.values.update(zip(names, key, strict=True))
    where.add("(" + " OR ".join(f"({one})" for one in either) + ")")


def scan(
    session: Session,
    table: TableCodec[T],
    *,
    partitions: Sequence[int] | None,
    where: Mapping[str, Any] | None,
    limit: int,
    after: Key | None,
) -> list[T]:
    """Store.scan."""
    conditions = Where()
    if partitions is not None:
        conditions.equals(PARTITION_COLUMN, list(partitions))
    for column, value in (where or {}).items():
        if column not in table.columns:
            raise ValueError(f"{table.name} has no column {column!r}, but {table.columns}")
        conditions.equals(column, value)
    if after is not None and partitions == [after[0]] and table.key_columns[0] == PARTITION_COLUMN:
        # The partition is given: a plain bound on the rest of the key is what the index is used for.
        conditions.add(f"{table.key_columns[1]} > :after", after=after[1])
    elif after is not None:
        _add_after(conditions, table, after)
    sql = conditions.select(table, ", ".join(table.key_columns), max(0, min(limit, SCAN_ROWS_MAX)))
    return session.objects(table, sql, **conditions.values)


def expired(session: Session, table: TableCodec[T], partition: int, column: str, before_us: int, limit: int) -> list[T]:
    """Store.expired."""
    if column not in table.columns:
        raise ValueError(f"{table.name} has no column {column!r}, but {table.columns}")
    where = Where()
    where.equals(PARTITION_COLUMN, partition)
    where.add(f"{column} < :before_us", before_us=before_us)
    sql = where.select(table, column, max(0, min(limit, SCAN_ROWS_MAX)))
    return session.objects(table, sql, **where.values)


def _add_after(where: Where, table: TableCodec[Any], after: Key) -> None:
    if len(after) != len(table.key_columns):
        raise ValueError(f"expected a key {table.key_columns} of {table.name} to go on from, found {after!r}")
    names = [f"after{part}" for part in range(len(after))]
    values = dict(zip(names, after, strict=True))
    columns = table.key_columns
    if len(columns) == 1:
        where.add(f"{columns[0]} > :{names[0]}", **values)
        return
    # The first condition says nothing new, but is the one for which the index is used.
    tuples = f"({', '.join(columns)}) > ({', '.join(f':{name}' for name in names)})"
    where.add(f"{columns[0]} >= :{names[0]} AND {tuples}", **values)


def told(session: Session) -> list[ToldRow]:
    """Store.read_told: one statement, so last_n and the rows are of one moment."""
    rows = session.select(
        "SELECT p.partition_id, p.last_n, MIN(t.n), MAX(t.n), COUNT(t.n) FROM partitions p "
        "LEFT JOIN notifications t ON t.partition_id = p.partition_id "
        "GROUP BY p.partition_id, p.last_n ORDER BY p.partition_id"
    )
    return [ToldRow(*(value or 0 for value in row)) for row in rows]


def schema(session: Session) -> list[str]:
    """Store.read_schema."""
    return [str(name) for (name,) in session.select("SELECT version_num FROM alembic_version ORDER BY version_num")]
