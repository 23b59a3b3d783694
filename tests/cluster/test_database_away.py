"""The database is killed, restarted, stopped and away, under real services. Nothing acknowledged is lost, callers are
told, and everything goes on by itself.

ZCOMPUTE_DATABASE_AWAY_S is how long it is away (6 s unless set; the issue's minute is 60).
"""

import json
import os
import random
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import (
    assert_all_active,
    assert_audit_holds,
    boot,
    command,
    started,
    wait_until,
    when_share_done,
)
from tests.cluster.test_ledger_store import Cell, once, stored, uuid_of
from tests.unit.conductor.ledger_world import wait_for
from zcompute.cli.up.boots import IMAGE, Booter
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.db import migrate
from zcompute.db.native.connection import Connection
from zcompute.db.private import PrivateMariaDB
from zcompute.db.url import MariaDbTarget, parse_url
from zcompute.objects.cell import ROOT_CELL

AWAY_S = float(os.environ.get("ZCOMPUTE_DATABASE_AWAY_S", "6"))
SHAPE = Shape(cells=("c1",), conductors=2, schedulers=1, computes=1, hosts_per_compute=4)
BOOTS = 24
CLIENTS = 12
OPERATIONS = 12


# -- services ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    with started(tmp_path_factory.mktemp("a") / "s", MARIADB, SHAPE) as running:
        yield running


def tell(region: Region, method: str, path: str, body: object = None) -> tuple[int, float]:
    """The status of a request, and how long it took."""
    began_s = time.monotonic()
    client = region.client(timeout_s=40.0)
    try:
        status, _ = client.request(method, path, body, {"Idempotency-Key": str(uuid.uuid4())})
    finally:
        client.close()
    return status, round(time.monotonic() - began_s, 2)


def turned_away(region: Region, cell: str) -> int:
    """How many callers the cell's conductors have told Busy because of the database."""
    done = command("conductor", "list", "--state-dir", str(region.paths.state_dir), "--format", "json")
    rows = json.loads(done.stdout)["conductors"]
    return sum(row["refused"].get("away_ms_max", 0) for row in rows if row["cell"] == cell)


@pytest.mark.timeout(180 + 2 * AWAY_S)
@pytest.mark.parametrize("cell", ["c1", ROOT_CELL])
def test_a_database_away_costs_no_server_and_no_restart(region: Region, cell: str) -> None:
    server = region._databases._servers[cell]
    pids = {name: process.pid for name, process in region.processes.items()}
    victim = boot(region, 1).boots[0].uuid
    body = {"server": {"name": "away", "flavorRef": "1", "imageRef": IMAGE, "networks": "auto"}}
    asked = ("DELETE", f"/v2.1/servers/{victim}", None) if cell == "c1" else ("POST", "/v2.1/servers", body)
    told: list[tuple[int, float]] = []  # those asked while it was away
    early: list[tuple[int, float]] = []  # of them, those that were answered while it was away

    def away(booter: Booter) -> None:
        when_share_done(booter, 0.2)
        server.kill()
        back_at_s = time.monotonic() + AWAY_S
        asking = []
        while time.monotonic() < back_at_s:
            asking.append(gevent.spawn(lambda: told.append(tell(region, *asked))))
            gevent.sleep(0.5)
        early.extend(told)
        server.start()
        gevent.joinall(asking, timeout=60, raise_error=True)

    booter = Booter(region, BOOTS, 8)
    acting = gevent.spawn(away, booter)
    run = booter.run()
    acting.get(timeout=60)
    assert_all_active(run)
    print(f"{cell}: told {told}, of them {len(early)} while away; {len(run.boots)} boots in {run.took_s:.1f} s")
    assert all(status in (202, 204, 404, 503) for status, _ in told), told
    assert all(status == 503 for status, _ in early), "nothing is said to be done while it is away"
    assert turned_away(region, cell) > 0, "conductors told Busy; the API asks again until the request's deadline"
    assert {name: process.pid for name, process in region.processes.items()} == pids, "no process was started anew"
    assert_all_active(boot(region, 2))
    assert_audit_holds(region)


def test_the_operator_is_told_that_the_database_is_away(region: Region) -> None:
    server = region._databases._servers["c1"]
    state_dir = str(region.paths.state_dir)
    server.kill()
    try:
        wait_until(
            lambda: "database lost" in command("conductor", "list", "--state-dir", state_dir).stdout, "list says so"
        )
        wait_until(
            lambda: "the database" in command("conductor", "advise", "--cell", "c1", "--state-dir", state_dir).stdout,
            "advise says so, once no look of its window is from before",
        )
    finally:
        server.start()
    wait_until(
        lambda: "database lost" not in command("conductor", "list", "--state-dir", state_dir).stdout, "it is back"
    )
    assert_all_active(boot(region, 1))


