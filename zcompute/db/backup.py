"""Backup and restore of one database: a logical copy of one moment, and a restore that begins a new history.

Blocking: for operators' commands. A backup reads one consistent snapshot while the cell works. A restore goes into an
empty database, and ends with one transaction that makes it a cell's: cut short before, it is begun anew.
"""

import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from zcompute import __version__
from zcompute.db import migrate
from zcompute.db.backup_file import Header, Page, Writer, read
from zcompute.db.errors import BackupInvalid, ConnectionLost, RestoreRefused, SchemaMismatch
from zcompute.db.schema import cell_state, conductors
from zcompute.db.url import SqliteTarget, parse_url
from zcompute.objects.epochs import HISTORY_BITS, history_of, in_history

log = logging.getLogger(__name__)

PAGE_ROWS = 1000
PAGE_BYTES_MAX = 32 << 20
RESTORING = "restoring"  # the release level while it is: no conductor starts at it
SQLITE_PAGES = 1000  # copied under one lock of the file

# Of this very process's life, or Alembic's: a restored cell has none.
LEFT_OUT = frozenset({"conductors", "conductor_releases", "beats", "lanes", "alembic_version"})
FIRST = ("cell_state", "partitions")  # the others' numbers are shifted by them
# What only rises, and is known to others by its number.
COUNTERS: dict[str, tuple[str, ...]] = {
    "cell_state": ("map_version", "term"),
    "partitions": ("owner_epoch", "last_n"),
    "hosts": ("agent_epoch",),
    "instances": ("generation", "command_generation"),
}
NUMBERED = ("notifications", "notifier_cursors")  # by n, without gaps up to their partition's last_n


class Restored(msgspec.Struct, frozen=True):
    """What a restore has done. ``taken_at_us`` is when the backup was made."""

    kind: str
    cell: str
    history: int
    taken_at_us: int
    rows: dict[str, int]


# -- backup -----------------------------------------------------------------------------------------------------------


def backup(url: str, kind: str, cell: str, path: Path) -> dict[str, int]:
    """Write a backup of the database as of one moment; the rows of each table.

    Raises SchemaMismatch for another database or one without a schema, ConnectionLost, StatementFailed, OSError.
    """
    with _snapshot(url, path) as connection:
        found = migrate.status_of(connection)
        if (found.kind, found.cell) != (kind, cell) or found.current is None:
            raise SchemaMismatch(f"expected the database of {kind} {cell}, found that of {found.kind} {found.cell}")
        if found.level == RESTORING:
            raise SchemaMismatch("the database is one whose restore was cut short: restore it first")
        header = Header(
            kind=kind,
            cell=cell,
            expand=found.current,
            contract=found.contract_current,
            level=found.level,
            release=__version__,
            taken_at_us=time.time_ns() // 1000,
        )
        writer = Writer(path, header)
        try:
            for table, columns, keys in _tables(connection):
                for rows in _rows(connection, table, columns, keys):
                    writer.page(Page(table, columns, rows))
                writer.rows.setdefault(table, 0)
            writer.rows = {table: rows for table, rows in writer.rows.items() if rows}
            writer.end()
        except BaseException:
            writer.abandon()
            raise
        return writer.rows


