"""Create, upgrade and inspect a database's schema.

Blocking: for operators' commands and tests, not for a running service.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from zcompute.db.errors import ConnectionLost, DatabaseBusy, SchemaMismatch, StatementFailed, StoreError
from zcompute.db.native.connection import Connection, ServerError
from zcompute.db.schema import KIND_CELL, KIND_ROOT, RELEASE_LEVEL, cell_state, partitions
from zcompute.db.url import MariaDbTarget, SqliteTarget, parse_url, refuse
from zcompute.objects.partition import PARTITIONS

LOCK_DEADLINE_S = 60
STATEMENT_TIMEOUT_S = 3600.0  # a migration may rewrite a large table
_LOCK_NAME = "zcompute_migrate"
_LOCK_POLL_S = 0.05
_one_at_a_time = threading.Lock()  # Alembic's context is one a process, whichever databases are upgraded


class SchemaStatus(msgspec.Struct, frozen=True):
    """Where a database's schema stands. ``current``, ``kind`` and ``cell`` are None in an empty database."""

    current: str | None
    head: str
    kind: str | None
    cell: str | None

    @property
    def is_current(self) -> bool:
        return self.current == self.head


def upgrade(url: str, kind: str, cell: str) -> None:
    """Create the schema, or bring it up to this release; seed what every database holds. Safe to repeat.

    Raises SchemaMismatch when the database is of another kind or cell or of a newer release, ConnectionLost,
    DatabaseBusy when another upgrade runs, InvalidUrl.
    """
    if kind not in (KIND_ROOT, KIND_CELL):
        raise refuse(url, f"expected kind root or cell, found {kind!r}")
    with _process_locked(), connected(url) as connection, _locked(url, connection):
        found = _status(connection)
        _check(found, kind, cell)
        config = _config()
        config.attributes["connection"] = connection
        config.attributes["kind"] = kind
        command.upgrade(config, "head")
        _seed(connection, kind, cell)


def status(url: str) -> SchemaStatus:
    """Which schema the database has. Raises ConnectionLost, InvalidUrl."""
    target = parse_url(url)
    if isinstance(target, SqliteTarget) and not Path(target.path).exists():
        return SchemaStatus(None, _head(), None, None)
    with connected(url) as connection:
        return _status(connection)


def check(url: str, kind: str, cell: str) -> None:
    """What a service asks before it starts. Raises SchemaMismatch, in one sentence that says what to do."""
    found = status(url)
    _check(found, kind, cell)
    if found.current is None:
        raise SchemaMismatch(f"the database of {kind} {cell} has no schema: run `zcompute db init`")
    if not found.is_current:
        raise SchemaMismatch(
            f"the schema is at {found.current}, this release needs {found.head}: run `zcompute db upgrade`"
        )


def _check(found: SchemaStatus, kind: str, cell: str) -> None:
    if found.current is not None and found.current not in _known():
        raise SchemaMismatch(
            f"the schema is at {found.current}, which this release (head {found.head}) does not know: "
            "run the newer release that made it"
        )
    if found.kind is not None and (found.kind, found.cell) != (kind, cell):
        raise SchemaMismatch(
            f"the database belongs to {found.kind} {found.cell!r}, expected {kind} {cell!r}: check the database's URL"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _head() -> str:
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}


def _status(connection: sa.Connection) -> SchemaStatus:
    current = MigrationContext.configure(connection).get_current_revision()
    kind = cell = None
    if sa.inspect(connection).has_table(cell_state.name):
        row = connection.execute(sa.select(cell_state.c.kind, cell_state.c.cell)).first()
        kind, cell = (row.kind, row.cell) if row else (None, None)
    connection.rollback()
    return SchemaStatus(current, _head(), kind, cell)


def _seed(connection: sa.Connection, kind: str, cell: str) -> None:
    connection.rollback()
    with connection.begin():
        if connection.execute(sa.select(cell_state.c.id)).first() is None:
            row = {"id": 1, "cell": cell, "kind": kind, "map_version": 0, "term": 1, "release": RELEASE_LEVEL}
            connection.execute(sa.insert(cell_state), row)
        there = set(connection.scalars(sa.select(partitions.c.partition_id)))
        missing = [
            {"partition_id": number, "lane_id": None, "owner_epoch": 0, "last_n": 0}
            for number in range(PARTITIONS)
            if number not in there
        ]
        if missing:
            connection.execute(sa.insert(partitions), missing)


@contextmanager
def connected(url: str) -> Iterator[sa.Connection]:
    """A connection for operators' commands, blocking. Raises ConnectionLost, StatementFailed, InvalidUrl."""
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            yield connection
    except sa.exc.DBAPIError as error:
        raise _translated(error) from error
    except ServerError as error:
        raise StatementFailed(error.code, error.message) from error
    finally:
        engine.dispose()


def _translated(error: sa.exc.DBAPIError) -> StoreError:
    if error.connection_invalidated or isinstance(error.orig, OSError):
        return ConnectionLost(f"the connection broke: {error.orig}")
    code = error.orig.args[0] if error.orig is not None and error.orig.args else 0
    return StatementFailed(code if isinstance(code, int) else 0, str(error.orig))


def _engine(url: str) -> sa.Engine:
    target = parse_url(url)
    if isinstance(target, MariaDbTarget):
        return sa.create_engine(
            "mariadb+pymysql://",
            creator=lambda: Connection(target, timeout_s=STATEMENT_TIMEOUT_S, autocommit=False).driver,
            poolclass=sa.NullPool,
        )
    path = target.path
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConnectionLost(f"cannot make the directory of {path}: {error}") from error
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    # WAL is a property of the file, set once and for all.
    sa.event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA journal_mode=WAL").close())
    return engine


@contextmanager
def _process_locked() -> Iterator[None]:
    """One upgrade in this process at a time: threads and greenlets wait for one another."""
    if not _one_at_a_time.acquire(timeout=LOCK_DEADLINE_S):
        raise DatabaseBusy(f"another upgrade has been running in this process for {LOCK_DEADLINE_S} s")
    try:
        yield
    finally:
        _one_at_a_time.release()


@contextmanager
def _locked(url: str, connection: sa.Connection) -> Iterator[None]:
    """One upgrade of a database at a time."""
    target = parse_url(url)
    if isinstance(target, SqliteTarget):
        with _file_locked(f"{target.path}.migrate-lock"):
            yield
        return
    name = f"{_LOCK_NAME}_{target.database}"[:64]
    got = connection.scalar(sa.text("SELECT GET_LOCK(:name, :seconds)"), {"name": name, "seconds": LOCK_DEADLINE_S})
    connection.rollback()
    if got != 1:
        raise DatabaseBusy(f"another upgrade of {target.database} has been running for {LOCK_DEADLINE_S} s")
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.execute(sa.text("SELECT RELEASE_LOCK(:name)"), {"name": name})
            connection.rollback()


@contextmanager
def _file_locked(path: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    ends_at = time.monotonic() + LOCK_DEADLINE_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > ends_at:
                    raise DatabaseBusy(f"another upgrade has held {path} for {LOCK_DEADLINE_S} s") from error
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)
