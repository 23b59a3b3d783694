"""The ledger on real databases: what it acknowledges is there, once, whatever breaks under it."""

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import gevent
import msgspec
import pytest
import sqlalchemy

from tests.unit.conductor.ledger_world import instance, wait_for
from zcompute.bus.errors import Busy, DeadlineExceeded, InvalidRequest, NotOwner
from zcompute.conductor.incarnation import Incarnation
from zcompute.conductor.ledger import Change
from zcompute.conductor.settings import LeaseSettings, LifeSettings
from zcompute.db import migrate
from zcompute.db.drivers import open_store
from zcompute.db.private import PrivateMariaDB, find_programs
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCES, TASKS
from zcompute.objects.partition import partition_of
from zcompute.objects.task import Task

_numbers = count(1)


@pytest.fixture(scope="module")
def ledger_mariadb() -> Iterator[PrivateMariaDB]:
    if find_programs() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mariadbd is missing: install mariadb-server-core")
        pytest.skip("mariadbd is missing: install mariadb-server-core")
    place = Path(tempfile.mkdtemp(prefix="zcompute-ledger-"))
    server = PrivateMariaDB(place / "data", durable=False, buffer_pool_mb=32)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(place, ignore_errors=True)


class Cell:
    """One database and the conductors on it, each with a store of its own."""

    def __init__(self, url: str, driver: str) -> None:
        self.url = url
        self.driver = driver
        self.lease = LeaseSettings.sqlite(lease_ms=1500) if url.startswith("sqlite") else LeaseSettings()
        self.lives: dict[str, Incarnation] = {}
        self.stores: dict[str, Store] = {}
        self.running: list[gevent.Greenlet[..., Any]] = []

    def open(self) -> Store:
        return open_store(self.url, self.driver)

    def start(self, name: str) -> Incarnation:
        store = self.stores[name] = self.open()
        # A refused port is no sign here: these conductors share one process and listen nowhere.
        life = self.lives[name] = Incarnation(
            store, "c1", name, "tcp://127.0.0.1:1", settings=LifeSettings(lease=self.lease), probe=lambda *_: False
        )
        self.running.append(gevent.spawn(life.run))
        assert life.wait_ready(10_000), life.reason
        return life

    def shares(self) -> list[int]:
        return sorted(len(life.ledger.owned()) for life in self.lives.values() if not life.reason)

    def commit(self, uuid: str, decide: Callable[[Change], Any], keys: Any = (), timeout_ms: int = 5000) -> Any:
        """As a router does: at the owner, whoever that is."""
        partition = partition_of(uuid)
        for _ in range(2000):
            for life in list(self.lives.values()):
                if not life.ledger.owns(partition):
                    continue
                try:
                    return life.ledger.commit(partition, [(INSTANCES, (uuid,)), *keys], decide, timeout_ms=timeout_ms)
                except (NotOwner, Busy, DeadlineExceeded):
                    pass
            gevent.sleep(0.01)
        raise AssertionError(f"nobody committed {uuid}")

    def close(self) -> None:
        for life in self.lives.values():
            life.stop(500)
        gevent.joinall(self.running, timeout=10)
        for store in self.stores.values():
            store.close()


@pytest.fixture(params=["native-mariadb", "portable-mariadb", "portable-sqlite"])
def cell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cell]:
    driver, _, kind = request.param.partition("-")
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path}/cell.db"
    else:
        url = request.getfixturevalue("ledger_mariadb").create_database(f"ledger{next(_numbers)}")
    migrate.upgrade(url, "cell", "c1")
    cell = Cell(url, driver)
    yield cell
    cell.close()


def uuid_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def once(uuid: str, operation: int) -> Callable[[Change], int]:
    """Count up, once per operation: ``observed_seq`` is the last operation, ``decided`` the count."""

    def decide(change: Change) -> int:
        former = change.get(INSTANCES, (uuid,))
        if former is None:
            change.put(INSTANCES, instance(uuid, decided=1, observed_seq=operation))
            return 1
        if former.observed_seq >= operation:
            return former.decided
        change.put(INSTANCES, msgspec.structs.replace(former, decided=former.decided + 1, observed_seq=operation))
        return former.decided + 1

    return decide


def stored(cell: Cell, uuids: list[str]) -> dict[str, Any]:
    store = cell.open()
    try:
        return {key[0]: row for key, row in store.fetch(INSTANCES, [(uuid,) for uuid in uuids]).items()}
    finally:
        store.close()


def test_rows_are_stored_as_decided_and_read_back_as_stored(cell: Cell) -> None:
    cell.start("s1")
    uuids = [uuid_of(n) for n in range(60)]
    for operation in (1, 2, 3):
        for work in [gevent.spawn(cell.commit, uuid, once(uuid, operation)) for uuid in uuids]:
            assert work.get(timeout=20) == operation
    rows = stored(cell, uuids)
    assert {row.decided for row in rows.values()} == {3}
    assert {row.revision for row in rows.values()} == {3}
    cell.lives["s1"].stop()
    cell.start("s2")
    assert cell.commit(uuids[0], lambda change: change.get(INSTANCES, (uuids[0],))) == rows[uuids[0]]


