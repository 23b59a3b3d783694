"""What operators and administrators do in a simulated life: moves of servers, and hosts that are lost and return."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gevent

from tests.simulation.cell.clients import OPERATION_MS, Clients, uuid_of
from tests.simulation.cell.database import Server
from tests.simulation.cell.fleet import CELL, Agent
from tests.simulation.cell.hypervisor import Hypervisors
from tests.simulation.cell.kinds import ABORT, DELETE, LOST_HOST
from tests.simulation.cell.plan import Event
from tests.simulation.cell.root_quota import FLAVORS
from zcompute.bus import BusError, InvalidRequest
from zcompute.conductor.tasks.moves.plans import PLANS
from zcompute.db.tables import HOSTS, INSTANCES, TASKS
from zcompute.objects.actions import RESIZE, SHELVE
from zcompute.objects.command import StepArguments
from zcompute.objects.errors import (
    ActionInvalid,
    HostNotClean,
    HostNotFound,
    InstanceBusy,
    InstanceNotFound,
    OperationConflict,
    QuotaExceeded,
    ServiceError,
    TaskNotFound,
    TaskRefused,
)
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.messages.hosts import HostForceDownRequest
from zcompute.objects.messages.instances import InstanceActionRequest
from zcompute.objects.messages.tasks import TaskOrder
from zcompute.objects.methods import HOST_FORCE_DOWN, INSTANCE_ACTION, TASK_ABORT

TRIES_MAX = 30  # while a server is busy with something else
TRY_AGAIN_S = 0.08
NOTICED_S = 0.1  # a host is known to be off
CLEAN_AGAIN_S = 0.3
REFUSALS = (
    ActionInvalid, HostNotFound, InstanceNotFound, InvalidRequest, OperationConflict, QuotaExceeded, TaskNotFound,
    TaskRefused,
)  # fmt: skip


class Operators(Clients):
    """The part of a world that moves servers."""

    hypervisors: Hypervisors
    server: Server
    agents: dict[str, Agent]
    lost: set[str]  # hosts that an operator looks after

    def _ask(self, method: Any, request: Any, tries: int = TRIES_MAX) -> bool:
        """Until it is accepted (True), refused, or the server was busy too often."""
        while True:
            links = [] if self.root is None else self.root.links(role="conductor", cell=CELL)
            again_s = 0.02
            if links:
                try:
                    self.dice.choice(links).call(method, request, timeout_ms=OPERATION_MS)
                    return True
                except REFUSALS:
                    return False
                except InstanceBusy:
                    tries -= 1
                    if tries <= 0:
                        return False
                    again_s = TRY_AGAIN_S
                except HostNotClean:
                    again_s = CLEAN_AGAIN_S
                except (BusError, ServiceError):
                    pass
            gevent.sleep(again_s)

    def _asking(self, work: Callable[..., None], *arguments: Any) -> None:
        """In a greenlet of the root; the life is not at rest before its end."""

        def counted() -> None:
            try:
                work(*arguments)
            finally:
                self.asked -= 1

        self.asked += 1
        self.loop.spawn(self.root_process, counted)

    def _administer(self, uuid: str, action: str, peer_host: str = "") -> bool:
        """Ask for an action until it is accepted or refused."""
        self.acts += 1
        name = f"{action} {self.acts}"
        request = InstanceActionRequest(
            uuid=uuid, project_id="p", operation_id=name, action=action, administrator=True,
            arguments=StepArguments(
                peer_host=peer_host,
                flavor=self.dice.choice(FLAVORS) if action == RESIZE.key else None,
                image_ref=name if action == SHELVE.key else "",
            ),
        )  # fmt: skip
        if not self._ask(INSTANCE_ACTION, request):
            return False
        if action == SHELVE.key:
            self.images.begun(name)
        self.checker.seen[f"accepted {action}"] += 1
        self.checker.acted(uuid, name)
        return True

    # -- walks ------------------------------------------------------------------------------------------------------

    def _walk(self, event: Event) -> None:
        """A server goes through these actions (``who``), the next one as soon as the one before lets it."""
        if uuid_of(event.number) in self.checker.known_servers():
            self._asking(self._walk_through, event)

    def _walk_through(self, event: Event) -> None:
        uuid = uuid_of(event.number)
        for action in event.who.split(","):
            if action == DELETE:
                self.delete(event.number)
            elif action == ABORT:
                self._abort(uuid)
            elif not self._administer(uuid, action, event.other):
                return
            gevent.sleep(event.for_s)

    def _abort(self, uuid: str) -> None:
        """An operator ends the task that the server has now."""
        instance = self._instance(uuid)
        if instance is None or instance.task_id is None:
            return
        self.acts += 1
        order = TaskOrder(instance_uuid=uuid, task_id=instance.task_id, operation_id=f"abort {self.acts}")
        if self._ask(TASK_ABORT, order):
            self.checker.seen["accepted abort"] += 1

    def _instance(self, uuid: str) -> Instance | None:
        row = self.server.rows.tables[INSTANCES.name].get((uuid,))
        return None if row is None else INSTANCES.from_row(row)

    # -- hosts that are lost ----------------------------------------------------------------------------------------

    def _power_off(self, event: Event) -> None:
        """A host loses its power: one that takes part in a move, else one that has servers, else ``who``. It is forced
        down, its servers are evacuated (``number`` 0: half of them), and it comes back after a while, unless ``number``
        is 3."""
        busy = [host for host in self._hosts_of_moves() or self._hosts_in_use() if host not in self.lost]
        host = self.dice.choice(busy) if busy else event.who
        agent = self.agents[host]
        if host in self.lost:
            return
        self.lost.add(host)
        if not agent.process.dead:
            agent.kill()
        self.hypervisors.power_off(host)
        self._asking(self._lose_host, replace(event, who=host), agent)

    def _hosts_of_moves(self) -> list[str]:
        tasks = map(TASKS.from_row, self.server.rows.tables[TASKS.name].values())
        bodies = [task.body for task in tasks if task.kind in PLANS]
        return sorted({host for body in bodies for host in (body.source, body.host) if host})

    def _hosts_in_use(self) -> list[str]:
        return sorted(host for host, domains in self.hypervisors.domains.items() if domains)

    def _lose_host(self, event: Event, agent: Agent) -> None:
        host = event.who
        gevent.sleep(NOTICED_S)
        returns_s = self.loop.now_s + event.for_s
        if self._ask(HOST_FORCE_DOWN, HostForceDownRequest(host=host)):
            self.checker.seen["forced down"] += 1
            for number, uuid in enumerate(self._servers_of(host)):
                if event.number or number % 2:
                    self._asking(self._evacuate, uuid)
        if event.number == 3:
            self.checker.seen["host lost for good"] += 1
            return
        gevent.sleep(max(0.0, returns_s - self.loop.now_s))
        self.hypervisors.off.discard(host)
        if agent.process.dead:
            agent.start()
        if self._ask(HOST_FORCE_DOWN, HostForceDownRequest(host=host, forced_down=False)):
            self.checker.seen["let in again"] += 1
        self.lost.discard(host)

    def _servers_of(self, host: str) -> list[str]:
        rows = self.server.rows.tables[INSTANCES.name].values()
        found = (INSTANCES.from_row(row) for row in rows)
        return sorted(each.uuid for each in found if each.host == host and each.vm_state != VM_DELETED)

    def _evacuate(self, uuid: str) -> None:
        for action in LOST_HOST:
            self._administer(uuid, action)

    def hosts_forced_down(self) -> set[str]:
        """As committed."""
        rows = self.server.rows.tables[HOSTS.name].values()
        return {host.name for host in map(HOSTS.from_row, rows) if host.forced_down}
