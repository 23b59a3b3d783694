"""Which rows hold packed objects of another version than is wanted: told by the first bytes of a column."""

from collections.abc import Mapping, Sequence
from typing import Any

from zcompute.db.session import Session
from zcompute.db.store import SCAN_ROWS_MAX
from zcompute.db.tables import PARTITION_COLUMN, Key, TableCodec


def _otherwise(table: TableCodec[Any], heads: Mapping[str, bytes]) -> tuple[str, dict[str, bytes]]:
    """The condition, with its values. Names come from the codec."""
    strange = set(heads) - set(table.columns)
    if strange or not heads:
        raise ValueError(f"{table.name} has no columns {sorted(strange)}, but {table.columns}")
    names = {column: f"head{at}" for at, column in enumerate(heads)}
    each = [f"SUBSTR({column}, 1, {len(head)}) <> :{names[column]}" for column, head in heads.items()]
    return " OR ".join(each), {names[column]: head for column, head in heads.items()}


def packed_otherwise(
    session: Session, table: TableCodec[Any], partition: int, heads: Mapping[str, bytes], limit: int
) -> list[Key]:
    """Store.packed_otherwise."""
    condition, values = _otherwise(table, heads)
    sql = (
        f"SELECT {', '.join(table.key_columns)} FROM {table.name} WHERE {PARTITION_COLUMN} = :partition "  # noqa: S608
        f"AND ({condition}) ORDER BY {', '.join(table.key_columns)} LIMIT {max(0, min(limit, SCAN_ROWS_MAX))}"
    )
    return [tuple(row) for row in session.select(sql, partition=partition, **values)]


def count_packed(
    session: Session, table: TableCodec[Any], partitions: Sequence[int], heads: Mapping[str, bytes]
) -> tuple[int, int]:
    """Store.count_packed."""
    if not partitions:
        return 0, 0
    condition, values = _otherwise(table, heads)
    sql = (
        f"SELECT COUNT(*), COALESCE(SUM(CASE WHEN {condition} THEN 1 ELSE 0 END), 0) FROM {table.name} "  # noqa: S608
        f"WHERE {PARTITION_COLUMN} IN :partitions"
    )
    total, otherwise = session.select(sql, partitions=list(partitions), **values)[0]
    return int(total), int(otherwise)