def test_a_password_changed_on_a_running_region_costs_no_restart(region: Region) -> None:
    """The password is in the configuration's url here: it is read again from the file."""
    server = region._databases._servers["c1"]
    pids = {name: process.pid for name, process in region.processes.items()}
    for name in ("c1-conductor-1", "c1-conductor-2"):
        path = region.paths.config(name)
        path.write_text(path.read_text().replace(server.password, "fresh-password"))
    as_root(
        server,
        *(f"ALTER USER zcompute@'{host}' IDENTIFIED BY 'fresh-password'" for host in HOSTS),
        "KILL USER zcompute",
    )
    try:
        assert_all_active(boot(region, 4))
    finally:
        as_root(server, *(f"ALTER USER zcompute@'{host}' IDENTIFIED BY '{server.password}'" for host in HOSTS))
        for name in ("c1-conductor-1", "c1-conductor-2"):
            path = region.paths.config(name)
            path.write_text(path.read_text().replace("fresh-password", server.password))
        as_root(server, "KILL USER zcompute")
    assert_all_active(boot(region, 2))
    assert {name: process.pid for name, process in region.processes.items()} == pids
    assert_audit_holds(region)


HOSTS = ("localhost", "127.0.0.1")


def as_root(server: PrivateMariaDB, *statements: str) -> None:
    """The root of a private server has the password of its first start."""
    target = MariaDbTarget("127.0.0.1", 0, "root", server.password, "mysql", server.socket)
    connection = Connection(target)
    for statement in statements:
        connection.query(statement.encode())
    connection.cut()


# -- the ledger -------------------------------------------------------------------------------------------------------


@pytest.fixture
def durable() -> Iterator[PrivateMariaDB]:
    """A server that flushes at every commit, so that a kill -9 loses nothing it has confirmed."""
    require_mariadb()
    place = Path(tempfile.mkdtemp(prefix="zcompute-away-"))
    server = PrivateMariaDB(place / "data", durable=True, buffer_pool_mb=32)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(place, ignore_errors=True)


@pytest.mark.parametrize("driver", ["native", "portable"])
def test_what_was_acknowledged_survives_kills_restarts_stalls_and_locks(durable: PrivateMariaDB, driver: str) -> None:
    url = durable.create_database("away")
    migrate.upgrade(url, "cell", "c1")
    cell = Cell(url, driver)
    lives = [cell.start(name) for name in ("s1", "s2")]
    uuids = [uuid_of(number) for number in range(CLIENTS)]
    acknowledged: dict[str, list[int]] = {each: [] for each in uuids}
    done = [0]

    def client(each: str) -> None:
        for operation in range(1, OPERATIONS + 1):
            acknowledged[each].append(cell.commit(each, once(each, operation), timeout_ms=60_000))
            done[0] += 1
            gevent.sleep(0.02)

    clients = [gevent.spawn(client, each) for each in uuids]
    try:
        for turn, fault in enumerate((killed, restarted, stalled, locked, killed)):
            goal = CLIENTS * OPERATIONS * turn // 6
            wait_for(lambda goal=goal: done[0] >= goal, timeout_s=60)  # type: ignore[misc]  # mypy infers no lambda with defaults
            fault(durable, uuids)
        for work in clients:
            work.get(timeout=60)
        rows = stored(cell, uuids)
        for each in uuids:
            assert acknowledged[each] == list(range(1, OPERATIONS + 1))
            assert (rows[each].decided, rows[each].revision) == (OPERATIONS, OPERATIONS)
        assert [life.reason for life in lives] == ["", ""], "the lives went on"
        assert sum(lane.meter.reconnects for life in lives for lane in life.lanes) > 0
    finally:
        gevent.killall(clients)
        cell.close()


def killed(server: PrivateMariaDB, _: list[str]) -> None:
    server.kill()
    gevent.sleep(random.Random(1).random())
    server.start()


def restarted(server: PrivateMariaDB, _: list[str]) -> None:
    server.stop()
    server.start()


def stalled(server: PrivateMariaDB, _: list[str]) -> None:
    """Longer than the lease: nobody is dead for it."""
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    gevent.sleep(1.5)
    os.kill(server.pid, signal.SIGCONT)


def locked(server: PrivateMariaDB, uuids: list[str]) -> None:
    """Rows locked by a stranger for longer than innodb_lock_wait_timeout: 1205."""
    target = parse_url(server.url("away"))
    assert isinstance(target, MariaDbTarget)
    stranger = Connection(target, autocommit=False)
    for each in uuids:
        stranger.query(b"SELECT uuid FROM instances WHERE uuid = '%s' FOR UPDATE" % each.encode())
    gevent.sleep(2.5)
    stranger.query(b"ROLLBACK")
    stranger.cut()
