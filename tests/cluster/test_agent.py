"""A real agent process against conductors that the test plays, over the real bus with CURVE."""

import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import msgspec
import psutil
import pytest
import zmq
from gevent.pool import Pool

from zcompute.bus import Ack, BusError, Endpoint, Identity, KeyEntry, Keyring, Link, NotOwner, Report, register_error
from zcompute.compute.virt.fake_log import DomainLine, domain_log_path, read_domain_log
from zcompute.objects.command import AdoptRequest, CommandReply, DestroyRequest, ForgetRequest, Order, SpawnRequest
from zcompute.objects.errors import SERVICE_ERRORS, CommandRefused, EpochRefused, HostNotFound
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import POWER_RUNNING, Instance, ServerSpec
from zcompute.objects.methods import (
    ADOPT,
    DESTROY,
    FORGET,
    HOST_ATTACH,
    HOST_BEAT,
    HOST_BEGIN,
    MAP_GET,
    SPAWN,
    TOPIC_MAP,
    Empty,
    HostAttachRequest,
    HostBeat,
    HostBeginReply,
    HostBeginRequest,
    MapReply,
)
from zcompute.objects.partition import PARTITIONS, ConductorInfo, PartitionMap, partition_of
from zcompute.objects.report import (
    OUTCOME_DONE,
    OUTCOME_FAILED,
    VERDICT_APPLIED,
    VERDICT_NOT_OWNER,
    VERDICT_NOT_YET,
    Observation,
    ReportBody,
    StepResult,
)

CELL = "c1"
HOSTS = ("node1", "node2")
WAIT_S = 15.0

AGENT = """
from gevent import monkey
monkey.patch_all()
import signal, sys
import gevent
from gevent.event import Event
from zcompute import log
from zcompute.compute.service import ComputeService
from zcompute.config import load

config = load(sys.argv[1])
log.setup(config.log, config.service.id)
ended = Event()
gevent.signal_handler(signal.SIGTERM, ended.set)
gevent.signal_handler(signal.SIGUSR1, lambda: open(sys.argv[2], "w").write("\\n".join(sys.modules)))
service = ComputeService(config)
service.start()
ended.wait()
service.stop()
"""

for error in SERVICE_ERRORS:
    register_error(error)

_BODY: msgspec.msgpack.Decoder[ReportBody] = msgspec.msgpack.Decoder(ReportBody)


