"""Sessions on SQLAlchemy connections, and their pool for MariaDB."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import sqlalchemy as sa

from zcompute.db.errors import ConnectionLost, StatementFailed, StoreError
from zcompute.db.native import session as native_session
from zcompute.db.native.lane_lock import kill_lane
from zcompute.db.native.session import WRITERS_MAX
from zcompute.db.portable.engine import PortableConnection, mariadb_engine
from zcompute.db.portable.failures import DataRefused, translated
from zcompute.db.session import Pool, Session, retried, statement_limit_s, until
from zcompute.db.store import CLIENT_READERS_MAX, READERS_MAX
from zcompute.db.tables import Row, RowForm
from zcompute.db.url import MariaDbTarget

R = TypeVar("R")
P = TypeVar("P")

STATEMENTS_CACHED_MAX = 256


class PortableSession:
    """A Session on one SQLAlchemy connection. ``row_locks``: the database locks rows when asked to. With ``ends_at_s``
    MariaDB itself ends what it reads by then."""

    def __init__(self, connection: sa.Connection, *, row_locks: bool, ends_at_s: float | None = None) -> None:
        self._connection = connection
        self._ends_at_s = ends_at_s
        self._row_locks = row_locks

    def select(self, sql: str, **values: Any) -> list[Row]:
        if self._ends_at_s is not None:
            # In whole seconds: each text is a statement of its own to SQLAlchemy, and kept.
            sql = f"SET STATEMENT max_statement_time={math.ceil(statement_limit_s(self._ends_at_s))} FOR {sql}"
        with translated():
            return [tuple(row) for row in self._connection.execute(_statement(sql, values), values)]

    def objects(self, table: RowForm[P], sql: str, **values: Any) -> list[P]:
        return [table.from_row(row) for row in self.select(sql, **values)]

    def select_for_update(self, sql: str, **values: Any) -> list[Row]:
        return self.select(f"{sql} FOR UPDATE" if self._row_locks else sql, **values)

    def execute(self, sql: str, **values: Any) -> int:
        with translated():
            return int(self._connection.execute(_statement(sql, values), values).rowcount)


def _statement(sql: str, values: dict[str, Any]) -> sa.TextClause:
    return _prepared(sql, tuple(name for name, value in values.items() if isinstance(value, list)))


@lru_cache(STATEMENTS_CACHED_MAX)
def _prepared(sql: str, lists: tuple[str, ...]) -> sa.TextClause:
    return sa.text(sql).bindparams(*(sa.bindparam(name, expanding=True) for name in lists))


def transact(connection: PortableConnection, work: Callable[[sa.Connection], R]) -> R:
    """One transaction: commit what ``work`` did, or roll back; the connection is cut when in doubt."""
    try:
        with translated():
            connection.sql.begin()
            result = work(connection.sql)
            connection.sql.commit()
    except BaseException as error:
        _leave(connection, error)
        raise
    return result


def _leave(connection: PortableConnection, error: BaseException) -> None:
    if isinstance(error, StoreError) and not isinstance(error, ConnectionLost) and connection.is_open:
        try:
            connection.sql.rollback()
            return
        except sa.exc.SQLAlchemyError:
            # The rollback failed: the connection goes, and the database rolls back by itself.
            connection.cut()
            return
    connection.cut()


class MariaDbSessions:
    """Pooled SQLAlchemy connections to MariaDB."""

    def __init__(self, target: MariaDbTarget, readers_max: int = READERS_MAX) -> None:
        self._target = target
        self.engine = mariadb_engine(target)
        self._readers: Pool[PortableConnection] = Pool(self.connect, readers_max)
        self._client_readers: Pool[PortableConnection] = Pool(self.connect, CLIENT_READERS_MAX)
        self._writers: Pool[PortableConnection] = Pool(self.connect, WRITERS_MAX)

    def connect(self) -> PortableConnection:
        return PortableConnection(self.engine)

    def read(self, work: Callable[[Session], R]) -> R:
        return _read(self._readers, work)

    def read_until(self, ends_at_s: float, work: Callable[[Session], R]) -> R:
        with until(ends_at_s):
            return _read(self._client_readers, work, ends_at_s)

    def write(self, work: Callable[[Session], R], *, on_lock_wait: Callable[[], None] | None = None) -> R:
        return retried(lambda: _write(self._writers, work), on_lock_wait)

    def now_us(self) -> int:
        return native_session.now_us(self.read)

    def kill_lane(self, lane_id: int) -> None:
        kill_lane(self._target, lane_id)

    def close(self) -> None:
        self._readers.close()
        self._client_readers.close()
        self._writers.close()


def _transaction(connection: PortableConnection, work: Callable[[Session], R], ends_at_s: float | None = None) -> R:
    return transact(connection, lambda sql: run_work(work, PortableSession(sql, row_locks=True, ends_at_s=ends_at_s)))


def _read(pool: Pool[PortableConnection], work: Callable[[Session], R], ends_at_s: float | None = None) -> R:
    with pool.borrow() as (connection, used):
        try:
            return _transaction(connection, work, ends_at_s)
        except ConnectionLost:
            if not used:
                raise
    # It had idled, and the server or the network dropped it: that says nothing about a new one.
    with pool.borrow(fresh=True) as (connection, _):
        return _transaction(connection, work, ends_at_s)


def _write(pool: Pool[PortableConnection], work: Callable[[Session], R]) -> R:
    with pool.borrow() as (connection, used):
        if not used or _answers(connection):
            return _transaction(connection, work)
    with pool.borrow(fresh=True) as (connection, _):
        return _transaction(connection, work)


def run_work(work: Callable[[Session], R], session: Session) -> R:
    """Outside a lane no row can be bad: a refused value is a failed statement."""
    try:
        return work(session)
    except DataRefused as error:
        raise StatementFailed(0, str(error)) from error


def _answers(connection: PortableConnection) -> bool:
    """A connection that idled may have been dropped; asked before, because a transaction is not simply repeated."""
    try:
        transact(connection, lambda sql: sql.exec_driver_sql("SELECT 1").close())
    except ConnectionLost:
        return False
    return True
