"""Create, upgrade and inspect a database's schema.

Blocking: for operators' commands and tests, not for a running service.
"""

import fcntl
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext

from zcompute.db.errors import (
    ConnectionLost,
    ContractRefused,
    DatabaseBusy,
    SchemaMismatch,
    StatementFailed,
    StoreError,
)
from zcompute.db.native.connection import Connection, ServerError
from zcompute.db.online import bounded, patiently
from zcompute.db.revisions import MIGRATIONS, Revisions, is_contract, release_of
from zcompute.db.schema import (
    KIND_CELL,
    KIND_ROOT,
    RELEASE_LEVEL,
    cell_state,
    conductor_releases,
    conductors,
    partitions,
)
from zcompute.db.url import MariaDbTarget, SqliteTarget, parse_url, refuse
from zcompute.objects.partition import PARTITIONS
from zcompute.objects.stored import LEVELS

log = logging.getLogger(__name__)

LOCK_DEADLINE_S = 60
STATEMENT_TIMEOUT_S = 3600.0  # a migration may rewrite a large table
_LOCK_NAME = "zcompute_migrate"
_LOCK_POLL_S = 0.05
_one_at_a_time = threading.Lock()  # Alembic's context is one a process, whichever databases are upgraded


class SchemaStatus(msgspec.Struct, frozen=True):
    """Where a database's schema stands. ``current``, ``kind`` and ``cell`` are None in an empty database.

    ``current`` and ``head`` are expand revisions, the database's and this release's; ``level`` is the committed release
    level; ``expand`` and ``contract`` are the revisions still to be run.
    """

    current: str | None
    head: str
    kind: str | None
    cell: str | None
    contract_current: str | None = None
    contract_head: str | None = None
    level: str = ""
    expand: tuple[str, ...] = ()
    contract: tuple[str, ...] = ()

    @property
    def is_current(self) -> bool:
        """Whether this release's code finds what it needs."""
        return self.current is not None and not self.expand


def upgrade(
    url: str,
    kind: str,
    cell: str,
    *,
    place: Path = MIGRATIONS,
    offline: bool = False,
    contract_fresh: bool = True,
) -> None:
    """Create the schema, or expand it to this release's; seed what every database holds. Safe to repeat, and to run
    while the cell works. A database in which no conductor was ever registered is contracted too (``contract_fresh``).

    Raises SchemaMismatch when the database is of another kind or cell or of a newer release, ConnectionLost,
    DatabaseBusy when another upgrade runs or a lock is not to be had, MigrationBlocks, InvalidUrl.
    """
    with _at_work(url, kind, cell, place) as (connection, revisions, found):
        _run(connection, revisions, kind, found.expand, offline)
        _seed(connection, kind, cell)
        if contract_fresh and not connection.execute(sa.select(conductors.c.service_id)).first():
            _run(connection, revisions, kind, found.contract, offline)


def contract(
    url: str,
    kind: str,
    cell: str,
    *,
    gone: Collection[str] = (),
    place: Path = MIGRATIONS,
    offline: bool = False,
) -> None:
    """Take away what no release in use needs. Safe to repeat. ``gone``: conductors that will never come back.

    Raises ContractRefused with every reason, and what ``upgrade`` raises.
    """
    with _at_work(url, kind, cell, place) as (connection, revisions, found):
        reasons = contract_reasons(connection, revisions, found, gone)
        connection.rollback()
        if reasons:
            raise ContractRefused(f"contract is refused: {'; '.join(reasons)}")
        _run(connection, revisions, kind, found.contract, offline)


def why_not_contract(url: str, *, gone: Collection[str] = (), place: Path = MIGRATIONS) -> list[str]:
    """Why the contract revisions may not be run now; empty where they may. Raises ConnectionLost, InvalidUrl."""
    revisions = Revisions(place)
    with connected(url) as connection:
        return contract_reasons(connection, revisions, _status(connection, revisions), gone)


def contract_reasons(
    connection: sa.Connection, revisions: Revisions, found: SchemaStatus, gone: Collection[str] = ()
) -> list[str]:
    """Why the pending contract revisions may not be run now; empty where they may."""
    if found.current is None:
        return ["the database has no schema: run `zcompute db init`"]
    if found.expand:
        return [f"the schema is not expanded to {found.head}: run `zcompute db upgrade --expand`"]
    needed = max((int(revisions.needs_level(name)) for name in found.contract), default=0)
    reasons = []
    if not found.level.isdigit() or int(found.level) < needed:
        reasons.append(
            f"the committed release level is {found.level}, {found.contract[-1]} needs {needed}: "
            "run `zcompute upgrade finalize` when every service is new"
        )
    if not found.contract:
        return []
    for name, level, alive in registered_levels(connection):
        if name not in gone and level < max(needed, 1):
            where = "runs" if alive else "may come back (if it never will: --gone)"
            reasons.append(f"conductor {name} is of an older release and {where}")
    return reasons


