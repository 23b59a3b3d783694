"""An agent killed at a step of a spawn or a destroy, of a report, its answer and what follows from that.

In a region: the conductors go on, the agent is started again. After each, a machine exists exactly once or is gone, its
row says so, and no claim is left over. The rewrite of a journal is tried with one agent process alone.
"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from gevent.pool import Pool

from tests.cluster.agent_cell import Cell, eventually, spawn_request
from tests.cluster.conftest import require_mariadb
from tests.cluster.region import (
    assert_all_active,
    assert_audit_holds,
    boot,
    boot_while,
    delete_all,
    started,
    wait_until,
)
from tests.cluster.test_faults import store_of
from tests.orders import fresh, make_order
from tests.unit.test_failpoints import OF_AGENTS, places
from zcompute.bus import BusError
from zcompute.cli.up.boots import Booter
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.compute.virt.fake_log import DomainLog, domain_log_path, read_domain_log
from zcompute.db.tables import INSTANCES
from zcompute.failpoints import ENVIRONMENT, GATE
from zcompute.objects.instance import POWER_RUNNING
from zcompute.objects.methods import SPAWN

AGENT = "c1-compute-1"
SERVERS = 3
COMMAND = (
    "commands.before_record",
    "commands.after_record",
    "steps.before_work",
    "steps.after_work",
    "steps.after_result",
    "steps.after_finish",
    "steps.after_observation",
    "commands.before_forget",
    "commands.after_forget",
)
REPORT = ("reporter.before_send", "reporter.before_prune", "reporter.after_prune")
APPEND = ("journal.before_append", "journal.after_append")
REPLACE = ("journal.before_replace", "journal.after_replace")
PASSES = (1, 4)  # of the places that several records pass: of the command, its result, its end, its observation


def tried() -> list[tuple[str, int]]:
    """Each place, and at which pass."""
    return [(place, 1) for place in (*COMMAND, *REPORT)] + [(place, number) for place in APPEND for number in PASSES]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    shape = Shape(cells=("c1",), computes=1, hosts_per_compute=2)
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, shape) as region:
        region.on_unexpected_end = lambda text: None
        yield region


@pytest.fixture
def region(running: Region) -> Iterator[Region]:
    yield running
    if not running.processes[AGENT].alive:
        running.restart(AGENT)


class Armed:
    """The agent that is to die at a place, once the gate is open."""

    def __init__(self, region: Region, gate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._region = region
        self._gate = gate
        self._monkeypatch = monkeypatch

    def start(self, place: str, number: int) -> None:
        """Start it anew, armed."""
        self._region.kill(AGENT)
        with self._monkeypatch.context() as patch:
            patch.setenv(ENVIRONMENT, f"{place}=kill@{number}")
            patch.setenv(GATE, str(self._gate))
            self._region.restart(AGENT)

    def die_and_live(self) -> None:
        """It ends by its own hand, and is started again."""
        process = self._region.processes[AGENT]
        self._gate.touch()
        wait_until(lambda: not process.alive, f"{AGENT} dies at its place")
        assert process.exit_code == -signal.SIGKILL
        assert not self._gate.exists()
        self._region.restart(AGENT)


@pytest.fixture
def armed(region: Region, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Armed:
    return Armed(region, tmp_path / "gate", monkeypatch)


def domains(region: Region) -> list[DomainLog]:
    return [read_domain_log(domain_log_path(region.paths.hosts, host)) for host in region.hosts]


def times(region: Region, what: Callable[[DomainLog], object], uuid: str) -> int:
    """How often a machine was spawned or destroyed, on all hosts together."""
    counts = [what(log) for log in domains(region)]
    return sum(count.get(uuid, 0) for count in counts if isinstance(count, dict))


def row_says_that_it_runs(region: Region, uuid: str) -> bool:
    """The row names the host where it is, and its power state, and no task."""
    with store_of(region, "c1") as store:
        row = store.fetch(INSTANCES, [(uuid,)])[(uuid,)]
    there = [host for host, log in zip(region.hosts, domains(region), strict=True) if uuid in log.running]
    return [row.host] == there and row.power_state == POWER_RUNNING and row.task_state is None


def test_every_place_of_an_agent_is_tried() -> None:
    of_agents = [place for place in places() if place.startswith(OF_AGENTS)]
    assert sorted([*COMMAND, *REPORT, *APPEND, *REPLACE]) == sorted(of_agents)


@pytest.mark.parametrize(("place", "number"), tried())
def test_killed_in_a_spawn(region: Region, armed: Armed, place: str, number: int) -> None:
    armed.start(place, number)

    def die(booter: Booter) -> None:
        armed.die_and_live()

    run = boot_while(region, SERVERS, die, in_flight=2)
    assert_all_active(run)
    for server in run.boots:
        wait_until(lambda uuid=server.uuid: row_says_that_it_runs(region, uuid), "the row tells the truth")
        assert times(region, lambda log: log.spawns, server.uuid) == 1
        assert times(region, lambda log: log.destroys, server.uuid) == 0


@pytest.mark.parametrize(("place", "number"), tried())
def test_killed_in_a_destroy(region: Region, armed: Armed, place: str, number: int) -> None:
    run = boot(region, SERVERS)
    assert_all_active(run)
    uuids = [server.uuid for server in run.boots]
    armed.start(place, number)
    deleting = gevent.spawn(delete_all, region, uuids)
    armed.die_and_live()
    deleting.get(timeout=60)

    def gone() -> bool:
        return not any(log.running & set(uuids) for log in domains(region))

    wait_until(gone, "every machine is gone", found=lambda: domains(region))
    for uuid in uuids:
        assert times(region, lambda log: log.spawns, uuid) == 1
        assert times(region, lambda log: log.destroys, uuid) == 1
    with store_of(region, "c1") as store:
        wait_until(
            lambda: all(
                row.vm_state == "deleted" for row in store.fetch(INSTANCES, [(uuid,) for uuid in uuids]).values()
            ),
            "the rows tell the truth",
        )


def test_after_all_of_this_the_audit_finds_nothing(region: Region) -> None:
    """No claim without a server, no server without its claim; machines and rows agree."""
    assert_audit_holds(region)


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    built = Cell(tmp_path)
    yield built
    built.close()


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("place", REPLACE)
def test_killed_while_it_writes_a_journal_anew(cell: Cell, place: str, number: int) -> None:
    limits = {"compact_bytes_min": 4096}
    conductor = cell.conductors[0]
    agent = cell.start_agent(environment={ENVIRONMENT: f"{place}=kill@{number}"}, **limits)
    uuids = [fresh() for _ in range(60)]

    def spawn(uuid: str) -> None:
        """Until its result has come, as a task does."""
        request = spawn_request(make_order(uuid))
        while not conductor.results(uuid):
            try:
                conductor.link().call(SPAWN, request, timeout_ms=300)
            except (BusError, LookupError):
                pass
            gevent.sleep(0.02)

    spawning = gevent.spawn(Pool(8).map, spawn, uuids)
    eventually("it dies at its place", lambda: agent.poll() is not None)
    assert agent.returncode == -signal.SIGKILL
    conductor.attached.clear()
    cell.start_agent(**limits)
    spawning.get(timeout=60)
    assert cell.domains("node1").spawns == dict.fromkeys(uuids, 1)
    assert [request.in_doubt for request in conductor.begins[2:]] == [False, False], "its records are whole"
    eventually("what runs is reported", lambda: all(conductor.observations(uuid) for uuid in uuids))