def eventually(what: str, holds: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Wait for a condition; fails by name."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        gevent.sleep(0.01)


@dataclass
class Got:
    """A report that a conductor got."""

    epochs: dict[str, int]
    seq: int
    body: ReportBody


@dataclass(eq=False)
class Conductor:
    """Plays a conductor: gives epochs, collects reports, answers them with ``verdict``."""

    service_id: str
    endpoint: Endpoint
    address: str = ""
    public_key: str = ""
    cell_map: PartitionMap = field(default_factory=lambda: PartitionMap(cell=CELL))
    epochs: dict[str, int] = field(default_factory=dict)
    attached: dict[Link, dict[str, int]] = field(default_factory=dict)
    got: list[Got] = field(default_factory=list)
    beats: list[str] = field(default_factory=list)
    begins: list[HostBeginRequest] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    verdict: Callable[[ReportBody], str | None] = lambda _: VERDICT_APPLIED

    def listen(self) -> None:
        self.endpoint.serve(MAP_GET, self.map_get)
        self.endpoint.serve(HOST_BEGIN, self.begin)
        self.endpoint.serve(HOST_ATTACH, self.attach)
        self.endpoint.serve(HOST_BEAT, self.beat)
        self.endpoint.on_reports(self.reports)
        self.address = self.endpoint.bind("tcp://127.0.0.1:0")

    def map_get(self, request: Empty, context: Any) -> MapReply:
        self.calls.append("map_get")
        return MapReply(map=self.cell_map)

    def begin(self, request: HostBeginRequest, context: Any) -> HostBeginReply:
        self.calls.append("begin")
        name = request.inventory.name
        if self.cell_map.owner_of(name) != self.service_id:
            raise NotOwner("not here", partition=partition_of(name), map_version=self.cell_map.version)
        self.begins.append(request)
        self.epochs[name] = self.epochs.get(name, 0) + 1
        return HostBeginReply(agent_epoch=self.epochs[name])

    def attach(self, request: HostAttachRequest, context: Any) -> Empty:
        self.calls.append("attach")
        for host, epoch in request.epochs.items():
            if epoch < self.epochs.get(host, 0):
                raise EpochRefused("superseded", host=host, epoch=self.epochs[host], verdict="superseded")
        self.attached[context.link] = request.epochs
        return Empty()

    def beat(self, request: HostBeat, context: Any) -> None:
        self.beats += request.hosts

    def reports(self, link: Link, reports: list[Report]) -> None:
        acks = []
        for report in reports:
            body = _BODY.decode(report.payload)
            self.got.append(Got(dict(self.attached.get(link, {})), report.seq, body))
            verdict = self.verdict(body)
            if verdict is not None:
                acks.append(Ack(report.key, report.seq, verdict))
        if acks:
            link.ack(acks)

    def link(self) -> Link:
        """The agent's link, attached for both hosts."""
        for link in self.endpoint.links(role="compute"):
            if self.attached.get(link, {}).keys() >= set(HOSTS):
                return link
        raise LookupError

    def ready(self) -> Link:
        def attached() -> Link | None:
            try:
                return self.link()
            except LookupError:
                return None

        link: Link = eventually("the agent is attached", attached)
        return link

    def results(self, instance_uuid: str | None = None) -> list[StepResult]:
        bodies = [got.body for got in self.got]
        return [body for body in bodies if isinstance(body, StepResult) and instance_uuid in (None, body.instance_uuid)]

    def observations(self, instance_uuid: str) -> list[Observation]:
        bodies = [got.body for got in self.got]
        return [body for body in bodies if isinstance(body, Observation) and body.instance_uuid == instance_uuid]


class Cell:
    """Conductors that share keys and a map, and one agent."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.keys = {name: zmq.curve_keypair() for name in ("k1", "k2", "agent")}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.conductors = [self._conductor("k1"), self._conductor("k2")]
        self.publish(["k1"] * PARTITIONS, version=1)

    def _conductor(self, name: str) -> Conductor:
        public, secret = (key.decode() for key in self.keys[name])
        entry = KeyEntry("agent", self.keys["agent"][0].decode(), "compute", CELL, frozenset(HOSTS))
        identity = Identity(role="conductor", cell=CELL, service_id=name, public_key=public, secret_key=secret)
        conductor = Conductor(name, Endpoint(identity, keyring=Keyring([entry])), public_key=public)
        conductor.listen()
        return conductor

    def publish(self, owners: list[str], version: int) -> None:
        """A new map at both conductors."""
        infos = {
            c.service_id: ConductorInfo(
                service_id=c.service_id, incarnation="1", address=c.address, public_key=c.public_key
            )
            for c in self.conductors
        }
        cell_map = PartitionMap(
            cell=CELL, version=version, owners=owners, epochs=[version] * PARTITIONS, conductors=infos
        )
        for conductor in self.conductors:
            conductor.cell_map = cell_map
            conductor.endpoint.publish(TOPIC_MAP, CELL, version, msgspec.msgpack.encode(cell_map))

    def start_agent(self, build_ms: int = 0, beat_ms: int = 100) -> subprocess.Popen[bytes]:
        public, secret = (key.decode() for key in self.keys["agent"])
        key_file = self.directory / "agent.key"
        key_file.write_text(f"public_key = '{public}'\nsecret_key = '{secret}'\n")
        key_file.chmod(0o600)
        first = self.conductors[0]
        hosts = "\n".join(f"[[compute.hosts]]\nname = '{name}'" for name in HOSTS)
        config = self.directory / "agent.toml"
        config.write_text(
            f"""
[service]
id = "agent1"
cell = "{CELL}"
state_dir = "{self.directory}/state"
[bus]
key_file = "{key_file}"
[[bus.conductors]]
id = "{first.service_id}"
address = "{first.address}"
public_key = '{first.public_key}'
[compute]
fake_dir = "{self.directory}/hosts"
build_ms = {build_ms}
beat_ms = {beat_ms}
{hosts}
"""
        )
        with (self.directory / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", AGENT, str(config), str(self.directory / "modules")],
                stderr=log,
                stdout=log,
                cwd=Path(__file__).parents[2],
            )
        self.processes.append(process)
        return process

    def log_text(self) -> str:
        return (self.directory / "agent.log").read_text()

    def domains(self, host: str) -> Any:
        return read_domain_log(domain_log_path(self.directory / "hosts", host))

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for conductor in self.conductors:
            conductor.endpoint.close()


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    built = Cell(tmp_path)
    try:
        yield built
    finally:
        built.close()
        sys.stderr.write(built.log_text() if (tmp_path / "agent.log").exists() else "")


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def make_order(instance_uuid: str, **changes: Any) -> Order:
    values: dict[str, Any] = {
        "host": "node1",
        "partition": partition_of(instance_uuid),
        "owner_epoch": 1,
        "generation": 1,
        "task_id": "t1",
        "step": "spawn",
        "attempt": 1,
        "reporter_generation": 1,
    }
    return Order(instance_uuid=instance_uuid, **(values | changes))


def spawn_request(order: Order) -> SpawnRequest:
    instance = Instance(
        uuid=order.instance_uuid,
        project_id="p",
        user_id="u",
        name="server",
        flavor=Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1),
        spec=ServerSpec(),
    )
    return SpawnRequest(order=order, instance=instance)


def call(link: Link, method: Any, request: Any) -> CommandReply:
    reply: CommandReply = link.call(method, request, timeout_ms=5000)
    return reply


def fresh() -> str:
    return str(uuid.uuid4())


def test_a_spawn_and_a_destroy_come_back_as_results_and_observations(cell: Cell) -> None:
    conductor = cell.conductors[0]
    cell.start_agent()
    link = conductor.ready()
    one = fresh()

    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("an observation came", lambda: conductor.observations(one))
    (result,) = conductor.results(one)
    assert (result.outcome, result.power_state, result.host) == (OUTCOME_DONE, POWER_RUNNING, "node1")
    (seen,) = conductor.observations(one)
    assert (seen.generation, seen.power_state, seen.gone) == (1, POWER_RUNNING, False)
    assert cell.domains("node1").running == {one}

    order = make_order(one, generation=2, task_id="t2", step="destroy", reporter_generation=0)
    call(link, DESTROY, DestroyRequest(order=order))
    eventually("the destroy's result came", lambda: len(conductor.results(one)) == 2)
    assert conductor.results(one)[1].task_id == "t2"
    assert cell.domains("node1").running == frozenset()
    call(link, FORGET, ForgetRequest(order=order))


def test_a_spawn_that_comes_twice_spawns_once_and_answers_twice(cell: Cell) -> None:
    conductor = cell.conductors[0]
    cell.start_agent(build_ms=100)
    link = conductor.ready()
    one = fresh()
    request = spawn_request(make_order(one))

    for _ in range(3):
        call(link, SPAWN, request)
    eventually("a result came", lambda: conductor.results(one))
    call(link, SPAWN, request)
    eventually("the result came again", lambda: len(conductor.results(one)) == 2)
    assert {result.outcome for result in conductor.results(one)} == {OUTCOME_DONE}
    assert cell.domains("node1").spawns == {one: 1}


def test_orders_of_an_older_owner_or_generation_are_refused(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    link = conductor.ready()
    one, two = fresh(), fresh()
    call(link, SPAWN, spawn_request(make_order(one, generation=5, owner_epoch=7)))

    with pytest.raises(CommandRefused) as refused:
        call(link, DESTROY, DestroyRequest(order=make_order(one, generation=6, owner_epoch=6)))
    assert refused.value.details["reason"] == "stale_owner"
    with pytest.raises(CommandRefused) as refused:
        call(link, DESTROY, DestroyRequest(order=make_order(one, generation=4, owner_epoch=7)))
    assert refused.value.details["reason"] == "stale_generation"
    with pytest.raises(HostNotFound):
        call(link, SPAWN, spawn_request(make_order(two, host="elsewhere")))

    cell.publish(["k1"] * PARTITIONS, version=9)
    eventually("the agent has the new map", lambda: "version=9" in cell.log_text())
    with pytest.raises(CommandRefused) as refused:
        call(link, SPAWN, spawn_request(make_order(two, owner_epoch=8)))
    assert refused.value.details["reason"] == "stale_owner"

    eventually("the first is done", lambda: conductor.results(one))
    kill(agent)
    conductor.attached.clear()
    cell.start_agent()
    link = conductor.ready()
    with pytest.raises(CommandRefused) as refused:
        call(link, DESTROY, DestroyRequest(order=make_order(one, generation=4, owner_epoch=9)))
    assert refused.value.details["reason"] == "stale_generation"
    assert cell.domains("node1").running == {one}


def test_an_agent_killed_in_mid_build_spawns_once_when_the_command_comes_again(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent(build_ms=60_000)
    link = conductor.ready()
    one = fresh()
    request = spawn_request(make_order(one))
    call(link, SPAWN, request)
    kill(agent)
    assert cell.domains("node1").spawns == {}

    conductor.attached.clear()
    cell.start_agent()
    link = conductor.ready()
    assert conductor.epochs == {"node1": 2, "node2": 2}
    call(link, SPAWN, request)
    eventually("a result came", lambda: conductor.results(one))
    call(link, SPAWN, request)
    eventually("the result came again", lambda: len(conductor.results(one)) == 2)
    assert cell.domains("node1").spawns == {one: 1}


def test_an_agent_killed_after_the_domain_appeared_finds_it_done(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent(build_ms=60_000)
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    kill(agent)
    line = msgspec.json.encode(DomainLine(op="spawn", uuid=one)) + b"\n"
    with domain_log_path(cell.directory / "hosts", "node1").open("ab") as file:
        file.write(line)

    conductor.attached.clear()
    cell.start_agent()
    conductor.ready()
    eventually("the result came", lambda: conductor.results(one))
    eventually("an observation came", lambda: conductor.observations(one))
    assert conductor.results(one)[0].outcome == OUTCOME_DONE
    assert conductor.observations(one)[0].generation == 1
    assert cell.domains("node1").spawns == {one: 1}


def test_results_outlive_kill_nine_and_sequences_rise(cell: Cell) -> None:
    conductor = cell.conductors[0]
    conductor.verdict = lambda _: None
    agent = cell.start_agent()
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the result came", lambda: conductor.results(one))
    before = max(got.seq for got in conductor.got)
    kill(agent)

    conductor.got.clear()
    conductor.attached.clear()
    conductor.verdict = lambda _: VERDICT_APPLIED
    cell.start_agent()
    eventually("the result came again", lambda: conductor.results(one))
    eventually("a full state came", lambda: conductor.observations(one))
    assert {got.epochs["node1"] for got in conductor.got} == {2}
    newest = max(got.seq for got in conductor.got if isinstance(got.body, Observation))
    assert newest > before


def test_a_new_epoch_reports_every_granted_instance(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    link = conductor.ready()
    uuids = [fresh() for _ in range(20)]
    for number, one in enumerate(uuids):
        call(link, SPAWN, spawn_request(make_order(one, host=HOSTS[number % 2])))
    eventually("all are reported", lambda: all(conductor.observations(one) for one in uuids))
    kill(agent)
    conductor.got.clear()
    conductor.attached.clear()
    cell.start_agent()
    eventually("all are reported again", lambda: all(conductor.observations(one) for one in uuids))
    assert conductor.results() == []


def test_a_report_without_its_owner_goes_to_the_new_one(cell: Cell) -> None:
    old, new = cell.conductors
    old.verdict = lambda _: VERDICT_NOT_OWNER
    cell.start_agent()
    link = old.ready()
    new.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the old owner turned it away twice", lambda: len(old.results(one)) > 1)
    assert new.results(one) == []
    cell.publish(["k2"] * PARTITIONS, version=2)
    eventually("the new owner has it", lambda: new.results(one))
    eventually("beats go to the new owner", lambda: {*HOSTS} <= {*new.beats})


def test_a_report_that_is_not_yet_wanted_comes_again(cell: Cell) -> None:
    conductor = cell.conductors[0]
    conductor.verdict = lambda body: VERDICT_NOT_YET if isinstance(body, Observation) else VERDICT_APPLIED
    cell.start_agent()
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the observation came twice", lambda: len(conductor.observations(one)) > 1)
    assert len(conductor.results(one)) == 1


def test_what_a_dead_owner_never_answered_goes_to_the_next(cell: Cell) -> None:
    old, new = cell.conductors
    old.verdict = lambda _: None
    cell.start_agent()
    link = old.ready()
    new.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the old owner has the result", lambda: old.results(one))
    old.endpoint.close()
    cell.publish(["k2"] * PARTITIONS, version=2)
    eventually("the new owner has it", lambda: new.results(one))


def test_an_adopter_learns_what_is_here_and_takes_command(cell: Cell) -> None:
    conductor = cell.conductors[0]
    cell.start_agent()
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the result came", lambda: conductor.results(one))

    reply = call(link, ADOPT, AdoptRequest(order=make_order(one, generation=2, step="adopt")))
    assert (reply.running, reply.power_state) == (True, POWER_RUNNING)
    assert (reply.last_task_id, reply.last_step, reply.last_attempt) == ("t1", "spawn", 1)
    assert reply.last_outcome == OUTCOME_DONE
    with pytest.raises(CommandRefused):
        call(link, SPAWN, spawn_request(make_order(one)))
    call(link, SPAWN, spawn_request(make_order(one, generation=2)))
    eventually("done again, without a spawn", lambda: len(conductor.results(one)) == 2)
    assert conductor.results(one)[1].generation == 2
    assert cell.domains("node1").spawns == {one: 1}
    nothing = call(link, ADOPT, AdoptRequest(order=make_order(fresh())))
    assert nothing == CommandReply()


def test_a_superseded_agent_falls_silent_for_that_host_only(cell: Cell) -> None:
    conductor = cell.conductors[0]
    cell.start_agent()
    link = conductor.ready()
    one, two = fresh(), fresh()
    conductor.epochs["node1"] += 1
    conductor.attached.clear()
    conductor.endpoint.close()
    again = cell._conductor("k1")
    again.epochs = conductor.epochs
    cell.conductors[0] = again
    cell.publish(["k1"] * PARTITIONS, version=3)
    link = eventually(
        "the other host is attached alone",
        lambda: next((link for link, epochs in again.attached.items() if [*epochs] == ["node2"]), None),
    )
    assert "ALARM" in cell.log_text()
    again.beats.clear()
    with pytest.raises(CommandRefused) as refused:
        call(link, SPAWN, spawn_request(make_order(one, owner_epoch=3)))
    assert refused.value.details["reason"] == "host_superseded"
    call(link, SPAWN, spawn_request(make_order(two, host="node2", owner_epoch=3)))
    eventually("the other host works", lambda: again.results(two))
    eventually("the other host beats", lambda: len(again.beats) > 2)
    assert {*again.beats} == {"node2"}


def test_a_build_asks_conductors_nothing(cell: Cell) -> None:
    conductor = cell.conductors[0]
    cell.start_agent(build_ms=300)
    link = conductor.ready()
    cell.conductors[1].ready()
    asked = [list(c.calls) for c in cell.conductors]
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the result came", lambda: conductor.results(one))
    assert [list(c.calls) for c in cell.conductors] == asked


def test_the_process_knows_no_database_and_listens_nowhere(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the result came", lambda: conductor.results(one))

    process = psutil.Process(agent.pid)
    assert [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
    agent.send_signal(signal.SIGUSR1)
    modules = cell.directory / "modules"
    eventually("the agent lists its modules", lambda: modules.exists() and modules.read_text())
    loaded = {name.split(".")[0] for name in modules.read_text().split("\n")}
    assert loaded.isdisjoint({"pymysql", "sqlalchemy", "sqlite3", "_sqlite3", "alembic", "MySQLdb"})
    ours = {name for name in modules.read_text().split("\n") if name.startswith("zcompute.")}
    assert not any(name.startswith(("zcompute.db", "zcompute.conductor", "zcompute.cells")) for name in ours)
    open_files = [file.path for file in process.open_files()]
    assert not any("mysql" in path or path.endswith(".db") for path in open_files)


def test_a_second_agent_on_the_state_directory_is_refused(cell: Cell) -> None:
    cell.start_agent()
    cell.conductors[0].ready()
    second = cell.start_agent()
    assert second.wait(WAIT_S) != 0
    assert "is in use by another agent" in cell.log_text()


def test_sigterm_ends_the_agent_and_the_next_one_carries_on(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent(build_ms=200)
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    agent.terminate()
    assert agent.wait(WAIT_S) == 0
    conductor.attached.clear()
    cell.start_agent()
    conductor.ready()
    eventually("the result came", lambda: conductor.results(one))
    assert conductor.results(one)[0].outcome != OUTCOME_FAILED
    assert cell.domains("node1").spawns == {one: 1}


def test_an_agent_killed_again_and_again_loses_and_repeats_nothing(cell: Cell) -> None:
    """Builds and deletes, each commanded until its result comes, while the agent dies by SIGKILL six times."""
    conductor = cell.conductors[0]
    agent = cell.start_agent(build_ms=20)
    dice = random.Random(7)
    uuids = [fresh() for _ in range(60)]
    host_of = {one: dice.choice(HOSTS) for one in uuids}
    deleted = set(uuids[::2])

    def commanded(method: Any, request: Any) -> None:
        """Command until the result of this very order has come, as a task does."""
        order = request.order
        wanted = (order.generation, order.task_id, order.step, order.attempt)
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for result in conductor.results(order.instance_uuid):
                if (result.generation, result.task_id, result.step, result.attempt) == wanted:
                    assert result.outcome == OUTCOME_DONE
                    return
            try:
                conductor.link().call(method, request, timeout_ms=300)
            except (BusError, LookupError):
                pass
            gevent.sleep(0.05)
        raise AssertionError(f"no result of {order}")

    def walk(one: str) -> None:
        commanded(SPAWN, spawn_request(make_order(one, host=host_of[one])))
        if one in deleted:
            order = make_order(one, host=host_of[one], generation=2, task_id="t2", step="d", reporter_generation=0)
            commanded(DESTROY, DestroyRequest(order=order))

    pool = Pool(8)
    walks = [pool.spawn(walk, one) for one in uuids]
    for _ in range(6):
        conductor.ready()
        gevent.sleep(dice.uniform(0.02, 0.15))
        kill(agent)
        conductor.attached.clear()
        agent = cell.start_agent(build_ms=20)
    gevent.joinall(walks, timeout=60, raise_error=True)
    assert all(walk.successful() for walk in walks)

    logs = [cell.domains(host) for host in HOSTS]
    assert {one: count for log in logs for one, count in log.spawns.items()} == dict.fromkeys(uuids, 1)
    assert {one: count for log in logs for one, count in log.destroys.items()} == dict.fromkeys(deleted, 1)
    assert frozenset().union(*(log.running for log in logs)) == set(uuids) - deleted
    eventually("what runs is reported", lambda: all(conductor.observations(one) for one in set(uuids) - deleted))
