"""Reads from real replicas: what has committed is seen, the primary is left alone, whoever is away comes back."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest

from loadtest.late_replica import late
from tests.contract.store.conftest import conductor
from tests.contract.store.lane_writer import LaneWriter, insert, update
from tests.contract.store.samples import instance, new_uuid
from zcompute.cli.up.statedir import free_ports
from zcompute.db import migrate
from zcompute.db.drivers import open_reading, open_store
from zcompute.db.private import find_programs
from zcompute.db.private_replicas import PrivateReplicas
from zcompute.db.replicas.need import CURRENT, PRIMARY, Kind, stale
from zcompute.db.replicas.reading import Reading
from zcompute.db.replicas.standing import State
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCES
from zcompute.db.view import by_key
from zcompute.objects.messages.instances import InstanceQuery

pytestmark = pytest.mark.skipif(
    find_programs() is None and os.environ.get("CI") != "true", reason="mariadbd is missing"
)

DEADLINE_S = 20.0
ROW = by_key(INSTANCES)


class Scene:
    """A primary, two replicas, a lane that writes, and reads over all."""

    def __init__(self, place: Path) -> None:
        ports = list(free_ports(["primary", "one", "two"], {}).values())
        self.servers = PrivateReplicas(place, ports, buffer_pool_mb=32)
        self.servers.start()
        self.url = self.servers.primary.create_database("c1")
        migrate.upgrade(self.url, "cell", "c1")
        self.store: Store = open_store(self.url)
        self.writer = LaneWriter.register(self.store, conductor())
        self.servers.wait_caught_up()
        self._open: list[Reading] = []

    def reading(self, urls: list[str] | None = None, lag_ms_max: int = 2000) -> Reading:
        made = open_reading(self.store, self.url, urls or [one.url("c1") for one in self.servers.replicas], lag_ms_max)
        made.start()
        self._open.append(made)
        return made

    def serving(self, lag_ms_max: int = 2000) -> Reading:
        made = self.reading(lag_ms_max=lag_ms_max)
        until(lambda: all(one.takes_reads for one in made.replicas))
        return made

    def close_readings(self) -> None:
        for one in self._open:
            one.stop()
        self._open.clear()

    def close(self) -> None:
        self.close_readings()
        self.writer.connection.close()
        self.store.close()
        self.servers.stop()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(tmp_path_factory.mktemp("replicas"))
    yield scene
    scene.close()


@pytest.fixture
def scene(built: Scene) -> Iterator[Scene]:
    """Whole before and after: both replicas up and caught up."""
    yield built
    built.close_readings()
    for replica in built.servers.replicas:
        if replica.pid is None:
            replica.start()
        replica.administer("STOP SLAVE", "START SLAVE")
    built.servers.wait_caught_up()


def until(holds: Callable[[], bool], deadline_s: float = DEADLINE_S) -> None:
    ends_at = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < ends_at, "what was waited for has not come"
        gevent.sleep(0.02)


def in_time() -> float:
    return time.monotonic() + DEADLINE_S


def create(scene: Scene) -> str:
    made = instance(uuid=new_uuid())
    scene.writer.commit(insert(INSTANCES, made))
    return made.uuid


def seen(reading: Reading, uuid: str, ends_at_s: float | None = None) -> bool:
    return reading.get(CURRENT, ends_at_s or in_time(), ROW, (uuid,)) is not None


def listed(reading: Reading) -> set[str]:
    query = InstanceQuery(project_id="p1", limit=1000)
    return {each.uuid for each in reading.read(CURRENT, in_time(), lambda view: view.list_instances(query))}


def test_what_was_created_is_seen_at_once_and_the_primary_serves_positions_only(scene: Scene) -> None:
    reading = scene.serving()
    for _ in range(50):
        uuid = create(scene)
        assert seen(reading, uuid)
        assert uuid in listed(reading)
    assert reading.at_primary[Kind.CURRENT] == 0
    assert reading.by_kind[Kind.CURRENT] == 100
    assert all(replica.reads > 0 for replica in reading.replicas)


def test_with_both_replicas_500_ms_behind_nothing_is_missed(scene: Scene) -> None:
    reading = scene.serving(lag_ms_max=5000)
    with late(scene.servers, scene.servers.replicas, 0.5):
        ends_at = time.monotonic() + 4
        while time.monotonic() < ends_at:
            uuid = create(scene)
            assert seen(reading, uuid)
            assert uuid in listed(reading)
    assert sum(reading.at_primary.values()) <= 0.05 * sum(reading.by_kind.values())


def test_with_one_replica_behind_nothing_is_missed_and_the_other_serves(scene: Scene) -> None:
    reading = scene.serving()
    behind, other = scene.servers.replicas[0], reading.replicas[1]
    behind.administer("STOP SLAVE SQL_THREAD")
    until(lambda: bool(create(scene)) and reading.replicas[0].behind_s > 0.1)
    before, took_s = other.reads, 0.0
    for _ in range(100):
        uuid = create(scene)
        begun_s = time.monotonic()
        assert seen(reading, uuid)
        took_s = max(took_s, time.monotonic() - begun_s)
    assert other.reads - before == 100
    assert sum(reading.at_primary.values()) <= 0.05 * sum(reading.by_kind.values())
    until(lambda: reading.replicas[0].standing.state is State.LAGGING)
    until(lambda: "SQL thread is stopped" in reading.replicas[0].trouble)
    behind.administer("START SLAVE SQL_THREAD")
    until(lambda: reading.replicas[0].takes_reads)


def test_a_killed_replica_leaves_at_once_and_comes_back_by_itself(scene: Scene) -> None:
    reading = scene.serving()
    uuid = create(scene)
    first = scene.servers.replicas[0]
    scene.servers.wait_caught_up()  # killed within a DDL statement it would not come back by itself
    first.kill()
    for _ in range(50):
        assert seen(reading, uuid)
    until(lambda: reading.replicas[0].standing.state is State.AWAY)
    assert sum(reading.at_primary.values()) == 0
    first.start()
    until(lambda: reading.replicas[0].takes_reads)
    before = reading.replicas[0].reads
    until(lambda: seen(reading, create(scene)) and reading.replicas[0].reads > before)


def test_a_stopped_replica_costs_its_own_reads_a_second_try(scene: Scene) -> None:
    reading = scene.serving()
    uuid = create(scene)
    pid = scene.servers.replicas[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        found = [gevent.spawn(seen, reading, uuid) for _ in range(50)]
        gevent.joinall(found, timeout=DEADLINE_S)
        assert all(each.get(timeout=0) for each in found)
        until(lambda: reading.replicas[0].standing.state is State.AWAY)
        assert sum(reading.at_primary.values()) == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: reading.replicas[0].takes_reads)


def test_without_any_replica_the_primary_answers(scene: Scene) -> None:
    reading = scene.serving()
    for replica in scene.servers.replicas:
        replica.kill()
    uuid = create(scene)
    assert seen(reading, uuid)
    assert uuid in listed(reading)
    assert reading.at_primary[Kind.CURRENT] == 2


def test_a_stale_read_asks_the_primary_for_misses_only(scene: Scene) -> None:
    reading = scene.serving(lag_ms_max=60_000)
    uuid = create(scene)
    scene.servers.wait_caught_up()
    until(lambda: all((one.age_s(time.monotonic()) or 9) < 0.5 for one in reading.replicas))
    assert reading.get(stale(60_000), in_time(), ROW, (uuid,)) is not None
    assert reading.confirmed == 0
    for replica in scene.servers.replicas:
        replica.administer("STOP SLAVE SQL_THREAD")
    fresh = create(scene)
    assert reading.get(stale(60_000), in_time(), ROW, (fresh,)) is not None
    assert reading.confirmed == 1
    scene.writer.commit(update(INSTANCES, instance(uuid=uuid, name="renamed", revision=2)))
    old = reading.get(stale(60_000), in_time(), ROW, (uuid,))
    now = reading.get(PRIMARY, in_time(), ROW, (uuid,))
    assert old is not None
    assert now is not None
    assert (old.name, now.name) == (instance().name, "renamed")


def test_concurrent_reads_by_key_share_statements_and_position(scene: Scene) -> None:
    reading = scene.serving()
    uuids = [create(scene) for _ in range(20)]
    asked, shared = reading.positions_asked
    found = [gevent.spawn(seen, reading, uuid) for uuid in uuids * 10]
    gevent.joinall(found, timeout=DEADLINE_S, raise_error=True)
    assert all(each.value for each in found)
    now_asked, now_shared = reading.positions_asked
    assert now_shared - shared >= 200
    assert now_asked - asked <= 20


def refused(scene: Scene, url: str) -> str:
    reading = scene.reading([url])
    until(lambda: reading.replicas[0].standing.state in (State.REFUSED, State.AWAY))
    assert seen(reading, create(scene))
    assert reading.at_primary[Kind.CURRENT] == 1
    return reading.replicas[0].standing.reason


def test_what_is_no_replica_of_this_cell_is_refused_with_the_reason(scene: Scene) -> None:
    primary, replica = scene.servers.primary, scene.servers.replicas[0]
    assert "found the primary itself" in refused(scene, scene.url)
    other = primary.create_database("c2")
    migrate.upgrade(other, "cell", "c2")
    scene.servers.wait_caught_up()
    assert "found the database of cell 'c2'" in refused(scene, replica.url("c2"))
    assert "no database of zcompute" in refused(scene, replica.url("mysql"))


def test_a_replica_on_another_schema_revision_is_refused(scene: Scene) -> None:
    replica = scene.servers.replicas[0]
    replica.administer("SET sql_log_bin = 0", "INSERT INTO c1.alembic_version VALUES ('9999')")
    try:
        assert re.match("its schema is at .*9999.*, the primary's at ", refused(scene, replica.url("c1")))
    finally:
        replica.administer("SET sql_log_bin = 0", "DELETE FROM c1.alembic_version WHERE version_num = '9999'")


def test_a_server_that_follows_nobody_is_refused_even_later(scene: Scene) -> None:
    reading = scene.serving()
    replica = scene.servers.replicas[0]
    replica.administer("STOP SLAVE", "RESET SLAVE ALL")
    try:
        until(lambda: reading.replicas[0].standing.state is State.REFUSED)
        assert "follows nobody" in reading.replicas[0].standing.reason
    finally:
        scene.servers.follow(replica)
    until(lambda: reading.replicas[0].takes_reads)


def test_a_wrong_password_is_one_sentence(scene: Scene) -> None:
    replica = scene.servers.replicas[0]
    reason = refused(scene, replica.url("c1").replace(replica.password, "wrong"))
    assert "Access denied" in reason
    assert "\n" not in reason
