"""Clients' reads at the primary: not begun after their caller's deadline, not running on behind it, in nobody's way."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import gevent
import pytest
from gevent.pool import Pool

from tests.contract.store.conftest import on_mariadb
from tests.contract.store.lane_writer import LaneWriter, insert
from tests.contract.store.samples import instance
from zcompute.db.errors import DatabaseBusy, StoreError
from zcompute.db.native.connection import Connection
from zcompute.db.private import PrivateMariaDB
from zcompute.db.replicas.need import CURRENT
from zcompute.db.replicas.reading import Reading
from zcompute.db.store import CLIENT_READERS_MAX, Store
from zcompute.db.tables import INSTANCES
from zcompute.db.url import MariaDbTarget, parse_url
from zcompute.db.view import View, by_key

CALLS = 500
WORKERS = 64  # of the bus' pool of reads
DEADLINE_S = 1.0
SLACK_S = 20.0  # of a machine that does much else: without a deadline these reads never end
ENDLESS = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) "
    "SELECT COUNT(*) FROM n a, n b, n c, n d WHERE a.i + b.i + c.i + d.i = 7"
)


def select(view: View, sql: str) -> object:
    """A statement of the test's own on the view's connection."""
    return view._session.select(sql)  # type: ignore[attr-defined]  # a SessionView


def connections(store: Store) -> list[str]:
    """What the server runs for this database."""
    target = parse_url(store.url)
    assert isinstance(target, MariaDbTarget)
    looking = Connection(target)
    try:
        rows = looking.rows(
            b"SELECT info FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID() "
            b"AND command = 'Query' AND info LIKE '%RECURSIVE%'"
        )
        return [str(row[0]) for row in rows]
    finally:
        looking.cut()


def calls(store: Store, sql: str) -> tuple[list[BaseException | None], float]:
    """As many workers as the bus has take CALLS reads that all came at once; how each ended, and how long it took."""
    begun_s = time.monotonic()
    ends_at_s = begun_s + DEADLINE_S

    def one(_: int) -> BaseException | None:
        try:
            Reading(store).read(CURRENT, ends_at_s, lambda view: select(view, sql))
        except StoreError as error:
            return error
        return None

    ended = list(Pool(WORKERS).imap_unordered(one, range(CALLS)))
    return ended, time.monotonic() - begun_s


def test_a_read_whose_deadline_has_passed_is_not_begun(store: Store) -> None:
    begun: list[int] = []
    with pytest.raises(DatabaseBusy):
        store.read_until(time.monotonic() - 0.001, lambda view: begun.append(1))
    with pytest.raises(DatabaseBusy):
        Reading(store).get(CURRENT, time.monotonic() - 0.001, by_key(INSTANCES), ("x",))
    assert not begun


def test_a_read_that_runs_ends_with_its_deadline_and_the_next_is_served(store: Store, writer: LaneWriter) -> None:
    row = instance()
    writer.commit(insert(INSTANCES, row))
    begun_s = time.monotonic()
    with pytest.raises(DatabaseBusy):
        store.read_until(begun_s + 0.3, lambda view: select(view, ENDLESS))
    assert time.monotonic() - begun_s < 0.3 + SLACK_S
    key = (row.uuid,)
    assert store.read_until(time.monotonic() + 5, lambda view: view.fetch(INSTANCES, [key])) == {key: row}


@on_mariadb
def test_heavy_reads_end_at_the_server_too_and_are_in_nobodys_way(store: Store, writer: LaneWriter) -> None:
    """More reads at once than there are connections for them; what a conductor decides upon, and writes, goes on."""
    took_s: list[float] = []

    def work_on() -> None:
        while True:
            begun_s = time.monotonic()
            row = instance()
            writer.commit(insert(INSTANCES, row))
            assert store.fetch(INSTANCES, [(row.uuid,)])
            took_s.append(time.monotonic() - begun_s)
            gevent.sleep(0.02)

    working = gevent.spawn(work_on)
    ended, whole_s = calls(store, ENDLESS)
    working.kill()
    assert {repr(each) for each in ended if not isinstance(each, DatabaseBusy)} == set()
    assert whole_s < DEADLINE_S + SLACK_S
    assert took_s
    assert median(took_s) < DEADLINE_S
    until_s = time.monotonic() + 2
    while connections(store) and time.monotonic() < until_s:
        gevent.sleep(0.05)
    assert connections(store) == []


@contextmanager
def stopped(server: PrivateMariaDB) -> Iterator[None]:
    """The server does not answer; connections are taken by its kernel."""
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    try:
        while stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "T":
            gevent.sleep(0.005)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@on_mariadb
def test_a_stalled_primary_holds_no_worker_and_no_connection_beyond_the_deadline(
    store: Store, writer: LaneWriter, mariadb: PrivateMariaDB
) -> None:
    row = instance()
    writer.commit(insert(INSTANCES, row))
    key = (row.uuid,)
    for _ in range(CLIENT_READERS_MAX):
        assert store.read_until(time.monotonic() + 5, lambda view: view.fetch(INSTANCES, [key]))
    reading = Reading(store)
    with stopped(mariadb):
        ended, whole_s = calls(store, "SELECT 1")
        assert {repr(each) for each in ended if not isinstance(each, DatabaseBusy)} == set()
        assert whole_s < DEADLINE_S + SLACK_S
        begun_s = time.monotonic()
        with pytest.raises(StoreError):
            reading.get(CURRENT, begun_s + 0.3, by_key(INSTANCES), key)
        assert time.monotonic() - begun_s < 0.3 + SLACK_S
    assert reading.get(CURRENT, time.monotonic() + 5, by_key(INSTANCES), key) == row
    writer.commit(insert(INSTANCES, instance()))
    reading.stop()