def test_a_row_that_the_database_refuses_fails_alone(cell: Cell) -> None:
    life = cell.start("s1")
    good, bad = uuid_of(1), uuid_of(2)

    def too_long(change: Change) -> None:
        change.put(INSTANCES, instance(bad, host="h" * 5000))

    works = {uuid: gevent.spawn(cell.commit, uuid, once(uuid, 1)) for uuid in (good, uuid_of(3))}
    refused = gevent.spawn(cell.commit, bad, too_long)
    for work in works.values():
        assert work.get(timeout=10) == 1
    with pytest.raises(InvalidRequest):
        refused.get(timeout=10)
    assert cell.commit(bad, once(bad, 1)) == 1
    assert not life.reason


def test_a_task_gives_way_to_another_of_the_same_instance_in_one_commit(cell: Cell) -> None:
    cell.start("s1")
    uuid = uuid_of(1)
    keys = [(TASKS, ("a",)), (TASKS, ("b",))]

    def build(change: Change) -> None:
        change.put(TASKS, Task(id="b", instance_uuid=uuid, kind="build", step="schedule"))

    def pre_empt(change: Change) -> None:
        change.delete(TASKS, ("b",))
        change.put(TASKS, Task(id="a", instance_uuid=uuid, kind="delete", step="destroy"))

    cell.commit(uuid, build, keys)
    cell.commit(uuid, pre_empt, keys)
    assert [task.id for task in cell.stores["s1"].scan(TASKS, limit=10)] == ["a"]
    with pytest.raises(InvalidRequest):
        cell.commit(uuid, build, keys)


def test_partitions_are_shared_handed_over_and_taken_over(cell: Cell) -> None:
    one, two = cell.start("s1"), cell.start("s2")
    wait_for(lambda: cell.shares() == [128, 128], timeout_s=10)
    uuids = [uuid_of(n) for n in range(20)]
    for uuid in uuids:
        assert cell.commit(uuid, once(uuid, 1)) == 1
    one.stop()
    wait_for(lambda: cell.shares() == [256], timeout_s=10)
    for uuid in uuids:
        assert cell.commit(uuid, once(uuid, 2)) == 2
    cell.start("s3")
    wait_for(lambda: cell.shares() == [128, 128], timeout_s=10)
    assert two._beats is not None
    two._beats._stop = True  # falls silent, and goes on trying to write
    for uuid in uuids:
        assert cell.commit(uuid, once(uuid, 3)) == 3
    wait_for(lambda: cell.shares() == [256], timeout_s=10)
    wait_for(lambda: bool(two.reason), timeout_s=10)
    for uuid in uuids:
        assert cell.commit(uuid, once(uuid, 4)) == 4
    assert {row.decided for row in stored(cell, uuids).values()} == {4}


def test_nothing_acknowledged_is_lost_or_repeated_while_connections_and_conductors_die(cell: Cell) -> None:
    dice = random.Random(7)
    for name in ("s1", "s2"):
        cell.start(name)
    uuids = [uuid_of(n) for n in range(24)]
    acknowledged: dict[str, list[int]] = {uuid: [] for uuid in uuids}
    done = [0]

    def client(uuid: str) -> None:
        for operation in range(1, 41):
            acknowledged[uuid].append(cell.commit(uuid, once(uuid, operation)))
            done[0] += 1

    clients = [gevent.spawn(client, uuid) for uuid in uuids]
    names = iter(f"s{n}" for n in range(3, 9))
    for turn in range(5):
        target = 160 * (turn + 1)
        wait_for(lambda target=target: done[0] >= target, timeout_s=30)  # type: ignore[misc]  # mypy infers no lambda with defaults
        if cell.url.startswith("mysql") and turn % 2 == 0:
            kill_lane_connections(cell)
        else:
            living = [life for life in cell.lives.values() if not life.reason]
            dice.choice(living)._end("killed by the test")
            cell.start(next(names))
    for work in clients:
        work.get(timeout=60)
    rows = stored(cell, uuids)
    for uuid in uuids:
        assert acknowledged[uuid] == list(range(1, 41))
        assert (rows[uuid].decided, rows[uuid].revision) == (40, 40)


def kill_lane_connections(cell: Cell) -> None:
    """The server drops the connection of every lane, whatever it is doing."""
    engine = sqlalchemy.create_engine(cell.url.replace("mysql://", "mysql+pymysql://"))
    living = sqlalchemy.text("SELECT connection_id FROM lanes WHERE alive AND connection_id IS NOT NULL")
    with engine.connect() as connection:
        for (identifier,) in connection.execute(living).all():
            with contextlib.suppress(sqlalchemy.exc.OperationalError):  # it is gone already
                connection.execute(sqlalchemy.text(f"KILL CONNECTION {int(identifier)}"))
    engine.dispose()
