"""Reads of a cell: instances and hosts from replicas, services from the map and the links."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from zcompute.bus import Endpoint
from zcompute.bus.errors import InvalidRequest, Unavailable
from zcompute.conductor.cell.operators import check_operator
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.page_size import fitted
from zcompute.conductor.tasks.history import step_under_way
from zcompute.db.errors import StoreError
from zcompute.db.tables import HOSTS, INSTANCE_ACTION_EVENTS, INSTANCE_ACTIONS, INSTANCES, TASKS
from zcompute.db.view import View, by_key
from zcompute.log import REPEATED
from zcompute.objects.cell import ServiceInfo
from zcompute.objects.errors import InstanceNotFound
from zcompute.objects.history import InstanceAction, InstanceActionEvent
from zcompute.objects.host import HOST_UP, Host
from zcompute.objects.instance import VM_DELETED
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.instances import (
    InstanceActionsReply,
    InstanceBriefsReply,
    InstanceCountReply,
    InstanceCountRequest,
    InstanceGetRequest,
    InstanceListReply,
    InstanceQuery,
    InstanceReply,
    ServiceListReply,
)
from zcompute.objects.methods import (
    INSTANCE_BRIEFS,
    INSTANCE_COUNT,
    INSTANCE_GET,
    INSTANCE_HISTORY,
    INSTANCE_LIST,
    SERVICE_LIST,
)
from zcompute.objects.partition import PartitionMap
from zcompute.objects.server_list import check
from zcompute.objects.task import Task

log = logging.getLogger(__name__)

BINARY_CONDUCTOR = "nova-conductor"
BINARY_SCHEDULER = "nova-scheduler"
BINARY_COMPUTE = "nova-compute"
STATE_UP = "up"
STATE_DOWN = "down"

R = TypeVar("R")

INSTANCE_BY_UUID = by_key(INSTANCES)
_History = tuple[list[Task], list[InstanceAction], list[InstanceActionEvent]]


def unavailable_without_database(handler: Callable[[Any, Any], R]) -> Callable[[Any, Any], R]:
    """A handler whose failing reads are answered as Unavailable: the caller tries another conductor."""

    def handle(request: Any, context: Any) -> R:
        try:
            return handler(request, context)
        except StoreError as error:
            log.info("read failed error=%s: %s", type(error).__name__, error, extra=REPEATED)
            raise Unavailable("the database of the cell does not answer now: try again") from error

    return handle


def conductor_services(cell: str, new_map: PartitionMap, now_us: int) -> list[ServiceInfo]:
    """The living conductors of a map. Pure."""
    return [
        ServiceInfo(
            service_id=info.service_id,
            binary=BINARY_CONDUCTOR,
            host=info.service_id,
            cell=cell,
            state=STATE_UP,
            updated_at_us=now_us,
        )
        for info in sorted(new_map.conductors.values(), key=lambda info: info.service_id)
    ]


def host_service(cell: str, host: Host) -> ServiceInfo:
    """A host's line of os-services. Pure."""
    return ServiceInfo(
        service_id=host.service_id,
        binary=BINARY_COMPUTE,
        host=host.name,
        cell=cell,
        state=STATE_UP if host.state == HOST_UP and not host.forced_down else STATE_DOWN,
        status="disabled" if host.disabled else "enabled",
        disabled_reason=host.disabled_reason,
        forced_down=host.forced_down,
        availability_zone=host.availability_zone,
        updated_at_us=host.updated_at_us,
    )


def scheduler_services(cell: str, endpoint: Endpoint, now_us: int) -> list[ServiceInfo]:
    """The schedulers that are linked here."""
    names = {link.peer.service_id for link in endpoint.links(role="scheduler", cell=cell) if link.peer is not None}
    return [
        ServiceInfo(
            service_id=name, binary=BINARY_SCHEDULER, host=name, cell=cell, state=STATE_UP, updated_at_us=now_us
        )
        for name in sorted(names)
    ]


def checked(query: InstanceQuery) -> InstanceQuery:
    """The query, if it can be meant. Raises InvalidRequest."""
    try:
        check(query)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    return query


