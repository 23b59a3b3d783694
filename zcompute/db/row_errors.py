"""Which row of a batch the database refused, found in the batch itself. Pure."""

import re
from collections.abc import Iterator
from typing import Any

from zcompute.db.batch import Batch, Delete, Insert, ordered
from zcompute.db.columns import problem_of
from zcompute.db.errors import BadRow
from zcompute.db.schema import TABLES
from zcompute.db.tables import Key, Row, TableCodec

_DUPLICATE = re.compile(r"Duplicate entry '(?P<entry>.*)' for key '(?P<index>[^']*)'", re.DOTALL)
_DUPLICATE_CHARS_MAX = 64  # the server cuts the entry off there


def bad_row(batch: Batch, table: str, reason: str) -> BadRow:
    """The error for a batch that the database refused because of its data; names the row where it can be told."""
    for codec, columns, row in _rows(batch, table):
        problem = _problem(codec, columns, row)
        if problem is not None:
            return BadRow(table, row[: len(codec.key_columns)], problem)
    return BadRow(table, _duplicate(batch, table, reason), reason)


def _rows(batch: Batch, table: str) -> Iterator[tuple[TableCodec[Any], tuple[str, ...], Row]]:
    for change in ordered(batch.changes):
        if change.table.name != table or isinstance(change, Delete):
            continue
        codec = change.table
        columns = codec.columns if isinstance(change, Insert) else (*codec.key_columns, *change.columns)
        for row in change.rows:
            yield codec, columns, row


def _problem(codec: TableCodec[Any], columns: tuple[str, ...], row: Row) -> str | None:
    schema = TABLES[codec.name].c
    for name, value in zip(columns, row, strict=True):
        problem = problem_of(schema[name], value)
        if problem is not None:
            return f"{name} {problem}"
    return None


def _duplicate(batch: Batch, table: str, reason: str) -> Key | None:
    """The inserted row that MariaDB's "Duplicate entry 'a-b' for key 'x'" speaks of."""
    match = _DUPLICATE.search(reason)
    if match is None:
        return None
    columns = _index_columns(table, match["index"])
    for change in ordered(batch.changes):
        if not isinstance(change, Insert) or change.table.name != table:
            continue
        at = [change.table.columns.index(column) for column in columns]
        for row in change.rows:
            entry = "-".join(str(row[index]) for index in at)
            if entry[:_DUPLICATE_CHARS_MAX] == match["entry"][:_DUPLICATE_CHARS_MAX]:
                return row[: len(change.table.key_columns)]
    return None


def _index_columns(table: str, index: str) -> list[str]:
    schema = TABLES[table]
    for each in schema.indexes:
        if each.name == index:
            return [column.name for column in each.columns]
    return [column.name for column in schema.primary_key]


def unique_columns(codec: TableCodec[Any]) -> list[tuple[str, ...]]:
    """The sets of columns whose values may occur once only: the key and the unique indexes."""
    indexes = [index for index in TABLES[codec.name].indexes if index.unique]
    return [codec.key_columns, *(tuple(column.name for column in index.columns) for index in indexes)]