@contextmanager
def _snapshot(url: str, path: Path) -> Iterator[sa.Connection]:
    """A connection that sees one moment. Of SQLite a copy is made first, so that its log need not be kept for long."""
    target = parse_url(url)
    if isinstance(target, SqliteTarget):
        copy = path.with_name(path.name + ".copy")
        try:
            if not Path(target.path).exists():
                raise ConnectionLost(f"there is no database {target.path}")
            with closing(sqlite3.connect(target.path)) as source, closing(sqlite3.connect(copy)) as made:
                source.backup(made, pages=SQLITE_PAGES)
            with migrate.connected(f"sqlite:///{copy.absolute()}") as connection:
                yield connection
        finally:
            for left in (copy, *(copy.with_name(copy.name + end) for end in ("-wal", "-shm"))):
                left.unlink(missing_ok=True)
        return
    with migrate.connected(url) as connection:
        connection.exec_driver_sql("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        yield connection


def _tables(connection: sa.Connection) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every table to be copied, with its columns and its key; whatever the schema's release."""
    inspector = sa.inspect(connection)
    names = sorted(set(inspector.get_table_names()) - LEFT_OUT, key=lambda name: (name not in FIRST, name))
    for name in names:
        columns = [str(column["name"]) for column in inspector.get_columns(name)]
        yield name, columns, list(inspector.get_pk_constraint(name)["constrained_columns"])


def _rows(
    connection: sa.Connection, table: str, columns: Sequence[str], keys: Sequence[str]
) -> Iterator[list[list[Any]]]:
    """All rows in the order of the key, in bounded pages."""
    what: Any = sa.select(*(sa.column(name) for name in columns)).select_from(sa.table(table))
    ordered = what.order_by(*(sa.column(name) for name in keys))
    page: list[list[Any]] = []
    size_bytes = 0
    for row in connection.execution_options(stream_results=True, yield_per=PAGE_ROWS).execute(ordered):
        page.append(list(row))
        size_bytes += sum(len(value) for value in row if isinstance(value, bytes | str))
        if len(page) >= PAGE_ROWS or size_bytes >= PAGE_BYTES_MAX:
            yield page
            page, size_bytes = [], 0
    if page:
        yield page


# -- restore ----------------------------------------------------------------------------------------------------------


def next_history(former: int, now_s: float) -> int:
    """Above the backup's, and above that of any restore made before, of this backup or a later one: minutes of UTC."""
    return max(former + 1, int(now_s // 60))


def restore(url: str, kind: str, cell: str, path: Path, *, now_s: float | None = None) -> Restored:
    """Fill an empty database from a backup, as the beginning of a new history.

    Raises BackupInvalid, RestoreRefused for a database that is in use or of another cell, SchemaMismatch,
    ConnectionLost, StatementFailed, OSError.
    """
    header, pages = read(path)
    if (header.kind, header.cell) != (kind, cell):
        raise RestoreRefused(f"{path} is a backup of {header.kind} {header.cell}, expected {kind} {cell}")
    _check_whole(path)
    migrate.upgrade(url, kind, cell, contract_fresh=header.contract is not None)
    with migrate.connected(url) as connection:
        _claim(connection)
        known = {name: set(columns) for name, columns, _ in _tables(connection)}
        for name in known:
            if name not in FIRST:
                connection.execute(sa.delete(sa.table(name)))
        connection.commit()
        rows, first, history = _fill(connection, pages, known, path, now_s if now_s is not None else time.time())
        with connection.begin():
            for page in first:
                connection.execute(sa.delete(sa.table(page.table)))
                _insert(connection, page)
    log.warning("restored cell=%s history=%s taken_at_us=%s rows=%s", cell, history, header.taken_at_us, rows)
    return Restored(kind, cell, history, header.taken_at_us, rows)


def _check_whole(path: Path) -> None:
    """Read it to the end before anything is touched."""
    _, pages = read(path)
    for _ in pages:
        continue


def _claim(connection: sa.Connection) -> None:
    """Take the database for the restore. Raises RestoreRefused."""
    level = connection.scalar(sa.select(cell_state.c.release))
    used = connection.scalar(sa.select(sa.func.count()).select_from(conductors))
    version = connection.scalar(sa.select(cell_state.c.map_version))
    if level != RESTORING and (used or version):
        raise RestoreRefused(
            "the database has been a cell's: expected an empty one; stop its conductors, keep it under another name, "
            "and give an empty database"
        )
    connection.execute(sa.update(cell_state).values(release=RESTORING))
    connection.commit()


def _fill(
    connection: sa.Connection, pages: Iterator[Page], known: dict[str, set[str]], path: Path, now_s: float
) -> tuple[dict[str, int], list[Page], int]:
    """Insert all but the first tables' pages, which come back shifted, to be the last."""
    rows: dict[str, int] = {}
    first: list[Page] = []
    deltas: dict[int, int] = {}
    history = 0
    for page in pages:
        strange = set(page.columns) - known.get(page.table, set())
        if strange:
            raise BackupInvalid(
                f"{path}: table {page.table} has {', '.join(sorted(strange))}, which this release does not know: "
                "restore with the release that made the backup, then upgrade"
            )
        if page.table == "cell_state":
            version = page.rows[0][page.columns.index("map_version")]
            history = next_history(history_of(version), now_s)
        if page.table == "partitions":
            number, last = page.columns.index("partition_id"), page.columns.index("last_n")
            deltas |= {row[number]: in_history(row[last], history) - row[last] for row in page.rows}
            page.rows = [_set(row, page.columns.index("lane_id"), None) for row in page.rows]
        _shift(page, history, deltas)
        rows[page.table] = rows.get(page.table, 0) + len(page.rows)
        if page.table in FIRST:
            first.append(page)
        else:
            _insert(connection, page)
            connection.commit()
    if {page.table for page in first} != set(FIRST) or history >= 1 << (63 - HISTORY_BITS):
        raise BackupInvalid(f"{path}: it lacks {' or '.join(FIRST)}")
    return rows, first, history


def _shift(page: Page, history: int, deltas: dict[int, int]) -> None:
    """What only rises goes on in the new history."""
    for name in COUNTERS.get(page.table, ()):
        at = page.columns.index(name)
        page.rows = [_set(row, at, in_history(row[at], history)) for row in page.rows]
    if page.table in NUMBERED:
        partition, at = page.columns.index("partition_id"), page.columns.index("n")
        page.rows = [_set(row, at, row[at] + deltas[row[partition]]) for row in page.rows]


def _set(row: list[Any], at: int, value: Any) -> list[Any]:
    row[at] = value
    return row


def _insert(connection: sa.Connection, page: Page) -> None:
    table = sa.table(page.table, *(sa.column(name) for name in page.columns))
    connection.execute(sa.insert(table), [dict(zip(page.columns, row, strict=True)) for row in page.rows])
