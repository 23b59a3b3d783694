"""A region in this process: endpoints on the real bus that serve the root's and two cells' methods from memory."""

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from tests.unit.conductor.root.image_desk import Desk
from zcompute import bus
from zcompute.conductor.cell.actions import host_in_question
from zcompute.conductor.page_size import PAGE_BYTES_MAX, fitted
from zcompute.conductor.tasks.beginnings import Beginning, begin
from zcompute.conductor.tasks.settings import TaskSettings
from zcompute.objects import methods as m
from zcompute.objects.actions import ACTIONS, check_state
from zcompute.objects.build_request import BuildRequest, InstanceMapping
from zcompute.objects.cell import ROOT_CELL, CellInfo, ServiceInfo
from zcompute.objects.errors import (
    SERVICE_ERRORS,
    FlavorNotFound,
    InstanceNotFound,
    OperationConflict,
    ServerGroupNotFound,
)
from zcompute.objects.flavor import Flavor
from zcompute.objects.group import ServerGroup
from zcompute.objects.instance import Instance
from zcompute.objects.messages.instances import InstanceBrief
from zcompute.objects.partition import PARTITIONS, ConductorInfo, PartitionMap
from zcompute.objects.quota import Amount, Limits
from zcompute.objects.server_list import instance_of, matches, order_of, page_of
from zcompute.objects.task import Task

NOVAS = Limits(instances=10, cores=20, ram_mb=51200)
TINY = Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1)
SMALL = Flavor(flavorid="2", name="m1.small", vcpus=1, memory_mb=2048, root_gb=20, swap_mb=512)
SECRET = Flavor(flavorid="3", name="m1.secret", vcpus=1, memory_mb=64, root_gb=1, is_public=False)


PAGE_BYTES = PAGE_BYTES_MAX


def copied(rows: list[Any]) -> list[Any]:
    return [msgspec.structs.replace(row, spec=msgspec.structs.replace(row.spec)) for row in rows]


class FakeConductor:
    """One conductor that owns every partition of its cell. ``before``: what to do before a method is served."""

    def __init__(self, cell: str) -> None:
        self.cell = cell
        self.before: dict[m.Method, Callable[[], None]] = {}
        self.answers: dict[m.Method, Callable[[Any], Any]] = {}  # in place of its own
        self.seen: list[tuple[str, Any, str]] = []
        self.endpoint = bus.Endpoint(bus.Identity(role="conductor", cell=cell, service_id=f"{cell}-1"))
        for method, handler in self.handlers():
            self.endpoint.serve(method, self._served(method, handler))
        self.endpoint.on_link_up(self._greet)
        self.address = self.endpoint.bind("tcp://127.0.0.1:0")

    def handlers(self) -> list[tuple[m.Method, Callable[[Any], Any]]]:
        return [
            (m.MAP_GET, lambda _: m.MapReply(map=self.map())),
            (m.SERVICE_LIST, lambda _: m.ServiceListReply(services=self.services())),
        ]

    def map(self) -> PartitionMap:
        name = f"{self.cell}-1"
        info = ConductorInfo(service_id=name, incarnation="1", address=self.address)
        return PartitionMap(
            cell=self.cell, version=1, owners=[name] * PARTITIONS, epochs=[1] * PARTITIONS, conductors={name: info}
        )

    def services(self) -> list[ServiceInfo]:
        return [
            ServiceInfo(
                service_id=f"{self.cell}-1",
                binary="nova-conductor",
                host=f"{self.cell}-1",
                cell=self.cell,
                state="up",
                updated_at_us=1_700_000_000_000_000,
            )
        ]

    def close(self) -> None:
        self.endpoint.close(linger_ms=0)

    def _greet(self, link: bus.Link) -> None:
        link.event(m.TOPIC_MAP, self.cell, 1, msgspec.msgpack.encode(self.map()))

    def _served(self, method: m.Method, handler: Callable[[Any], Any]) -> Callable[[Any, bus.CallContext], Any]:
        def serve(request: Any, context: bus.CallContext) -> Any:
            self.seen.append((method.name, request, context.request_id))
            hook = self.before.get(m.INSTANCE_LIST if method is m.INSTANCE_BRIEFS else method)  # both are lists
            if hook is not None:
                hook()
            return self.answers.get(method, handler)(request)

        return serve


