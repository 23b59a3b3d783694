"""The task engine and the reports' path on a real ledger over the fake database, with agents, scheduler and router
played by this file."""

from collections import Counter
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import msgspec

from tests.unit.conductor.cell.root_desk import RootDesk
from tests.unit.conductor.ledger_fake import FakeDatabase
from tests.unit.conductor.ledger_world import World, wait_for
from tests.unit.conductor.tasks.samples import build_request
from zcompute.bus import Limits, Report
from zcompute.bus.errors import DeadlineExceeded, InvalidRequest, LinkDown, NotOwner, UnsupportedVersion
from zcompute.bus.lanes import ReceiverLanes
from zcompute.conductor.cell.actions import Actions
from zcompute.conductor.cell.hosts import Attachments
from zcompute.conductor.cell.instances import Instances
from zcompute.conductor.cell.placement_service import Placements
from zcompute.conductor.cell.reports import Reports
from zcompute.conductor.cell.resizing import Raising
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.commands import Commands
from zcompute.conductor.forwarding import Forwarding
from zcompute.conductor.notices import tell_of_rows
from zcompute.conductor.tasks.engine import TaskEngine
from zcompute.conductor.tasks.run import TaskEnv
from zcompute.conductor.tasks.settings import TaskSettings
from zcompute.db.tables import INSTANCES, TASKS
from zcompute.objects.command import CommandReply
from zcompute.objects.errors import CommandRefused
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.hosts import ClaimReply, SelectReply
from zcompute.objects.messages.instances import BuildRequestMessage, InstanceActionRequest, InstanceDeleteRequest
from zcompute.objects.partition import PartitionMap, partition_of
from zcompute.objects.report import OUTCOME_DONE, OUTCOME_FAILED, StepResult

QUICK = TaskSettings(
    retry_ms_min=1,
    retry_ms_max=10,
    resend_ms=30,
    link_wait_ms_max=40,
    command_ms_max=200,
    revival_s_max=0.3,
    act_link_wait_ms_max=40,
)


ANSWERS = {"prepare": {"address": "fake://there"}, "snapshot": {"size_bytes": "5", "checksum": "c5"}}


class Agent:
    """One host's agent and the link to it. ``silent``: commands are taken, no result comes; ``mute``: no answer;
    ``old``: of a release that knows no steps. ``verbs`` are those it was told, ``spawned_of`` the images."""

    def __init__(self, world: "CellWorld", host: str) -> None:
        self.world = world
        self.host = host
        self.up = True
        self.name = f"link-{host}"
        self.peer = SimpleNamespace(role="compute", cell="c1", service_id=f"agent-{host}", hosts={host})
        self.domains: set[str] = set()
        self.commands: list[tuple[str, Any]] = []
        self.generations: dict[str, int] = {}
        self.silent = self.mute = self.broken = self.old = False
        self.verbs: list[str] = []
        self.cannot: set[str] = set()
        self.unknown: set[str] = set()  # verbs of a later release
        self.running: set[str] = set()
        self.images = 0
        self.spawned_of: list[str] = []
        self.awaited: set[str] = set()
        self.acks: list[Any] = []
        self.lanes = ReceiverLanes(Limits(lane_credit=2))
        self.admit_report, self.settle_report = self.lanes.admit, self.lanes.settle
        self._seq = 0

    def call(self, method: Any, request: Any, *, timeout_ms: int) -> Any:
        order = request.order
        if self.mute:
            raise DeadlineExceeded("no answer")
        self.commands.append((method.name, order))
        if order.generation < self.generations.get(order.instance_uuid, 0):
            raise CommandRefused("stale", reason="stale_generation")
        self.generations[order.instance_uuid] = order.generation
        if method.name == "step":
            if self.old:
                raise UnsupportedVersion("no such method")
            if request.verb in self.unknown:
                raise InvalidRequest(f"expected another verb, found {request.verb}", field="verb")
            self.verbs.append(request.verb)
        if method.name == "spawn":
            self.spawned_of.append(request.instance.spec.image_ref)
        verb = request.verb if method.name == "step" else method.name
        if method.name in ("spawn", "destroy", "step") and not self.silent:
            self.finish(verb, order)
        return CommandReply(running=order.instance_uuid in self.domains)

    def finish(self, verb: str, order: Any) -> None:
        broken = self.broken or verb in self.cannot
        if not broken:
            self._do(verb, order.instance_uuid)
        self.report(
            StepResult(
                instance_uuid=order.instance_uuid, host=self.host, generation=order.generation, task_id=order.task_id,
                step=order.step, attempt=order.attempt, outcome=OUTCOME_FAILED if broken else OUTCOME_DONE,
                power_state=1, message="broken" if broken else "",
                answer={} if broken else ANSWERS.get(verb, {}),
            )
        )  # fmt: skip

    def _do(self, verb: str, uuid: str) -> None:
        if verb in ("spawn", "activate"):
            self.domains.add(uuid)
            self.running.add(uuid)
        elif verb in ("destroy", "migrate"):
            self.domains.discard(uuid)
            self.running.discard(uuid)
            self.awaited.discard(uuid)
            if verb == "migrate":
                for there in [agent for agent in self.world.agents.values() if uuid in agent.awaited]:
                    there._do("activate", uuid)
        elif verb == "prepare":
            self.awaited.add(uuid)
        elif verb == "snapshot":
            self.images += 1
        elif verb in ("stop", "send", "pause", "suspend"):
            self.running.discard(uuid)
        else:
            self.running.add(uuid)

    def report(self, body: Any) -> None:
        self._seq += 1
        self.world.reports.received(self, [Report(body.instance_uuid, self._seq, msgspec.msgpack.encode(body))])

    @property
    def reports_unanswered(self) -> int:
        return self._seq - len(self.acks)

    def ack(self, acks: list[Any]) -> None:
        self.acks += acks

    @property
    def verdicts(self) -> list[str]:
        return [ack.verdict for ack in self.acks]

    def named(self, name: str) -> list[Any]:
        return [order for command, order in self.commands if command == name]


