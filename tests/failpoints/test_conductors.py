"""A conductor killed, or stopped, at a step of commit, joining, hand-over, leaving or take-over, under boots.

The pool goes on. After each: every server ACTIVE, the audit finds nothing, each server has its history once, and each
partition's notifications are numbered without gap or repeat.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import (
    assert_all_active,
    assert_audit_holds,
    boot_while,
    started,
    wait_until,
    when_share_done,
)
from tests.cluster.test_faults import incarnation, owners, store_of
from tests.unit.test_failpoints import OF_OTHERS, places
from zcompute.cli.up.boots import Booter, BootRun
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.db.native.connection import Connection
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, INSTANCE_ACTIONS, NOTIFICATIONS
from zcompute.db.url import MariaDbTarget, parse_url
from zcompute.failpoints import ENVIRONMENT, GATE

ARMED, OTHER = "c1-conductor-1", "c1-conductor-2"
BOTH = {ARMED, OTHER}
BOOTS = 14
BEGUN = 0.15
SCAN_ROWS = 10_000
EVENTS = ["build_claim", "build_schedule", "build_spawn"]

COMMIT = (
    "lane.before_commit",
    "session.sent",
    "session.answered",
    "lane.after_commit",
    "lane.before_verdicts",
    "lane.after_verdicts",
)
JOIN = (
    "incarnation.before_register",
    "incarnation.after_register",
    "keeper.before_gain",
    "keeper.after_gain_barrier",
    "keeper.after_gain",
)
HAND_OVER = ("keeper.before_hand_over", "lane.before_hand_over", "lane.after_hand_over", "keeper.after_hand_over")
LEAVE = (
    "keeper.before_last_barrier",
    "keeper.after_last_barrier",
    "incarnation.before_release",
    "incarnation.after_release",
)
TAKE_OVER = (
    "keeper.before_take_over",
    "ownership.lanes_locked",
    "ownership.lanes_dead",
    "ownership.partitions_moved",
    "keeper.after_take_over",
)
KILL = ("ownership.before_kill", "ownership.after_kill")
ZOMBIE = ("lane.before_commit", "session.sent", "lane.before_verdicts")
STOPPED_IN_TAKE_OVER = ("ownership.lanes_locked", "ownership.partitions_moved")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    shape = Shape(cells=("c1",), computes=1, hosts_per_compute=8)
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, shape) as region:
        region.on_unexpected_end = lambda text: None
        yield region


@pytest.fixture
def region(running: Region) -> Iterator[Region]:
    yield running
    for service_id in BOTH:
        running.kill(service_id, signal.SIGCONT)
        if not running.processes[service_id].alive:
            running.restart(service_id)


class Armed:
    """The conductor that is to die at a place, once the gate is open."""

    def __init__(self, region: Region, gate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._region = region
        self._gate = gate
        self._monkeypatch = monkeypatch
        self._process = region.processes[ARMED]

    def start(self, place: str, *, action: str = "kill", gate_open: bool = False) -> None:
        """Start it anew, armed, when the other has taken over."""
        wait_owners(self._region, BOTH)  # else it may be given partitions after its death, before that is seen
        self._region.kill(ARMED)
        wait_owners(self._region, {OTHER})
        with self._monkeypatch.context() as patch:
            patch.setenv(ENVIRONMENT, f"{place}={action}")
            patch.setenv(GATE, str(self._gate))
            if gate_open:
                self.open_gate()
            self._region.restart(ARMED)

    def open_gate(self) -> None:
        self._gate.touch()

    def assert_died(self) -> None:
        """By its own hand: nobody else has sent this signal."""
        wait_until(lambda: not self._process.alive, f"{ARMED} dies at its place")
        assert self._process.exit_code == -signal.SIGKILL
        assert not self._gate.exists()

    def assert_stopped(self) -> None:
        """By its own hand, and still there."""
        wait_until(lambda: not self._gate.exists(), f"{ARMED} stops at its place")
        assert self._process.alive


@pytest.fixture
def armed(region: Region, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Armed:
    return Armed(region, tmp_path / "gate", monkeypatch)


def wait_owners(region: Region, wanted: set[str]) -> None:
    with store_of(region, "c1") as store:
        wait_until(lambda: owners(store) == wanted, f"{wanted} own all partitions", found=lambda: owners(store))


def under_boots(region: Region, act: Callable[[], None]) -> None:
    """Do it while servers are booted, then see that nothing was lost or repeated."""

    def acting(booter: Booter) -> None:
        when_share_done(booter, BEGUN)
        act()
        for service_id in BOTH:
            if not region.processes[service_id].alive:
                region.restart(service_id)

    run = boot_while(region, BOOTS, acting, in_flight=4)
    assert_all_active(run)
    wait_owners(region, BOTH)
    assert_audit_holds(region)
    assert_told_once(region, run)


def assert_told_once(region: Region, run: BootRun) -> None:
    with store_of(region, "c1") as store:
        for server in run.boots:
            where = {"instance_uuid": server.uuid}
            actions = store.scan(INSTANCE_ACTIONS, where=where, limit=10)
            assert [(row.action, row.result) for row in actions] == [("create", "Success")]
            events = store.scan(INSTANCE_ACTION_EVENTS, where=where, limit=50)
            assert sorted(row.event for row in events) == EVENTS
        rows = store.scan(NOTIFICATIONS, limit=SCAN_ROWS)
        last_n = {row.partition_id: row.last_n for row in store.read_map().partitions}
    for partition, last in last_n.items():
        assert [row.n for row in rows if row.partition_id == partition] == list(range(1, last + 1))
    ends = [row.instance_uuid for row in rows if row.event_type == "instance.create.end"]
    assert {uuid: ends.count(uuid) for uuid in (server.uuid for server in run.boots)} == {
        server.uuid: 1 for server in run.boots
    }


def test_every_place_of_a_conductor_is_tried() -> None:
    of_conductors = [place for place in places() if not place.startswith(OF_OTHERS)]
    assert sorted([*COMMIT, *JOIN, *HAND_OVER, *LEAVE, *TAKE_OVER, *KILL]) == sorted(of_conductors)


@pytest.mark.parametrize("place", COMMIT)
def test_killed_in_a_commit(region: Region, armed: Armed, place: str) -> None:
    armed.start(place)
    wait_owners(region, BOTH)

    def die() -> None:
        armed.open_gate()
        armed.assert_died()

    under_boots(region, die)


@pytest.mark.parametrize("place", JOIN)
def test_killed_while_it_joins(region: Region, armed: Armed, place: str) -> None:
    def join() -> None:
        armed.start(place, gate_open=True)
        armed.assert_died()

    under_boots(region, join)


@pytest.mark.parametrize("place", HAND_OVER)
def test_killed_while_it_hands_over_to_one_that_joins(region: Region, armed: Armed, place: str) -> None:
    armed.start(place)
    wait_owners(region, BOTH)

    def rebalance() -> None:
        region.kill(OTHER)
        wait_owners(region, {ARMED})
        armed.open_gate()
        region.restart(OTHER)
        armed.assert_died()

    under_boots(region, rebalance)


@pytest.mark.parametrize("place", LEAVE)
def test_killed_while_it_leaves(region: Region, armed: Armed, place: str) -> None:
    armed.start(place)
    wait_owners(region, BOTH)

    def leave() -> None:
        armed.open_gate()
        region.kill(ARMED, signal.SIGTERM)
        armed.assert_died()

    under_boots(region, leave)


@pytest.mark.parametrize("place", TAKE_OVER)
def test_killed_while_it_takes_over(region: Region, armed: Armed, place: str) -> None:
    armed.start(place)
    wait_owners(region, BOTH)

    def take_over() -> None:
        armed.open_gate()
        region.kill(OTHER)
        armed.assert_died()

    under_boots(region, take_over)


@pytest.mark.parametrize("place", ZOMBIE)
def test_stopped_in_a_commit_until_it_was_taken_over(region: Region, armed: Armed, place: str) -> None:
    armed.start(place, action="stop")
    wait_owners(region, BOTH)

    def stop() -> None:
        with store_of(region, "c1") as store:
            former = incarnation(store, ARMED)
            armed.open_gate()
            armed.assert_stopped()
            wait_owners(region, {OTHER})
            region.kill(ARMED, signal.SIGCONT)
            wait_until(lambda: incarnation(store, ARMED) not in ("", former), "it has learnt and begins anew")

    under_boots(region, stop)


@pytest.mark.parametrize("place", STOPPED_IN_TAKE_OVER)
def test_stopped_in_a_take_over_until_another_made_it(region: Region, armed: Armed, place: str) -> None:
    """It holds the locks of the lanes and of the map: the server ends its transaction."""
    armed.start(place, action="stop")
    wait_owners(region, BOTH)

    def stop() -> None:
        with store_of(region, "c1") as store:
            former = incarnation(store, ARMED)
            armed.open_gate()
            region.kill(OTHER)
            armed.assert_stopped()
            region.restart(OTHER)
            wait_owners(region, {OTHER})
            region.kill(ARMED, signal.SIGCONT)
            wait_until(lambda: incarnation(store, ARMED) not in ("", former), "it has learnt and begins anew")

    under_boots(region, stop)


@contextmanager
def locked_lane(region: Region, service_id: str) -> Iterator[Connection]:
    """A transaction that holds the conductor's lanes, as a batch in flight does that never ends."""
    target = parse_url(region.database_url("c1"))
    assert isinstance(target, MariaDbTarget)
    connection = Connection(target, autocommit=False)
    try:
        connection.query(b"SELECT lane_id FROM lanes WHERE service_id = '%s' FOR UPDATE" % service_id.encode())
        yield connection
    finally:
        connection.cut()


@pytest.mark.parametrize("place", KILL)
def test_killed_while_it_kills_the_connection_of_a_batch_that_does_not_end(
    region: Region, armed: Armed, place: str
) -> None:
    armed.start(place)
    wait_owners(region, BOTH)

    def take_over() -> None:
        armed.open_gate()
        region.kill(OTHER, signal.SIGSTOP)
        with locked_lane(region, OTHER):
            armed.assert_died()
        region.kill(OTHER)

    under_boots(region, take_over)