class FakeCell(FakeConductor):
    """A cell's conductor."""

    def __init__(self, cell: str) -> None:
        self.instances: dict[str, Instance] = {}
        self.histories: dict[str, m.InstanceActionsReply] = {}
        self.forced_down: set[str] = set()
        self.tasks: list[Task] = []
        self.words: list[tuple[str, m.TaskOrder]] = []
        super().__init__(cell)

    def handlers(self) -> list[tuple[m.Method, Callable[[Any], Any]]]:
        return [
            *super().handlers(),
            (m.INSTANCE_GET, self.get),
            (m.INSTANCE_LIST, self.list),
            (m.INSTANCE_BRIEFS, self.briefs),
            (m.INSTANCE_COUNT, self.count),
            (m.INSTANCE_DELETE, self.delete),
            (m.INSTANCE_ACTION, self.act),
            (m.INSTANCE_HISTORY, lambda request: self.histories[request.uuid]),
            (m.TASK_LIST, self.list_tasks),
            (m.TASK_ABORT, lambda order: self.word("abort", order)),
            (m.TASK_COMPLETE, lambda order: self.word("complete", order)),
        ]

    def list_tasks(self, request: m.TaskListRequest) -> m.TaskListReply:
        """By server and kind."""
        found = [task for task in self.tasks if task.instance_uuid == request.instance_uuid]
        return m.TaskListReply(tasks=[task for task in found if task.kind == request.kind])

    def word(self, word: str, order: m.TaskOrder) -> m.TaskReply:
        """What was said of a task; nothing comes of it."""
        self.words.append((word, order))
        return m.TaskReply(task=None, changed=True)

    def get(self, request: m.InstanceGetRequest) -> m.InstanceReply:
        found = self.instances.get(request.uuid)
        hidden = found is None or (found.vm_state == "deleted" and not request.deleted)
        if hidden or request.project_id not in (None, found.project_id):
            raise InstanceNotFound("no such instance", uuid=request.uuid)
        return m.InstanceReply(instance=found)

    def list(self, query: m.InstanceQuery) -> m.InstanceListReply:
        page, cut = fitted(copied(page_of(query, self.instances.values())), PAGE_BYTES)
        return m.InstanceListReply(instances=page, cut=cut)

    def briefs(self, query: m.InstanceQuery) -> m.InstanceBriefsReply:
        columns = {"uuid", "name", "mapping_generation", *(name for name, _ in order_of(query).columns)}
        rows = [{name: getattr(row, name) for name in columns} for row in page_of(query, self.instances.values())]
        return m.InstanceBriefsReply(instances=[InstanceBrief(**row) for row in rows])

    def count(self, request: m.InstanceCountRequest) -> m.InstanceCountReply:
        found = [each for each in self.instances.values() if matches(request.query, each)]
        return m.InstanceCountReply(count=sum(each.uuid not in request.without for each in found))

    def delete(self, request: m.InstanceDeleteRequest) -> m.Empty:
        found = self.instances.get(request.uuid)
        if found is None or found.project_id != request.project_id:
            raise InstanceNotFound("no such instance", uuid=request.uuid)
        del self.instances[request.uuid]
        return m.Empty()

    def act(self, request: m.InstanceActionRequest) -> m.Empty:
        """Takes what the table and the action's beginning allow, and does nothing."""
        found = self.instances.get(request.uuid)
        if found is None or found.project_id != request.project_id:
            raise InstanceNotFound("no such instance", uuid=request.uuid)
        action = ACTIONS[request.action]
        check_state(action, found, administrator=request.administrator)
        forced_down = host_in_question(action, found) in self.forced_down
        begin(Beginning(action, found, request, "task", "req", 1, TaskSettings(), forced_down))
        return m.Empty()