class NoRelay:
    """There is no other conductor."""

    def report(self, *_: Any) -> None:
        raise NotOwner("nobody else owns anything")


class CellWorld:
    """``claims`` are granted unless the host is in ``full``; ``hosts`` is what the scheduler knows, best first."""

    def __init__(
        self,
        *hosts: str,
        settings: TaskSettings = QUICK,
        database: FakeDatabase | None = None,
        ledger_world: Any = None,
        reclaims: bool = False,
    ) -> None:
        self.ledger_world = ledger_world or World(database=database)
        self.ledger = self.ledger_world.ledger
        self.database = self.ledger_world.database
        self.hosts = list(hosts)
        self.full: set[str] = set()
        self.forced: set[str] = set()
        self.silent_claims = 0
        self.silent_releases = False
        self.claims: dict[tuple[str, str, int], str] = {}
        self.calls: Counter[str] = Counter()
        self.selections: list[Any] = []
        self.owed: list[Any] = []
        self.commands = Commands(self.ledger)
        forwarding = Forwarding(self, self.ledger, "c1")
        self.map = PartitionMap(cell="c1")
        env: Any = SimpleNamespace(
            ledger=self.ledger, cell="c1", service_id="c1-conductor-1", router=self, forwarding=forwarding
        )
        self.engine = TaskEngine(
            TaskEnv("c1", self.ledger, self, self.commands, self, self._forced, self.owed.append, settings)
        )
        self.commands.on_attach(self.engine.host_attached)
        self.commands.on_forced_down(self.engine.host_forced_down)
        self.ledger.on_decided(tell_of_rows)
        self.attachments = Attachments()
        self.relay: Any = NoRelay()
        attached: Any = SimpleNamespace(attachments=self.attachments)
        self.reports = Reports(env, self.engine, attached, self.relay, settings)
        self.reports.start()
        self.outbox: Any = SimpleNamespace(owed=self.owed.append, check_room=lambda under_way: None)
        self.instances = Instances(env, self.engine, self.outbox, CellSettings(), settings, reclaims=reclaims)
        env.store = self.ledger_world.store
        self.placements = Placements(env, CellSettings())
        self.silent_reserves = 0
        self.root = RootDesk()
        raising = Raising(env, self.root, self.owed.append, CellSettings())  # type: ignore[arg-type]  # played here
        self.actions = Actions(env, self.engine, CellSettings(), settings, self._forced, raising, lambda _: None)
        self.agents = {host: Agent(self, host) for host in hosts}
        for agent in self.agents.values():
            self.attach(agent)

    def attach(self, agent: Agent) -> None:
        agent.up = True
        self.attachments.by_link[agent] = {agent.host: 1}
        self.commands.attach(agent.host, agent)

    def close(self) -> None:
        self.engine.stop()
        self.ledger_world.close()

    # the router and the scheduler

    def call(self, key: str, method: Any, request: Any, *, timeout_ms: int) -> Any:
        self.calls[f"group.{method.name}" if method.interface == "group" else method.name] += 1
        if method.interface == "group":
            return self._group(method.name, request)
        name = (request.instance_uuid, request.task_id, request.attempt)
        if method.name == "release":
            if self.silent_releases:
                raise DeadlineExceeded("silence")
            self.claims.pop(name, None)
            return Empty()
        if self.silent_claims:
            self.silent_claims -= 1
            self.claims[name] = request.host
            raise DeadlineExceeded("silence")
        if request.host in self.full:
            return ClaimReply(granted=False, reason="full")
        self.claims[name] = request.host
        return ClaimReply(granted=True)

    def _group(self, name: str, request: Any) -> Any:
        """The owner of the group's partition; ``silent_reserves`` times its answer is lost after the commit."""
        reply = getattr(self.placements, name)(request, self.context())
        if name == "reserve" and self.silent_reserves:
            self.silent_reserves -= 1
            raise DeadlineExceeded("silence")
        return reply

    def select(self, request: Any, *, timeout_ms: int, one_ms_max: int) -> SelectReply:
        self.selections.append(request)
        if not self.hosts:
            raise LinkDown("none is linked")
        left = [host for host in self.hosts if host not in request.ignore_hosts]
        left = [host for host in left if not request.only_hosts or host in request.only_hosts]
        return SelectReply(hosts=[left[: request.alternates + 1]], reasons={"RamFilter": 1})

    def _forced(self, hosts: Any) -> set[str]:
        return self.forced.intersection(hosts)

    # the client

    def context(self, role: str = "conductor", cell: str = "root") -> Any:
        return SimpleNamespace(
            peer=SimpleNamespace(role=role, cell=cell), remaining_ms=lambda: 2000, request_id="req-1", link=None
        )

    def build(self, **fields: Any) -> str:
        request = build_request(**fields)
        self.instances.build(BuildRequestMessage(build_request=request), self.context())
        return request.uuid

    def delete(self, uuid: str, **fields: Any) -> None:
        values = {"uuid": uuid, "project_id": "demo", "operation_id": "op-d"}
        self.instances.delete(InstanceDeleteRequest(**{**values, **fields}), self.context("api"))

    def act(self, uuid: str, action: str, **fields: Any) -> None:
        values = {"uuid": uuid, "project_id": "demo", "operation_id": f"op-{uuid4()}", "action": action}
        self.actions.act(InstanceActionRequest(**{**values, **fields}), self.context("api"))

    def put(self, uuid: str, **fields: Any) -> None:
        """Change the row, whatever its state allows."""
        self.ledger.commit(
            partition_of(uuid),
            [(INSTANCES, (uuid,))],
            lambda change: change.put(INSTANCES, msgspec.structs.replace(change.get(INSTANCES, (uuid,)), **fields)),
            timeout_ms=2000,
        )

    def instance(self, uuid: str) -> Any:
        return self.database.row(INSTANCES, (uuid,))

    def task(self, uuid: str) -> Any:
        row = self.instance(uuid)
        return None if row is None or row.task_id is None else self.database.row(TASKS, (row.task_id,))

    def wait_state(self, uuid: str, vm_state: str, task_state: str | None = None) -> Any:
        def reached() -> bool:
            row = self.instance(uuid)
            return row is not None and (row.vm_state, row.task_state) == (vm_state, task_state)

        wait_for(reached)
        return self.instance(uuid)

    def lose_and_regain(self, uuid: str, engine_stays: bool = False) -> None:
        """Another conductor takes the tasks over: this engine forgets everything and reads its rows."""
        self.engine.lose([partition_of(uuid)])
        row, task = self.instance(uuid), self.task(uuid)
        self.engine.gained([(row, task)])
