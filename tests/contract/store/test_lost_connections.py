"""A commit whose outcome is unknown is sent again, and takes effect once."""

import random
from collections.abc import Callable, Iterator

import gevent
import pytest

from tests.contract.store.conftest import conductor, on_mariadb
from tests.contract.store.cutting_proxy import CuttingProxy
from tests.contract.store.lane_writer import LaneWriter, insert
from tests.contract.store.samples import instance
from zcompute.db.batch import Batch
from zcompute.db.errors import AlreadyApplied, ConnectionLost, Fenced
from zcompute.db.native.connection import Connection
from zcompute.db.private import PrivateMariaDB
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCES
from zcompute.db.url import MariaDbTarget, parse_url

ROUNDS = 25


@pytest.fixture
def proxy(mariadb: PrivateMariaDB) -> Iterator[CuttingProxy]:
    cutting = CuttingProxy(mariadb.socket)
    yield cutting
    cutting.close()


@pytest.fixture
def far(store: Store, proxy: CuttingProxy, open_at: Callable[[str], Store]) -> LaneWriter:
    """A lane whose connection goes through the proxy."""
    return LaneWriter.register(open_at(proxy.url(store.url)), conductor())


@on_mariadb
def test_a_commit_whose_answer_is_lost_is_found_applied(store: Store, far: LaneWriter, proxy: CuttingProxy) -> None:
    far.commit()
    stored = instance()
    batch = far.batch(insert(INSTANCES, stored))
    proxy.cut_at(b"COMMIT", after=True)
    with pytest.raises(ConnectionLost):
        far.connection.commit(batch)
    with pytest.raises(ConnectionLost, match="reconnect first"):
        far.connection.commit(batch)
    far.connection.reconnect(5_000)
    with pytest.raises(AlreadyApplied):
        far.connection.commit(batch)
    assert store.fetch(INSTANCES, [(stored.uuid,)]) == {(stored.uuid,): stored}
    far.number = batch.number
    far.commit()


@on_mariadb
def test_a_commit_that_never_arrived_is_committed_by_the_resend(
    store: Store, far: LaneWriter, proxy: CuttingProxy
) -> None:
    far.commit()
    stored = instance()
    batch = far.batch(insert(INSTANCES, stored))
    proxy.cut_at(b"COMMIT", after=False)
    with pytest.raises(ConnectionLost):
        far.connection.commit(batch)
    assert store.fetch(INSTANCES, [(stored.uuid,)]) == {}
    far.connection.reconnect(5_000)
    far.connection.commit(batch)
    assert store.fetch(INSTANCES, [(stored.uuid,)]) == {(stored.uuid,): stored}


@on_mariadb
def test_a_resend_after_a_take_over_is_fenced(store: Store, far: LaneWriter, proxy: CuttingProxy) -> None:
    far.commit()
    stored = instance()
    batch = far.batch(insert(INSTANCES, stored))
    proxy.cut_at(b"COMMIT", after=False)
    with pytest.raises(ConnectionLost):
        far.connection.commit(batch)
    store.take_over(["con1-1"], store.register(conductor("con2"), 1), 1)
    far.connection.reconnect(5_000)
    with pytest.raises(Fenced):
        far.connection.commit(batch)
    assert store.fetch(INSTANCES, [(stored.uuid,)]) == {}


@on_mariadb
def test_reconnecting_to_nobody_fails_within_its_deadline(far: LaneWriter, proxy: CuttingProxy) -> None:
    far.commit()
    proxy.close()
    with pytest.raises(ConnectionLost):
        far.connection.reconnect(200)


@on_mariadb
def test_connections_dropped_while_idle_are_replaced_unnoticed(store: Store) -> None:
    store.ping()
    kill_all(store.url)
    store.ping()
    store.register(conductor(), 1)
    kill_all(store.url)
    store.release("con1-1")


def kill_all(url: str) -> None:
    """Kill every connection to a database but our own, and wait until they are gone."""
    target = parse_url(url)
    assert isinstance(target, MariaDbTarget)
    own = Connection(target)
    where = f"FROM information_schema.processlist WHERE db = '{target.database}' AND id <> CONNECTION_ID()"
    for row in own.rows(f"SELECT id {where}".encode()):
        own.query(b"KILL %d" % row[0])
    with gevent.Timeout(5):
        while own.rows(f"SELECT id {where}".encode()):
            gevent.sleep(0.01)
    own.cut()


def test_greenlets_killed_in_mid_commit_leave_a_lane_that_goes_on(store: Store, writer: LaneWriter) -> None:
    chance = random.Random(7)
    stored = [instance() for _ in range(ROUNDS)]
    writer.commit()
    for each in stored:
        batch = writer.batch(insert(INSTANCES, each))
        victim = gevent.spawn(writer.connection.commit, batch)
        gevent.sleep(chance.random() * 0.001)
        victim.kill()
        _settle(writer, batch)
    assert sorted(store.scan(INSTANCES, limit=100), key=lambda each: each.uuid) == sorted(
        stored, key=lambda each: each.uuid
    )


def _settle(writer: LaneWriter, batch: Batch) -> None:
    writer.connection.reconnect(5_000)
    try:
        writer.send(batch)
    except AlreadyApplied:
        writer.number = batch.number
