"""Locks of a stranger, deadlocks with one, a server that takes no writes, a statement that takes too long."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gevent
import msgspec
import pytest

from tests.contract.store.conftest import conductor, on_mariadb
from tests.contract.store.lane_writer import LaneWriter, insert, update
from tests.contract.store.samples import instance
from zcompute.db.errors import ConnectionLost
from zcompute.db.native.connection import Connection, ServerError
from zcompute.db.private import ADMINISTRATOR, PrivateMariaDB
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCES
from zcompute.db.url import MariaDbTarget, parse_url

WEIGHT = 300  # rows that the stranger has changed: the server ends the lighter of two transactions
WAIT_S = 5.0


class Stranger:
    """A transaction of somebody else in the same database, too heavy to be a deadlock's victim."""

    def __init__(self, url: str) -> None:
        target = parse_url(url)
        assert isinstance(target, MariaDbTarget)
        self._connection = Connection(target, autocommit=False)
        self._watcher = Connection(target)
        self._run("CREATE TABLE stranger (i INT PRIMARY KEY)")
        self._run(f"INSERT INTO stranger SELECT seq FROM seq_1_to_{WEIGHT}")  # noqa: S608

    def _run(self, statement: str) -> None:
        self._connection.query(statement.encode())

    def lock(self, table: str, where: str) -> None:
        self._run(f"SELECT 1 FROM {table} WHERE {where} FOR UPDATE")  # noqa: S608

    def wait_for_a_waiter(self) -> None:
        """Until somebody waits for what it holds."""
        with gevent.Timeout(WAIT_S):
            while not self._count("Innodb_row_lock_current_waits"):
                gevent.sleep(0.01)

    def deadlocks(self) -> int:
        return self._count("Innodb_deadlocks")

    def _count(self, name: str) -> int:
        return int(self._watcher.rows(f"SHOW GLOBAL STATUS LIKE '{name}'".encode())[0][1])

    def end(self) -> None:
        self._run("ROLLBACK")
        self._run("DROP TABLE stranger")
        self._connection.cut()
        self._watcher.cut()


@pytest.fixture
def stranger(store: Store) -> Iterator[Stranger]:
    made = Stranger(store.url)
    yield made
    made.end()


@on_mariadb
def test_a_batch_that_a_deadlock_ended_is_sent_again_and_takes_effect_once(
    store: Store, writer: LaneWriter, stranger: Stranger
) -> None:
    row = instance()
    writer.commit(insert(INSTANCES, row))
    stranger.lock("instances", f"uuid = '{row.uuid}'")
    changed = msgspec.structs.replace(row, progress=7, revision=row.revision + 1)
    committing = gevent.spawn(writer.commit, update(INSTANCES, changed))
    stranger.wait_for_a_waiter()
    before = stranger.deadlocks()
    stranger.lock("lanes", f"lane_id = {writer.lane_id}")
    assert stranger.deadlocks() == before + 1
    stranger._run("COMMIT")
    committing.get(timeout=WAIT_S)
    assert store.fetch(INSTANCES, [(row.uuid,)]) == {(row.uuid,): changed}
    writer.commit()


@on_mariadb
def test_a_take_over_that_a_deadlock_ended_is_made_again(store: Store, writer: LaneWriter, stranger: Stranger) -> None:
    (lane,) = store.register(conductor("con2"), 1)
    stranger.lock("cell_state", "id = 1")
    taking = gevent.spawn(store.take_over, [], [lane], 1)
    stranger.wait_for_a_waiter()
    before = stranger.deadlocks()
    stranger.lock("lanes", f"lane_id = {lane}")
    assert stranger.deadlocks() == before + 1
    stranger._run("COMMIT")
    version = taking.get(timeout=WAIT_S)
    rows = store.read_map()
    assert rows.map_version == version
    assert {row.lane_id for row in rows.partitions} == {lane}


@on_mariadb
def test_a_batch_waits_for_a_strangers_lock_beyond_the_servers_wait(
    store: Store, writer: LaneWriter, stranger: Stranger
) -> None:
    """1205 after two seconds: the same batch again."""
    row = instance()
    writer.commit(insert(INSTANCES, row))
    stranger.lock("instances", f"uuid = '{row.uuid}'")
    changed = msgspec.structs.replace(row, progress=7, revision=row.revision + 1)
    committing = gevent.spawn(writer.commit, update(INSTANCES, changed))
    gevent.sleep(2.5)
    assert not committing.ready()
    stranger._run("COMMIT")
    committing.get(timeout=WAIT_S)
    assert store.fetch(INSTANCES, [(row.uuid,)]) == {(row.uuid,): changed}


@contextmanager
def told(server: PrivateMariaDB, statement: str, undo: str) -> Iterator[None]:
    """A global setting of the server for a while."""
    target = MariaDbTarget("127.0.0.1", 0, ADMINISTRATOR, server.password, "mysql", server.socket)
    administrator = Connection(target)
    administrator.query(statement.encode())
    try:
        yield
    finally:
        administrator.query(undo.encode())
        administrator.cut()


def lost(work: Callable[[], object]) -> None:
    with pytest.raises(ConnectionLost):
        work()


@on_mariadb
def test_a_server_that_is_read_only_counts_as_away_and_the_batch_goes_later(
    store: Store, writer: LaneWriter, mariadb: PrivateMariaDB
) -> None:
    writer.commit()
    row = instance()
    batch = writer.batch(insert(INSTANCES, row))
    with told(mariadb, "SET GLOBAL read_only = 1", "SET GLOBAL read_only = 0"):
        lost(lambda: writer.connection.commit(batch))
        lost(lambda: store.register(conductor("con2"), 1))
        assert store.fetch(INSTANCES, [(row.uuid,)]) == {}, "it is read all the same"
    writer.connection.reconnect(5_000)
    writer.send(batch)
    assert store.fetch(INSTANCES, [(row.uuid,)]) == {(row.uuid,): row}


@on_mariadb
def test_a_server_without_a_connection_to_give_counts_as_away(
    store: Store, writer: LaneWriter, mariadb: PrivateMariaDB, open_at: Callable[[str], Store]
) -> None:
    writer.commit()
    late = open_at(store.url)
    (was,) = Connection(as_target(store.url)).rows(b"SELECT @@max_connections")
    held = []
    with told(mariadb, "SET GLOBAL max_connections = 10", f"SET GLOBAL max_connections = {was[0]}"):
        with pytest.raises(ConnectionLost):  # noqa: PT012  # how many are left is not known
            for _ in range(20):
                held.append(Connection(as_target(store.url)))
        lost(late.ping)
        lost(lambda: late.take_over([], [writer.lane_id], 1))
        writer.commit()
    for each in held:
        each.cut()
    late.ping()


def as_target(url: str) -> MariaDbTarget:
    target = parse_url(url)
    assert isinstance(target, MariaDbTarget)
    return target


@on_mariadb
def test_a_statement_beyond_its_time_costs_its_connection(store: Store) -> None:
    """Its answer must not be read by whoever asks next."""
    slow = Connection(as_target(store.url), timeout_s=0.3)
    lost(lambda: slow.rows(b"SELECT SLEEP(2)"))
    assert not slow.is_open
    lost(lambda: slow.rows(b"SELECT 1"))


@on_mariadb
def test_an_error_of_the_server_leaves_its_connection_in_order(store: Store) -> None:
    connection = Connection(as_target(store.url))
    with pytest.raises(ServerError):
        connection.rows(b"SELECT nonsense")
    assert connection.rows(b"SELECT 1") == [(1,)]
    connection.cut()
