"""What the ownership and read statements are written against, whichever driver runs them.

Statements are plain SQL that MariaDB and SQLite both speak, with ``:name`` for values (a list fills an IN list).
The hot path, a lane's commit, does not go through here: each driver has its own.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import gevent
from gevent.lock import BoundedSemaphore

from zcompute.db.errors import ConnectionLost, DatabaseBusy, StoreError
from zcompute.db.tables import Row, RowForm

log = logging.getLogger(__name__)

R = TypeVar("R")
P = TypeVar("P")

READERS_WAIT_S = 10.0
TRANSACTION_TRIES_MAX = 5
LOCK_PATIENCE_S = 0.2
SERVER_SHARE = 0.95
STATEMENT_S_MIN = 0.001


class Session(Protocol):
    """One connection, borrowed."""

    def select(self, sql: str, **values: Any) -> list[Row]:
        """All rows of a SELECT. Raises ConnectionLost, DatabaseBusy, StatementFailed."""

    def objects(self, table: RowForm[P], sql: str, **values: Any) -> list[P]:
        """The same, of a SELECT of all ``table.columns`` in their order, as objects."""

    def select_for_update(self, sql: str, **values: Any) -> list[Row]:
        """As select, and lock the rows until the transaction ends (where the database is not locked as a whole)."""

    def execute(self, sql: str, **values: Any) -> int:
        """Run a statement; returns the affected rows. Raises as select does."""


class LockWaitTimeout(DatabaseBusy):
    """A row lock was not to be had; the transaction was rolled back."""


class Sessions(Protocol):
    """Where sessions come from."""

    def read(self, work: Callable[[Session], R]) -> R:
        """Run ``work`` on a pooled connection, each statement by itself; again, once, when the connection was stale."""

    def read_until(self, ends_at_s: float, work: Callable[[Session], R]) -> R:
        """The same for clients, on connections of their own: not begun once ``ends_at_s`` (of time.monotonic()) has
        passed, and ended there by then. Raises DatabaseBusy in both cases."""

    def write(self, work: Callable[[Session], R], *, on_lock_wait: Callable[[], None] | None = None) -> R:
        """Run ``work`` as one transaction; again, a bounded number of times, on deadlocks and lock waits.

        ``on_lock_wait`` runs after each LOCK_PATIENCE_S of it (the transaction may be waiting for a lock), and between
        two tries after a lock wait. Raises DatabaseBusy after the last try.
        """

    def now_us(self) -> int:
        """The primary's UTC time."""

    def kill_lane(self, lane_id: int) -> None:
        """End the session in which a lane of another process writes, if there is one."""

    def close(self) -> None:
        """Close all connections."""


def retried(attempt: Callable[[], R], on_lock_wait: Callable[[], None] | None) -> R:
    """Run a transaction until it is through, TRANSACTION_TRIES_MAX times at most."""
    with _impatient(on_lock_wait):
        for _ in range(TRANSACTION_TRIES_MAX - 1):
            try:
                return attempt()
            except LockWaitTimeout:
                if on_lock_wait is not None:
                    on_lock_wait()
            except DatabaseBusy:
                continue
        return attempt()


@contextmanager
def _impatient(on_lock_wait: Callable[[], None] | None) -> Iterator[None]:
    """Inside, what a transaction may be waiting for is seen to while it waits: the server's own limit is seconds."""

    def see_to_it(act: Callable[[], None]) -> None:
        while True:
            gevent.sleep(LOCK_PATIENCE_S)
            try:
                act()
            except StoreError as error:
                log.info("lock wait not ended error=%s", error)

    if on_lock_wait is None:
        yield
        return
    seeing = gevent.spawn(see_to_it, on_lock_wait)
    try:
        yield
    finally:
        seeing.kill(block=False)


@contextmanager
def until(ends_at_s: float) -> Iterator[None]:
    """Inside, whatever waits ends by then. Raises DatabaseBusy, at once where the time has passed already."""
    left_s = ends_at_s - time.monotonic()
    if left_s <= 0:
        raise DatabaseBusy("the caller's deadline has passed: the read was not begun")
    timer = gevent.Timeout.start_new(left_s)
    try:
        yield
    except gevent.Timeout as fired:
        if fired is not timer:
            raise
        raise DatabaseBusy(
            f"the database has not answered within the {left_s:.1f} s that the caller had left"
        ) from fired
    finally:
        timer.close()


def statement_limit_s(ends_at_s: float) -> float:
    """What the server is told to take for a statement: a little less than the time left, so that its own answer comes
    and the connection stays in order."""
    return max(STATEMENT_S_MIN, SERVER_SHARE * (ends_at_s - time.monotonic()))


class Poolable(Protocol):
    """What a pool keeps: it can be asked whether it is in order, and cut."""

    @property
    def is_open(self) -> bool:
        """False once a statement was interrupted."""

    def cut(self) -> None:
        """Drop the connection without a word."""


C = TypeVar("C", bound=Poolable)


class Pool(Generic[C]):
    """At most ``limit`` connections, the last used first; a broken one is dropped, not given back."""

    def __init__(self, connect: Callable[[], C], limit: int, wait_s: float = READERS_WAIT_S) -> None:
        self._connect = connect
        self._slots = BoundedSemaphore(limit)
        self._idle: list[C] = []
        self._limit = limit
        self._wait_s = wait_s
        self._closed = False

    @contextmanager
    def borrow(self, *, fresh: bool = False) -> Iterator[tuple[C, bool]]:
        """A connection and whether it was used before. Raises DatabaseBusy, ConnectionLost."""
        if self._closed:
            raise ConnectionLost("the store is closed")
        if not self._slots.acquire(timeout=self._wait_s):
            raise DatabaseBusy(f"all {self._limit} connections have been in use for {self._wait_s} s")
        connection: C | None = None
        try:
            used = bool(self._idle) and not fresh
            connection = self._idle.pop() if used else self._connect()
            yield connection, used
        finally:
            if connection is not None and connection.is_open:
                self._give_back(connection)
            self._slots.release()

    def _give_back(self, connection: C) -> None:
        if self._closed:
            connection.cut()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Close what is idle now, and the rest as it comes back."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.cut()
