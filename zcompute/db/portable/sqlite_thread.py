"""All SQLite statements of a process: one native thread, two classes of work, one writer among processes.

A greenlet that waits for its turn lets the hub go on; a native thread (the beater) waits on an original lock. Beats
go before everything else that waits. Writers of several processes take turns by a lock file, because SQLite's own
lock starves some of them.
"""

import fcntl
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import sqlalchemy as sa
from gevent.monkey import get_original
from gevent.socket import wait_read

from zcompute.db.errors import ConnectionLost, DatabaseBusy
from zcompute.db.portable.engine import PortableConnection, sqlite_engine
from zcompute.db.portable.session import transact
from zcompute.db.session import LockWaitTimeout
from zcompute.db.url import SqliteTarget

R = TypeVar("R")

JOBS_MAX = 1000
STEPS_BETWEEN_LOOKS = 10_000  # of SQLite's machine, at the time, while it reads for somebody with a deadline
WRITE_LOCK_DEADLINE_S = 2.0
_LOCK_POLL_S = 0.0005
_LOCK_POLL_MAX_S = 0.005

_start_thread = get_original("_thread", "start_new_thread")
_allocate_lock = get_original("_thread", "allocate_lock")
_sleep = get_original("time", "sleep")
_SimpleQueue: Any = get_original("queue", "SimpleQueue")


class _Job:
    """Work for the thread, and how to say that it is done."""

    def __init__(self, work: Callable[[], Any], tell: Callable[[], None]) -> None:
        self._work = work
        self._tell = tell
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001  # handed over to the one who waits
            self._error = error
        finally:
            self._tell()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._tell()

    def outcome(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result


class SqliteThread:
    """Runs transactions on one database file, one at a time, beats first."""

    def __init__(self, target: SqliteTarget) -> None:
        self._target = target
        self._engine = sqlite_engine(target)
        self._connection: PortableConnection | None = None
        self._lock_file: int | None = None
        self._beats: deque[_Job] = deque()
        self._jobs: deque[_Job] = deque()
        self._turns = _SimpleQueue()
        self._guard = _allocate_lock()
        self._started = False
        self._closed = False

    def read(self, work: Callable[[sa.Connection], R], ends_at_s: float | None = None) -> R:
        """One read transaction, waited for by a greenlet; with ``ends_at_s`` not begun after it, and ended by it."""
        result: R = self._wait(lambda: self._read(work, ends_at_s))
        return result

    def write(self, work: Callable[[sa.Connection], R]) -> R:
        """One write transaction, waited for by a greenlet. Raises LockWaitTimeout after WRITE_LOCK_DEADLINE_S."""
        result: R = self._wait(lambda: self._write(work))
        return result

    def beat(self, work: Callable[[sa.Connection], R], timeout_s: float) -> R:
        """One write transaction before all others, waited for by a native thread. Raises DatabaseBusy when late."""
        done = _allocate_lock()
        done.acquire()
        job = _Job(lambda: self._write(work), done.release)
        self._put(self._beats, job)
        if not done.acquire(timeout=timeout_s):
            raise DatabaseBusy(f"the database did not get to the beat within {timeout_s} s")
        result: R = job.outcome()
        return result

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        if self._started and not self._closed:
            self._wait(self._shut)
        self._closed = True

    # -- callers ---------------------------------------------------------------------------------------------------

    def _wait(self, work: Callable[[], Any]) -> Any:
        """Hand the work over and wait without holding up the hub.

        The thread closes the pipe's other end when it is done, which a killed greenlet need not wait for.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            job = _Job(work, lambda: os.close(writing))
            try:
                self._put(self._jobs, job)
            except BaseException:
                os.close(writing)
                raise
            wait_read(reading)
        finally:
            os.close(reading)
        return job.outcome()

    def _put(self, queue: "deque[_Job]", job: _Job) -> None:
        # The guard is held for an instant only, by greenlets and native threads alike.
        with self._guard:
            if self._closed:
                raise ConnectionLost("the store is closed")
            if len(queue) >= JOBS_MAX:
                raise DatabaseBusy(f"{JOBS_MAX} statements wait for the database already")
            if not self._started:
                self._started = True
                _start_thread(self._run, ())
            queue.append(job)
        self._turns.put(None)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closed:
            self._turns.get()
            job = self._beats.popleft() if self._beats else self._jobs.popleft()
            job.run()
        for job in (*self._beats, *self._jobs):
            job.fail(ConnectionLost("the store was closed"))

    def _shut(self) -> None:
        with self._guard:
            self._closed = True
        if self._connection is not None:
            self._connection.cut()
        if self._lock_file is not None:
            os.close(self._lock_file)

    def _open(self, *, writes: bool) -> PortableConnection:
        if self._connection is None or not self._connection.is_open:
            self._connection = PortableConnection(self._engine)
        self._connection.sql.execution_options(zcompute_writes=writes)
        return self._connection

    def _read(self, work: Callable[[sa.Connection], R], ends_at_s: float | None) -> R:
        connection = self._open(writes=False)
        if ends_at_s is None:
            return transact(connection, work)
        if time.monotonic() >= ends_at_s:
            raise DatabaseBusy("the caller's deadline has passed: the read was not begun")
        raw: Any = connection.sql.connection.driver_connection
        raw.set_progress_handler(lambda: time.monotonic() >= ends_at_s, STEPS_BETWEEN_LOOKS)
        try:
            return transact(connection, work)
        finally:
            raw.set_progress_handler(None, 0)

    def _write(self, work: Callable[[sa.Connection], R]) -> R:
        with self._write_lock():
            return transact(self._open(writes=True), work)

    @contextmanager
    def _write_lock(self) -> Iterator[None]:
        if self._lock_file is None:
            try:
                self._lock_file = os.open(f"{self._target.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise ConnectionLost(f"cannot open the lock file of {self._target.path}: {error}") from error
        self._lock(self._lock_file)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _lock(self, lock_file: int) -> None:
        ends_at = time.monotonic() + WRITE_LOCK_DEADLINE_S
        pause_s = _LOCK_POLL_S
        while True:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > ends_at:
                    raise LockWaitTimeout(f"another process has been writing for {WRITE_LOCK_DEADLINE_S} s") from error
            _sleep(pause_s)
            pause_s = min(pause_s * 2, _LOCK_POLL_MAX_S)
