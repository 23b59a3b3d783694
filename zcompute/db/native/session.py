"""Sessions on raw PyMySQL connections."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

from zcompute.db.errors import ConnectionLost, StoreError
from zcompute.db.native.connection import (
    ER_LOCK_WAIT_TIMEOUT,
    IDLE_TRANSACTION_S,
    Connection,
    ServerError,
    store_error,
)
from zcompute.db.native.lane_lock import kill_lane
from zcompute.db.native.literal import literal, tuple_literal
from zcompute.db.native.reader import reader_of
from zcompute.db.session import LockWaitTimeout, Pool, Session, retried, statement_limit_s, until
from zcompute.db.store import CLIENT_READERS_MAX, READERS_MAX
from zcompute.db.tables import Row, RowForm
from zcompute.db.url import MariaDbTarget

R = TypeVar("R")
P = TypeVar("P")

WRITERS_MAX = 4
_NAME = re.compile(rb":([a-z_][a-z_0-9]*)")


class NativeSession:
    """A Session on one connection. With ``ends_at_s`` the server itself ends what it reads by then."""

    def __init__(self, connection: Connection, ends_at_s: float | None = None) -> None:
        self._connection = connection
        self._ends_at_s = ends_at_s

    def select(self, sql: str, **values: Any) -> list[Row]:
        try:
            return self._connection.rows(self._limited(bound(sql, values)))
        except ServerError as error:
            raise _translated(error) from error

    def objects(self, table: RowForm[P], sql: str, **values: Any) -> list[P]:
        try:
            packets = self._connection.packets(self._limited(bound(sql, values)))
        except ServerError as error:
            raise _translated(error) from error
        read = reader_of(table)
        return [read(packet) for packet in packets]

    def _limited(self, statement: bytes) -> bytes:
        if self._ends_at_s is None:
            return statement
        return b"SET STATEMENT max_statement_time=%.3f FOR %b" % (statement_limit_s(self._ends_at_s), statement)

    def select_for_update(self, sql: str, **values: Any) -> list[Row]:
        return self.select(f"{sql} FOR UPDATE", **values)

    def execute(self, sql: str, **values: Any) -> int:
        try:
            return self._connection.query(bound(sql, values))
        except ServerError as error:
            raise _translated(error) from error


def bound(sql: str, values: dict[str, Any]) -> bytes:
    """The statement with its values in place. Raises KeyError for a name without a value."""

    def value_of(match: re.Match[bytes]) -> bytes:
        value = values[match.group(1).decode()]
        return tuple_literal(value) if isinstance(value, list) else literal(value)

    return _NAME.sub(value_of, sql.encode())


def _translated(error: ServerError) -> StoreError:
    if error.code == ER_LOCK_WAIT_TIMEOUT:
        return LockWaitTimeout(str(error))
    return store_error(error)


class NativeSessions:
    """Pooled reader connections, and a few for the rare ownership transactions."""

    def __init__(self, target: MariaDbTarget, readers_max: int = READERS_MAX) -> None:
        self._target = target
        self._readers: Pool[Connection] = Pool(self._connect, readers_max)
        self._client_readers: Pool[Connection] = Pool(self._connect, CLIENT_READERS_MAX)
        self._writers: Pool[Connection] = Pool(self._connect_writer, WRITERS_MAX)

    def _connect(self) -> Connection:
        return Connection(self._target)

    def _connect_writer(self) -> Connection:
        return Connection(self._target, idle_transaction_s=IDLE_TRANSACTION_S)

    def read(self, work: Callable[[Session], R]) -> R:
        return _read(self._readers, work, None)

    def read_until(self, ends_at_s: float, work: Callable[[Session], R]) -> R:
        with until(ends_at_s):
            return _read(self._client_readers, work, ends_at_s)

    def write(self, work: Callable[[Session], R], *, on_lock_wait: Callable[[], None] | None = None) -> R:
        return retried(lambda: self._transaction(work), on_lock_wait)

    def _transaction(self, work: Callable[[Session], R]) -> R:
        with self._writers.borrow() as (connection, used):
            session = NativeSession(connection)
            try:
                session.execute("START TRANSACTION")
            except ConnectionLost:
                if not used:
                    raise
            else:
                return self._finish(connection, session, work)
        with self._writers.borrow(fresh=True) as (connection, _):
            session = NativeSession(connection)
            session.execute("START TRANSACTION")
            return self._finish(connection, session, work)

    def _finish(self, connection: Connection, session: Session, work: Callable[[Session], R]) -> R:
        try:
            result = work(session)
            session.execute("COMMIT")
        except BaseException:
            # Cutting the connection rolls back too, but only when the server notices.
            if connection.is_open:
                session.execute("ROLLBACK")
            raise
        return result

    def now_us(self) -> int:
        return now_us(self.read)

    def kill_lane(self, lane_id: int) -> None:
        kill_lane(self._target, lane_id)

    def close(self) -> None:
        self._readers.close()
        self._client_readers.close()
        self._writers.close()


def _read(readers: Pool[Connection], work: Callable[[Session], R], ends_at_s: float | None) -> R:
    with readers.borrow() as (connection, used):
        try:
            return work(NativeSession(connection, ends_at_s))
        except ConnectionLost:
            if not used:
                raise
    # It had idled, and the server or the network dropped it: that says nothing about a new one.
    with readers.borrow(fresh=True) as (connection, _):
        return work(NativeSession(connection, ends_at_s))


def now_us(read: Callable[[Callable[[Session], int]], int]) -> int:
    """The server's UTC time (its sessions are in time zone +00:00)."""

    def work(session: Session) -> int:
        return int(session.select("SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)")[0][0])

    return read(work)
