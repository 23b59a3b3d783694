"""A real agent process and the conductors that a test plays for it, over the real bus with CURVE."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import msgspec
import zmq

from tests.orders import make_instance
from zcompute.bus import Ack, Endpoint, Identity, KeyEntry, Keyring, Link, NotOwner, Report, register_error
from zcompute.compute.virt.fake_log import domain_log_path, read_domain_log
from zcompute.objects.command import CommandReply, Order, SpawnRequest
from zcompute.objects.errors import SERVICE_ERRORS, EpochRefused
from zcompute.objects.messages.cluster import Empty, HostEpoch, MapReply
from zcompute.objects.messages.hosts import (
    Grant,
    HostAttachRequest,
    HostBeat,
    HostBeginReply,
    HostBeginRequest,
    HostGrantsReply,
    HostGrantsRequest,
)
from zcompute.objects.methods import (
    HOST_ATTACH,
    HOST_BEAT,
    HOST_BEGIN,
    HOST_GRANTS,
    MAP_GET,
    TOPIC_EPOCHS,
    TOPIC_MAP,
    TOPIC_MAP_DELTAS,
)
from zcompute.objects.partition import PARTITIONS, ConductorInfo, PartitionMap, map_delta, partition_of
from zcompute.objects.report import (
    VERDICT_APPLIED,
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
import json, signal, sys
import gevent
from zcompute.cli.exits import CommandError
from zcompute.cli.services import run
from zcompute.compute.service import ComputeService
from zcompute.compute.settings import Settings
from zcompute.config import load

limits = Settings(**json.loads(sys.argv[3]))
gevent.signal_handler(signal.SIGUSR1, lambda: open(sys.argv[2], "w").write("\\n".join(sys.modules)))
try:
    run("compute", load(sys.argv[1]), lambda config: ComputeService(config, settings=limits))
except CommandError as error:
    error.show()
    sys.exit(error.exit_code)
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
    primary_epochs: list[int] = field(default_factory=list)
    granted: dict[str, list[Grant]] = field(default_factory=dict)
    grants_rows: int = 2
    asked: list[HostGrantsRequest] = field(default_factory=list)
    verdict: Callable[[ReportBody], str | None] = lambda _: VERDICT_APPLIED

    def listen(self) -> None:
        self.endpoint.serve(MAP_GET, self.map_get)
        self.endpoint.serve(HOST_BEGIN, self.begin)
        self.endpoint.serve(HOST_ATTACH, self.attach)
        self.endpoint.serve(HOST_BEAT, self.beat)
        self.endpoint.serve(HOST_GRANTS, self.grants)
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
        self.supersede(name)
        reply = HostBeginReply(agent_epoch=self.epochs[name])
        if request.in_doubt and reply.agent_epoch > 1:
            reply.owner_epochs = self.primary_epochs or self.cell_map.epochs
        return reply

    def supersede(self, name: str) -> None:
        """Links of older agents do not speak for the host any more, and are told so."""
        for link, epochs in self.attached.items():
            if epochs.get(name, self.epochs[name]) < self.epochs[name]:
                self.attached[link] = {host: epoch for host, epoch in epochs.items() if host != name}
                news = HostEpoch(host=name, agent_epoch=self.epochs[name])
                if link.up:
                    link.event(TOPIC_EPOCHS, name, self.epochs[name], msgspec.msgpack.encode(news))

    def grants(self, request: HostGrantsRequest, context: Any) -> HostGrantsReply:
        """A page of ``granted``, of at most ``grants_rows``."""
        self.asked.append(request)
        found = [grant for grant in self.granted.get(request.host, []) if grant.instance_uuid > request.after]
        page = sorted(found, key=lambda grant: grant.instance_uuid)[: self.grants_rows]
        epochs = {partition: self.cell_map.epochs[partition] for partition in request.partitions}
        more = page[-1].instance_uuid if len(page) < len(found) else ""
        return HostGrantsReply(grants=page, owner_epochs=epochs, after=more)

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
        self.keys = {name: zmq.curve_keypair() for name in ("k1", "k2", "agent", "other")}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.conductors = [self._conductor("k1"), self._conductor("k2")]
        self.publish(["k1"] * PARTITIONS, version=1)

    def _conductor(self, name: str) -> Conductor:
        public, secret = (key.decode() for key in self.keys[name])
        entries = [
            KeyEntry(key, self.keys[key][0].decode(), "compute", CELL, frozenset(HOSTS)) for key in ("agent", "other")
        ]
        identity = Identity(role="conductor", cell=CELL, service_id=name, public_key=public, secret_key=secret)
        conductor = Conductor(name, Endpoint(identity, keyring=Keyring(entries)), public_key=public)
        conductor.listen()
        return conductor

    def publish(self, owners: list[str], version: int) -> None:
        """A new map at both conductors."""
        cell_map = self._map(owners, version)
        for conductor in self.conductors:
            conductor.cell_map = cell_map
            conductor.endpoint.publish(TOPIC_MAP, CELL, version, msgspec.msgpack.encode(cell_map))

    def publish_delta(self, base: PartitionMap, owners: list[str], version: int) -> None:
        """The same, told by what is new since ``base``."""
        cell_map = self._map(owners, version)
        delta = map_delta(base, cell_map)
        assert delta is not None
        for conductor in self.conductors:
            conductor.cell_map = cell_map
            conductor.endpoint.publish(TOPIC_MAP_DELTAS, CELL, version, delta)

    def _map(self, owners: list[str], version: int) -> PartitionMap:
        infos = {
            c.service_id: ConductorInfo(
                service_id=c.service_id, incarnation="1", address=c.address, public_key=c.public_key
            )
            for c in self.conductors
        }
        return PartitionMap(cell=CELL, version=version, owners=owners, epochs=[version] * PARTITIONS, conductors=infos)

    def start_agent(
        self,
        build_ms: int = 0,
        beat_ms: int = 100,
        state: str = "state",
        key: str = "agent",
        environment: Mapping[str, str] | None = None,
        prepared: Callable[[], None] | None = None,
        **limits: int,
    ) -> subprocess.Popen[bytes]:
        """An agent of these hosts; one with another ``state`` is a clone of it. ``limits`` are fields of Settings, and
        ``prepared`` runs in its process before it begins."""
        public, secret = (key.decode() for key in self.keys[key])
        key_file = self.directory / f"{key}.key"
        key_file.write_text(f"public_key = '{public}'\nsecret_key = '{secret}'\n")
        key_file.chmod(0o600)
        first = self.conductors[0]
        hosts = "\n".join(f"[[compute.hosts]]\nname = '{name}'" for name in HOSTS)
        config = self.directory / f"{state}.toml"
        config.write_text(
            f"""
[service]
id = "{key}1"
cell = "{CELL}"
state_dir = "{self.directory}/{state}"
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
                [sys.executable, "-c", AGENT, str(config), str(self.directory / "modules"), json.dumps(limits)],
                stderr=log,
                stdout=log,
                env={**os.environ, **(environment or {})},
                preexec_fn=prepared,
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


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def spawn_request(order: Order) -> SpawnRequest:
    """The order with its instance, as a conductor sends them."""
    return SpawnRequest(order=order, instance=make_instance(order.instance_uuid))


def call(link: Link, method: Any, request: Any) -> CommandReply:
    reply: CommandReply = link.call(method, request, timeout_ms=5000)
    return reply
