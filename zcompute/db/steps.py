"""The steps of migrations: each looks at what is there first, so a run cut short is carried on by the next.

Neither database undoes DDL: MariaDB commits each statement, SQLite's driver too. A revision that was run in part, or
whose change came by a backport, finds what is done and does the rest.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from zcompute.db.columns import TABLE_OPTIONS, sqlite_checks


def create_table(name: str, *items: sa.Column[Any] | sa.Index, **options: Any) -> None:
    """Create a table with its indexes, as far as they are missing."""
    checks = sqlite_checks(name, [item for item in items if isinstance(item, sa.Column)])
    table = sa.Table(name, sa.MetaData(), *items, *checks, **TABLE_OPTIONS, **options)
    table.create(op.get_bind(), checkfirst=True)
    for index in table.indexes:
        index.create(op.get_bind(), checkfirst=True)


def add_column(table: str, column: sa.Column[Any]) -> None:
    """Add a column. The release before inserts rows without it: it is nullable, or has a default at the server.

    Raises ValueError for one that is neither.
    """
    if not column.nullable and column.server_default is None:
        raise ValueError(
            f"{table}.{column.name}: expected a server_default, or nullable: older code inserts without it"
        )
    if column.name not in _columns(table):
        op.add_column(table, column)


def drop_column(table: str, name: str) -> None:
    """Drop a column: contract."""
    if name in _columns(table):
        op.drop_column(table, name)


def create_index(name: str, table: str, *columns: str, unique: bool = False) -> None:
    """Add an index."""
    if name not in _indexes(table):
        op.create_index(name, table, list(columns), unique=unique)


def drop_index(name: str, table: str) -> None:
    """Drop an index: contract."""
    if name in _indexes(table):
        op.drop_index(name, table)


def drop_table(name: str) -> None:
    """Drop a table: contract."""
    if sa.inspect(op.get_bind()).has_table(name):
        op.drop_table(name)


def _columns(table: str) -> set[str]:
    return {str(column["name"]) for column in sa.inspect(op.get_bind()).get_columns(table)}


def _indexes(table: str) -> set[str]:
    return {str(index["name"]) for index in sa.inspect(op.get_bind()).get_indexes(table)}