class FakeRoot(FakeConductor):
    """The root's conductor. Servers stay build requests until a test moves them."""

    def __init__(self, cells: list[FakeCell]) -> None:
        self.flavors = {flavor.flavorid: flavor for flavor in (TINY, SMALL, SECRET)}
        self.operations: dict[tuple[str, str], tuple[str, m.ServersCreateReply]] = {}
        self.mappings: dict[str, InstanceMapping] = {}
        self.build_requests: dict[str, BuildRequest] = {}
        self.cells = cells
        self.quotas: dict[str, Limits] = {}
        self.groups: dict[str, ServerGroup] = {}
        self.images = Desk()
        self._clock_us = 1_700_000_000_000_000
        super().__init__(ROOT_CELL)

    def handlers(self) -> list[tuple[m.Method, Callable[[Any], Any]]]:
        return [
            *super().handlers(),
            (m.SERVERS_CREATE, self.create),
            (m.SERVERS_LOCATE, self.locate),
            (m.SERVERS_PENDING, self.pending),
            (m.SERVERS_DELETE, self.delete),
            (m.FLAVOR_LIST, lambda _: m.FlavorListReply(flavors=list(self.flavors.values()))),
            (m.FLAVOR_GET, self.flavor),
            (m.QUOTA_GET, self.quota),
            (m.QUOTA_SET, self.set_quota),
            (m.QUOTA_DEFAULT, lambda _: m.QuotaDefaultReply(limits=NOVAS, own=Limits())),
            (m.GROUP_CREATE, self.create_group),
            (m.GROUP_GET, self.group),
            (m.GROUP_LIST, self.list_groups),
            (m.GROUP_DELETE, self.delete_group),
            *((method, partial(self.image, handler)) for method, handler in self.images.images.handlers()),
            (m.CELL_LIST, lambda _: m.CellListReply(cells=[self.cell_info(cell) for cell in self.cells])),
        ]

    def cell_info(self, cell: FakeCell) -> CellInfo:
        info = ConductorInfo(service_id=f"{cell.cell}-1", incarnation="1", address=cell.address)
        return CellInfo(name=cell.cell, conductors=[info])

    def flavor(self, request: m.FlavorGetRequest) -> m.FlavorReply:
        if request.flavorid not in self.flavors:
            raise FlavorNotFound("no such flavor", flavor=request.flavorid)
        return m.FlavorReply(flavor=self.flavors[request.flavorid])

    def create(self, request: m.ServersCreateRequest) -> m.ServersCreateReply:
        key = (request.project_id, request.operation_id)
        if key in self.operations:
            digest, reply = self.operations[key]
            if digest != request.digest:
                raise OperationConflict("used before", operation_id=request.operation_id)
            return reply
        if request.group_uuid and self.groups.get(request.group_uuid) is None:
            raise ServerGroupNotFound("no such group", group=request.group_uuid)
        flavor = self.flavors.get(request.flavorid)
        if flavor is None:
            raise FlavorNotFound("no such flavor", flavor=request.flavorid)
        uuids = []
        for _ in range(request.max_count):
            self._clock_us += 1_000_000
            server = str(uuid.uuid4())
            self.mappings[server] = InstanceMapping(
                uuid=server, project_id=request.project_id, cell="c1", group_uuid=request.group_uuid or None
            )
            self.build_requests[server] = BuildRequest(
                uuid=server, project_id=request.project_id, user_id=request.user_id, name=request.name, flavor=flavor,
                spec=request.spec, operation_id=request.operation_id, created_at_us=self._clock_us, cell="c1",
            )  # fmt: skip
            uuids.append(server)
        reply = m.ServersCreateReply(uuids=uuids, reservation_id="r-12345678")
        self.operations[key] = (request.digest, reply)
        return reply

    def image(self, handler: Callable[[Any, Any], Any], request: Any) -> Any:
        """The real directory."""
        return handler(request, self.images.context)

    def create_group(self, request: m.GroupCreateRequest) -> m.GroupView:
        group = self.groups[request.uuid] = ServerGroup(
            uuid=request.uuid, project_id=request.project_id, user_id=request.user_id, name=request.name,
            policy=request.policy,
        )  # fmt: skip
        return m.GroupView(group=group, members=[])

    def group(self, request: m.GroupRequest) -> m.GroupView:
        group = self.groups.get(request.uuid)
        if group is None or request.project_id not in (None, group.project_id):
            raise ServerGroupNotFound("no such group", group=request.uuid)
        members = [mapping.uuid for mapping in self.mappings.values() if mapping.group_uuid == group.uuid]
        return m.GroupView(group=group, members=sorted(members))

    def list_groups(self, request: m.GroupListRequest) -> m.GroupListReply:
        mine = [group for group in self.groups.values() if request.project_id in (None, group.project_id)]
        page = sorted(mine, key=lambda group: group.uuid)[request.offset :][: request.limit]
        return m.GroupListReply(groups=[self.group(m.GroupRequest(uuid=group.uuid)) for group in page])

    def delete_group(self, request: m.GroupRequest) -> m.Empty:
        del self.groups[self.group(request).group.uuid]
        return m.Empty()

    def quota(self, request: m.QuotaRequest) -> m.QuotaReply:
        own = self.quotas.get(request.project_id, Limits())
        mine = [each for each in self.build_requests.values() if each.project_id == request.project_id]
        ram_mb = sum(each.flavor.memory_mb for each in mine)
        used = Amount(instances=len(mine), cores=sum(each.flavor.vcpus for each in mine), ram_mb=ram_mb)
        return m.QuotaReply(limits=own.over(NOVAS), own=own, used=used)

    def set_quota(self, request: m.QuotaSetRequest) -> m.QuotaReply:
        former = Limits() if request.unset else self.quotas.get(request.project_id, Limits())
        self.quotas[request.project_id] = request.limits.over(former)
        return self.quota(m.QuotaRequest(project_id=request.project_id))

    def locate(self, request: m.LocateRequest) -> m.LocateReply:
        mapping = self.mappings.get(request.uuid)
        if mapping is None or request.project_id not in (None, mapping.project_id):
            raise InstanceNotFound("no such instance", uuid=request.uuid)
        return m.LocateReply(mapping=mapping, build_request=self.build_requests.get(request.uuid))

    def pending(self, query: m.InstanceQuery) -> m.PendingReply:
        page = page_of(query, map(instance_of, self.build_requests.values()))
        found, cut = fitted(copied([self.build_requests[each.uuid] for each in page]), PAGE_BYTES)
        return m.PendingReply(build_requests=found, cut=cut)

    def delete(self, request: m.ServerDeleteRequest) -> m.ServerDeleteReply:
        mapping = self.mappings.get(request.uuid)
        if mapping is None or mapping.project_id != request.project_id:
            raise InstanceNotFound("no such instance", uuid=request.uuid)
        if request.uuid not in self.build_requests:
            return m.ServerDeleteReply(accepted=False, cell=mapping.cell)
        del self.build_requests[request.uuid], self.mappings[request.uuid]
        return m.ServerDeleteReply(accepted=True)


