"""Nobody is taken over without a fault: under full load, while the database stalls, while a port refuses.

Short here; the whole lengths by hand: ``ZCOMPUTE_LOAD_S=600 ZCOMPUTE_STALL_S=60 python -m pytest
tests/cluster/test_no_take_over.py``.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gevent
import psutil
import pytest

from loadtest.chaos.cluster import Cluster
from loadtest.chaos.history import Answer, read_history
from loadtest.chaos.rest import rest
from tests.cluster.conftest import require_mariadb
from tests.cluster.region import (
    assert_all_active,
    assert_audit_holds,
    boot,
    boot_while,
    delete_all,
    region_processes,
    started,
    wait_until,
    when_share_done,
)
from tests.cluster.test_faults import store_of
from zcompute.bus import Endpoint, Identity
from zcompute.cli.up.boots import Booter
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.conductor.incarnation import Incarnation
from zcompute.conductor.lease import port_refuses
from zcompute.db import migrate
from zcompute.db.drivers import open_store
from zcompute.db.private import PrivateMariaDB
from zcompute.db.store import MapRows, Store

CELL = "c1"
CONDUCTORS = ("c1-conductor-1", "c1-conductor-2")
LOAD_S = float(os.environ.get("ZCOMPUTE_LOAD_S", "10"))
STALL_S = float(os.environ.get("ZCOMPUTE_STALL_S", "4"))
REFUSE_S = 4.0
BOOTS, IN_FLIGHT = 40, 20
AROUND_S = 110


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    shape = Shape(cells=(CELL,), computes=1, hosts_per_compute=4)
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, shape) as running, store_of(running, CELL) as store:
        wait_until(lambda: sorted(shares(store)) == [128, 128], "both conductors own their whole share")
        yield running


def shares(store: Store) -> Collection[int]:
    """How many partitions each conductor owns. Lanes hand over one by one: to own some is not the end of it."""
    return Counter(store.read_map().partition_map().owners).values()


def lives(rows: MapRows) -> dict[str, tuple[str, int]]:
    """Who owns what since when, and in which life: what any take-over changes."""
    found = {name: (row.incarnation, 0) for name, row in rows.conductors.items()}
    for row in rows.partitions:
        found[f"partition {row.partition_id}"] = (str(row.lane_id), row.owner_epoch)
    return found


@contextmanager
def nobody_taken_over(store: Store) -> Iterator[None]:
    before = lives(store.read_map())
    yield
    assert lives(store.read_map()) == before


@pytest.mark.timeout(LOAD_S + AROUND_S)
def test_nobody_is_taken_over_under_full_load(region: Region) -> None:
    booted: list[str] = []
    with store_of(region, CELL) as store, nobody_taken_over(store), gevent.Timeout(LOAD_S, False):
        while True:
            run = boot(region, BOOTS, in_flight=IN_FLIGHT)
            assert_all_active(run)
            delete_all(region, [each.uuid for each in run.boots])
            booted += [each.uuid for each in run.boots]
    wait_until(lambda: booted or LOAD_S < 1, "something was booted")


def stopped_database(region: Region) -> list[psutil.Process]:
    found = [process for process in region_processes(region.paths.state_dir) if process.name() == "mariadbd"]
    assert found
    for process in found:
        process.send_signal(signal.SIGSTOP)
    return found


@pytest.mark.timeout(STALL_S + AROUND_S)
def test_a_database_that_stalls_kills_nobody_and_loses_nothing(region: Region) -> None:
    """Every database of the region: no conductor ends its life, no partition changes hands."""

    def stall(booter: Booter) -> None:
        when_share_done(booter, 0.3)
        databases = stopped_database(region)
        try:
            gevent.sleep(STALL_S)
        finally:
            for process in databases:
                process.send_signal(signal.SIGCONT)

    with store_of(region, CELL) as store, nobody_taken_over(store):
        assert_all_active(boot_while(region, BOOTS, stall, in_flight=IN_FLIGHT))
        gevent.sleep(1.0)  # longer than the lease: what the stall has left behind would show
    assert_audit_holds(region)


@pytest.fixture
def cell_url(tmp_path: Path) -> Iterator[str]:
    require_mariadb()
    server = PrivateMariaDB(tmp_path / "data", durable=False, buffer_pool_mb=16)
    server.start()
    try:
        url = server.create_database("cell")
        migrate.upgrade(url, "cell", CELL)
        yield url
    finally:
        server.stop()


def refusing_address() -> str:
    """A port that was bound and is not any more: whoever connects is refused outright, as by a REJECT rule."""
    endpoint = Endpoint(Identity(role="conductor", cell=CELL, service_id="gone"))
    address = endpoint.bind("tcp://127.0.0.1:0")
    endpoint.close()
    wait_until(lambda: port_refuses(address, 100), "the port refuses")
    return address


def test_two_that_refuse_each_other_and_both_reach_the_database_leave_each_other_alone(cell_url: str) -> None:
    """A refused port shortens a wait that has begun; while the beat moves it is no sign of death."""
    with ExitStack() as stack:
        made = []
        for name in ("k1", "k2"):
            store = open_store(cell_url)
            stack.callback(store.close)
            life = Incarnation(store, CELL, name, refusing_address())
            running = gevent.spawn(life.run)
            stack.callback(running.join, timeout=5)
            stack.callback(life.stop, 2000)
            assert life.wait_ready(10_000), life.reason
            made.append((life, store))
        wait_until(lambda: [len(life.ledger.owned()) for life, _ in made] == [128, 128], "each has half")
        with nobody_taken_over(made[0][1]):
            gevent.sleep(REFUSE_S)
        assert [life.reason for life, _ in made] == ["", ""]


def refusing_peers(cluster: Cluster) -> set[str]:
    """Those of the cell's two conductors whose last word on the link with the other is that it ended."""
    last = {}
    for name, other in ((CONDUCTORS[0], CONDUCTORS[1]), (CONDUCTORS[1], CONDUCTORS[0])):
        lines = cluster.paths.log(name).read_text(encoding="utf-8").splitlines()
        last[name] = next((line for line in reversed(lines) if f"peer=conductor/{other}@" in line), "")
    return {name for name, line in last.items() if "link down" in line}


def answered_by(cluster: Cluster, after_s: float) -> set[str]:
    """Who has applied an agent's report since then (time.monotonic())."""
    events = read_history(cluster.history)
    return {each.peer for each in events if isinstance(each, Answer) and each.t > after_s and each.verdict == "applied"}


@pytest.mark.timeout(AROUND_S)
def test_conductors_with_a_reject_rule_between_them_go_on_side_by_side(tmp_path: Path) -> None:
    """Real processes: their link is reset, each port refuses the other, both reach the database and their agents."""
    require_mariadb()
    cluster = Cluster.make(tmp_path / "s", Shape(cells=(CELL,)), per_second=50, wired=True)
    try:
        cluster.start()
        cluster.wait_whole(AROUND_S / 2)
        assert_all_active(boot(cluster, BOOTS))
        with store_of(cluster, CELL) as store, nobody_taken_over(store):
            cluster.refuse(*CONDUCTORS)
            wait_until(lambda: refusing_peers(cluster) == set(CONDUCTORS), "their link has ended")
            refused_s = time.monotonic()
            gevent.sleep(REFUSE_S)
            wait_until(lambda: answered_by(cluster, refused_s) == set(CONDUCTORS), "both take reports")
            cluster.accept(*CONDUCTORS)
            wait_until(lambda: not refusing_peers(cluster), "they are linked again")
        rest(cluster)
        assert_audit_holds(cluster)
    finally:
        cluster.stop()
