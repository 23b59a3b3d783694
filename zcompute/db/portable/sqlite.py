"""Sessions, lanes and beats on SQLite's one thread."""

import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from zcompute.db.errors import StoreError
from zcompute.db.portable.session import PortableSession, run_work
from zcompute.db.portable.sqlite_thread import SqliteThread
from zcompute.db.schema import TABLES
from zcompute.db.session import Session, retried, until

R = TypeVar("R")

BEAT_TIMEOUT_S = 2.5


class SqliteSessions:
    """Sessions that take turns."""

    def __init__(self, thread: SqliteThread) -> None:
        self._thread = thread

    def read(self, work: Callable[[Session], R]) -> R:
        return self._thread.read(lambda sql: run_work(work, PortableSession(sql, row_locks=False)))

    def read_until(self, ends_at_s: float, work: Callable[[Session], R]) -> R:
        with until(ends_at_s):
            return self._thread.read(lambda sql: run_work(work, PortableSession(sql, row_locks=False)), ends_at_s)

    def write(self, work: Callable[[Session], R], *, on_lock_wait: Callable[[], None] | None = None) -> R:
        def once() -> R:
            return self._thread.write(lambda sql: run_work(work, PortableSession(sql, row_locks=False)))

        return retried(once, None)

    def now_us(self) -> int:
        # The database is a file of this machine, so is its clock.
        return time.time_ns() // 1000

    def kill_lane(self, lane_id: int) -> None:
        """No lane of SQLite has a connection that could outlive its process."""

    def close(self) -> None:
        self._thread.close()


class SqliteLink:
    """A lane's turns. There is no connection to lose: a transaction ends with its turn, or with the process."""

    was_opened = True

    def __init__(self, thread: SqliteThread) -> None:
        self._thread = thread

    def transact(self, work: Callable[[sa.Connection], R]) -> R:
        return self._thread.write(work)

    def open(self) -> None:
        self._thread.read(lambda sql: sql.exec_driver_sql("SELECT 1").close())

    def close(self) -> None:
        """Nothing to close: the thread's connection is shared."""


class SqliteBeater:
    """Beats go first in the thread's queue."""

    def __init__(self, thread: SqliteThread, incarnation: str) -> None:
        beats = TABLES["beats"]
        self._thread = thread
        self._statement = sa.update(beats).where(beats.c.incarnation == incarnation).values(counter=beats.c.counter + 1)

    def beat(self) -> bool:
        """True when the row really changed."""
        try:
            return self._thread.beat(lambda sql: int(sql.execute(self._statement).rowcount), BEAT_TIMEOUT_S) == 1
        except StoreError:
            return False

    def close(self) -> None:
        """Nothing to close: the thread's connection is shared."""
