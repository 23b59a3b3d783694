"""SQLite's one thread: beats first, greenlets in order, processes in turns."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
import sqlalchemy as sa
from gevent.monkey import get_original

from zcompute.db.errors import ConnectionLost, DatabaseBusy
from zcompute.db.portable import sqlite_thread
from zcompute.db.portable.sqlite_thread import SqliteThread
from zcompute.db.url import SqliteTarget

_start_thread = get_original("_thread", "start_new_thread")
_allocate_lock = get_original("_thread", "allocate_lock")


@pytest.fixture
def path(tmp_path: Path) -> str:
    name = str(tmp_path / "x.db")
    engine = sa.create_engine(f"sqlite:///{name}")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a INTEGER)")
    engine.dispose()
    return name


@pytest.fixture
def thread(path: str) -> Iterator[SqliteThread]:
    made = SqliteThread(SqliteTarget(path))
    yield made
    made.close()


def add(number: int) -> sa.TextClause:
    return sa.text("INSERT INTO t VALUES (:number)").bindparams(number=number)


def rows(connection: sa.Connection) -> list[int]:
    return list(connection.scalars(sa.text("SELECT a FROM t ORDER BY rowid")))


def test_a_failed_transaction_leaves_nothing(thread: SqliteThread) -> None:
    def fail(connection: sa.Connection) -> None:
        connection.execute(add(1))
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        thread.write(fail)
    thread.write(lambda connection: connection.execute(add(2)).close())
    assert thread.read(rows) == [2]


def test_a_beat_overtakes_what_waits(thread: SqliteThread) -> None:
    begun, go_on, beaten = _allocate_lock(), _allocate_lock(), _allocate_lock()
    for lock in (begun, go_on, beaten):
        lock.acquire()

    def slow(connection: sa.Connection) -> None:
        begun.release()
        assert go_on.acquire(timeout=10)
        connection.execute(add(1))

    waiting = [gevent.spawn(thread.write, slow)]
    with gevent.Timeout(10):
        while not begun.acquire(blocking=False):
            gevent.sleep(0.001)
    waiting += [gevent.spawn(thread.write, lambda c, n=n: c.execute(add(n)).close()) for n in (2, 3)]
    gevent.sleep(0)

    def beat() -> None:
        thread.beat(lambda connection: connection.execute(add(100)).close(), 10)
        beaten.release()

    _start_thread(beat, ())
    with gevent.Timeout(10):
        while not thread._beats:
            gevent.sleep(0.001)
    go_on.release()
    gevent.joinall(waiting, timeout=10, raise_error=True)
    assert beaten.acquire(timeout=10)
    assert thread.read(rows) == [1, 100, 2, 3]


def test_the_hub_goes_on_while_a_greenlet_waits_for_the_database(thread: SqliteThread) -> None:
    go_on = _allocate_lock()
    go_on.acquire()
    waiting = gevent.spawn(thread.read, lambda _: go_on.acquire(timeout=10))
    for _ in range(10):
        gevent.sleep(0.001)
    assert not waiting.dead
    go_on.release()
    assert waiting.get(timeout=10) is True


def test_a_killed_greenlet_leaves_the_thread_usable(thread: SqliteThread) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        victim = gevent.spawn(thread.write, lambda c, n=number: c.execute(add(n)).close())
        gevent.sleep(0)
        victim.kill()
    assert len(thread.read(rows)) <= 50
    assert len(os.listdir("/proc/self/fd")) <= before + 8


def test_a_writer_elsewhere_is_waited_for_until_the_deadline(
    thread: SqliteThread, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_thread, "WRITE_LOCK_DEADLINE_S", 0.05)
    holder = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(DatabaseBusy, match="another process"):
        thread.write(lambda connection: connection.execute(add(1)).close())
    assert thread.read(rows) == []
    os.close(holder)
    thread.write(lambda connection: connection.execute(add(1)).close())
    assert thread.read(rows) == [1]


def test_too_many_jobs_are_refused(thread: SqliteThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_thread, "JOBS_MAX", 0)
    with pytest.raises(DatabaseBusy, match="wait for the database"):
        thread.read(rows)


def test_closing_ends_what_waits(thread: SqliteThread) -> None:
    thread.read(rows)
    jobs = [gevent.spawn(thread.read, rows) for _ in range(5)]
    closing = gevent.spawn(thread.close)
    late = [gevent.spawn(thread.read, rows) for _ in range(5)]
    gevent.joinall([*jobs, closing, *late], timeout=10)
    assert all(job.value == [] for job in jobs)
    assert all(isinstance(job.exception, ConnectionLost) for job in late)
    with pytest.raises(ConnectionLost):
        thread.read(rows)