def registered_levels(connection: sa.Connection) -> list[tuple[str, int, bool]]:
    """Every registered conductor with the release level that its code speaks (0: none that is told), and whether it
    is alive."""
    same = sa.and_(
        conductor_releases.c.service_id == conductors.c.service_id,
        conductor_releases.c.incarnation == conductors.c.incarnation,
    )
    query = sa.select(conductors.c.service_id, conductor_releases.c.code_level, conductors.c.alive).select_from(
        conductors.outerjoin(conductor_releases, same)
    )
    return [(name, int(level) if level else 0, bool(alive)) for name, level, alive in connection.execute(query)]


@contextmanager
def _at_work(url: str, kind: str, cell: str, place: Path) -> Iterator[tuple[sa.Connection, Revisions, SchemaStatus]]:
    """The database's connection, with nobody else at work on it."""
    if kind not in (KIND_ROOT, KIND_CELL):
        raise refuse(url, f"expected kind root or cell, found {kind!r}")
    with _process_locked(), connected(url) as connection, _locked(url, connection):
        revisions = Revisions(place)
        found = _status(connection, revisions)
        _check_home(found, kind, cell)
        if strange := [name for name in _applied(connection) if not revisions.knows(name)]:
            raise SchemaMismatch(
                f"the schema is at {', '.join(strange)}, which this release (head {revisions.expand_head}) does not "
                "know: run the newer release that made it"
            )
        yield connection, revisions, found


def _run(connection: sa.Connection, revisions: Revisions, kind: str, names: Sequence[str], offline: bool) -> None:
    """Run these revisions, each with its own note of being done."""
    revisions.config.attributes["connection"] = connection
    revisions.config.attributes["kind"] = kind
    scripts = revisions.scripts
    with bounded(connection, offline=offline):
        for name in names:

            def steps(at: Any, _: Any, name: str = name) -> Any:
                return scripts._upgrade_revs(name, at)  # as Alembic's own command does

            def run() -> None:
                with EnvironmentContext(revisions.config, scripts, fn=steps):  # called before the next
                    scripts.run_env()

            log.info("migration revision=%s title=%s", name, revisions.title(name))
            patiently(name, run, connection.rollback)


def status(url: str, *, place: Path = MIGRATIONS) -> SchemaStatus:
    """Which schema the database has. Raises ConnectionLost, InvalidUrl."""
    target = parse_url(url)
    revisions = Revisions(place)
    if isinstance(target, SqliteTarget) and not Path(target.path).exists():
        return _found(revisions, [], None)
    with connected(url) as connection:
        return _status(connection, revisions)


def status_of(connection: sa.Connection, *, place: Path = MIGRATIONS) -> SchemaStatus:
    """The same of an open connection, whose transaction goes on."""
    return _status(connection, Revisions(place), keep=True)


def check(url: str, kind: str, cell: str, *, place: Path = MIGRATIONS) -> None:
    """What a service asks before it starts. A schema that the next release has expanded is as good as our own.

    Raises SchemaMismatch, in one sentence that says what to do.
    """
    revisions = Revisions(place)
    with connected(url) as connection:
        found = _status(connection, revisions)
        applied = _applied(connection)
    _check_home(found, kind, cell)
    if found.current is None:
        raise SchemaMismatch(f"the database of {kind} {cell} has no schema: run `zcompute db init`")
    if found.expand:
        raise SchemaMismatch(
            f"the schema is at {found.current}, this release needs {found.head}: run `zcompute db upgrade`"
        )
    ours = release_of(found.head) or 0
    for name in applied:
        if not revisions.knows(name) and (is_contract(name) or release_of(name) not in (ours, ours + 1)):
            raise SchemaMismatch(
                f"the schema is at {name}, made by a newer release that this one (head {found.head}) cannot work "
                "beside: run that release"
            )
    if found.level not in LEVELS:
        raise SchemaMismatch(
            f"the committed release level is {found.level!r}, this release reads {', '.join(LEVELS)}: run a newer one"
        )


def _check_home(found: SchemaStatus, kind: str, cell: str) -> None:
    if found.kind is not None and (found.kind, found.cell) != (kind, cell):
        raise SchemaMismatch(
            f"the database belongs to {found.kind} {found.cell!r}, expected {kind} {cell!r}: check the database's URL"
        )


def _applied(connection: sa.Connection, *, keep: bool = False) -> list[str]:
    heads = list(MigrationContext.configure(connection).get_current_heads())
    if not keep:
        connection.rollback()
    return heads


def _status(connection: sa.Connection, revisions: Revisions, *, keep: bool = False) -> SchemaStatus:
    row = None
    if sa.inspect(connection).has_table(cell_state.name):
        row = connection.execute(sa.select(cell_state.c.kind, cell_state.c.cell, cell_state.c.release)).first()
    if not keep:
        connection.rollback()
    return _found(revisions, _applied(connection, keep=keep), row)


def _found(revisions: Revisions, applied: Sequence[str], row: Any) -> SchemaStatus:
    return SchemaStatus(
        current=max((name for name in applied if not is_contract(name)), default=None),
        head=revisions.expand_head,
        kind=row.kind if row else None,
        cell=row.cell if row else None,
        contract_current=max((name for name in applied if is_contract(name)), default=None),
        contract_head=revisions.contract_head,
        level=row.release if row else "",
        expand=tuple(revisions.pending(applied, contract=False)),
        contract=tuple(revisions.pending(applied, contract=True)),
    )


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