class FakeRegion:
    """A root and cells c1 and c2."""

    def __init__(self) -> None:
        for error in SERVICE_ERRORS:
            bus.register_error(error)
        self.c1, self.c2 = FakeCell("c1"), FakeCell("c2")
        self.root = FakeRoot([self.c1, self.c2])

    def hand_over(self, server: str, cell: FakeCell, **changes: Any) -> Instance:
        """The cell takes a server, as the hand-off ends."""
        build_request = self.root.build_requests.pop(server)
        self.root.mappings[server].cell = cell.cell
        instance = Instance(
            uuid=server, project_id=build_request.project_id, user_id=build_request.user_id, name=build_request.name,
            flavor=build_request.flavor, spec=build_request.spec, created_at_us=build_request.created_at_us,
        )  # fmt: skip
        cell.instances[server] = msgspec.structs.replace(instance, **changes)
        return cell.instances[server]

    def forget_servers(self) -> None:
        """As new."""
        root = self.root
        root.images.ledger.rows.clear()
        for kept in (root.quotas, root.operations, root.mappings, root.build_requests, self.c1.instances,
                     self.c2.instances):  # fmt: skip
            kept.clear()
        for conductor in (self.root, self.c1, self.c2):
            conductor.before.clear()
            conductor.seen.clear()

    def close(self) -> None:
        for conductor in (self.root, self.c1, self.c2):
            conductor.close()