class Reads:
    """The reading handlers of a cell's conductor."""

    def __init__(self, env: ConductorEnv, settings: CellSettings) -> None:
        self._env = env
        self._settings = settings

    def handlers(self) -> list[tuple[Method, Handler]]:
        """What may be asked of any conductor of the cell."""
        return [
            (INSTANCE_GET, unavailable_without_database(self.instance_get)),
            (INSTANCE_HISTORY, unavailable_without_database(self.instance_actions)),
            (INSTANCE_BRIEFS, unavailable_without_database(self.instance_briefs)),
            (INSTANCE_COUNT, unavailable_without_database(self.instance_count)),
            (INSTANCE_LIST, unavailable_without_database(self.instance_list)),
            (SERVICE_LIST, unavailable_without_database(self.service_list)),
        ]

    def instance_get(self, request: InstanceGetRequest, context: Any) -> InstanceReply:
        """Raises InstanceNotFound for one that is not here, is deleted (unless those are asked for too), or is another
        project's."""
        key = (request.uuid,)
        instance = self._env.reads.get(context, INSTANCE_BY_UUID, key)
        hidden = instance is None or (instance.vm_state == VM_DELETED and not request.deleted)
        if hidden or instance is None or request.project_id not in (None, instance.project_id):
            raise InstanceNotFound(f"no instance {request.uuid} in cell {self._env.cell}", uuid=request.uuid)
        return InstanceReply(instance=instance)

    def instance_actions(self, request: InstanceGetRequest, context: Any) -> InstanceActionsReply:
        """The history of an instance, of a deleted one too. Raises InstanceNotFound for one that was never here, or
        is another project's. At most history_rows_max actions and events; of one operation where that is asked for."""
        check_operator(context)
        limit = self._settings.history_rows_max
        key, of_it = (request.uuid,), {"instance_uuid": request.uuid}
        where = {**of_it, "operation_id": request.operation_id} if request.operation_id else of_it

        def read(view: View) -> _History:
            tasks = view.scan(TASKS, where=of_it, limit=1)  # before its history: what has ended meanwhile is in that
            instance = view.fetch(INSTANCES, [key]).get(key)
            if instance is None or request.project_id not in (None, instance.project_id):
                raise InstanceNotFound(f"no instance {request.uuid} in cell {self._env.cell}", uuid=request.uuid)
            actions = view.scan(INSTANCE_ACTIONS, where=where, limit=limit)
            return tasks, actions, view.scan(INSTANCE_ACTION_EVENTS, where=where, limit=limit)

        tasks, actions, events = self._env.reads.read(context, read)
        return InstanceActionsReply(
            actions=sorted(actions, key=lambda action: -action.started_at_us),
            events=sorted(events, key=lambda event: -event.finished_at_us),
            under_way=step_under_way(tasks[0]) if tasks else None,
        )

    def instance_list(self, request: InstanceQuery, context: Any) -> InstanceListReply:
        """A page; at most list_rows_max whatever was asked for, and what goes over the wire. Raises InvalidRequest."""
        check_operator(context)
        checked(request)
        if request.limit > self._settings.list_rows_max:
            request.limit = self._settings.list_rows_max
        instances, cut = fitted(self._env.reads.read(context, lambda view: view.list_instances(request)))
        return InstanceListReply(instances=instances, cut=cut)

    def instance_briefs(self, request: InstanceQuery, context: Any) -> InstanceBriefsReply:
        """A page as instance_list has it, of each row what a list without details shows."""
        checked(request)
        if request.limit > self._settings.list_rows_max:
            request.limit = self._settings.list_rows_max
        return InstanceBriefsReply(instances=self._env.reads.read(context, lambda view: view.list_briefs(request)))

    def instance_count(self, request: InstanceCountRequest, context: Any) -> InstanceCountReply:
        """How many there are. Raises InvalidRequest."""
        query, without = checked(request.query), request.without
        if len(without) > self._settings.without_max:
            raise InvalidRequest(f"expected at most {self._settings.without_max} uuids, found {len(without)}")
        return InstanceCountReply(
            count=self._env.reads.read(context, lambda view: view.count_instances(query, without))
        )

    def service_list(self, request: Empty, context: Any) -> ServiceListReply:
        """Conductors, schedulers and hosts of the cell."""
        now_us = self._env.ledger.now_us()
        services = conductor_services(self._env.cell, self._env.ledger.map, now_us)
        services += scheduler_services(self._env.cell, self._env.endpoint, now_us)
        services += [host_service(self._env.cell, host) for host in self._env.reads.read(context, self._hosts)]
        return ServiceListReply(services=services)

    def _hosts(self, view: View) -> list[Host]:
        hosts: list[Host] = []
        rows = self._settings.scan_rows
        while len(hosts) < self._settings.services_max:
            after = (hosts[-1].name,) if hosts else None
            page = view.scan(HOSTS, limit=rows, after=after)
            hosts += page
            if len(page) < rows:
                break
        return hosts
