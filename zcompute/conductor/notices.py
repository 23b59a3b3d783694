"""What is told of a change: pure functions of the rows before and after it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zcompute.conductor.change import Change
from zcompute.db.tables import BUILD_REQUESTS, HOSTS, INSTANCES
from zcompute.objects.base import pack
from zcompute.objects.build_request import BUILD_ERROR, BuildRequest
from zcompute.objects.errors import CannotLower
from zcompute.objects.flavor import Flavor
from zcompute.objects.host import Host
from zcompute.objects.instance import ARRIVING, LEFT, TASK_DELETING, VM_BUILDING, VM_DELETED, VM_ERROR, Instance
from zcompute.objects.notification import PRIORITY_ERROR, PRIORITY_INFO, Notification
from zcompute.objects.notification_payloads import (
    ERROR,
    EVENT_TYPES,
    AuditPeriodPayload,
    ExceptionPayload,
    InstanceActionPayload,
    InstanceEventsFoldedPayload,
    InstanceExistsPayload,
    InstanceMovePayload,
    InstanceRebuildPayload,
    InstanceSnapshotPayload,
    InstanceStateUpdatePayload,
    InstanceUpdatePayload,
    Payload,
    flavor_payload,
    instance_fields,
    power_name,
    service_payload,
)
from zcompute.objects.stored import Pack

log = logging.getLogger(__name__)

INSTANCE_UPDATE = "instance.update"
INSTANCE_CREATE_ERROR = "instance.create.error"
INSTANCE_DELETE_START = "instance.delete.start"
INSTANCE_DELETE_END = "instance.delete.end"
INSTANCE_EXISTS = "instance.exists"
INSTANCE_EVENTS_FOLDED = "instance.events_folded"
SERVICE_CREATE = "service.create"
SERVICE_UPDATE = "service.update"


def instance_update(
    former: Instance | None, instance: Instance, request_id: str, packed: Pack = pack
) -> Notification | None:
    """``instance.update`` when a state or the name has changed, as Nova's. Of a server that goes to another cell the
    one that is the server tells: the copy that comes, and the one that stays behind, say nothing of themselves."""
    if instance.crossing in (ARRIVING, LEFT):
        return None
    if former is None:
        old_state = old_task = old_power = renamed = None
    elif (
        former.power_state == instance.power_state
        and former.vm_state == instance.vm_state
        and former.task_state == instance.task_state
        and former.name == instance.name
    ):
        return None
    else:
        old_state, old_task, old_power = former.vm_state, former.task_state, power_name(former.power_state)
        renamed = former.name if former.name != instance.name else None
    power_state = power_name(instance.power_state)
    update = InstanceStateUpdatePayload(
        old_state=old_state,
        state=instance.vm_state,
        old_task_state=old_task,
        new_task_state=instance.task_state,
        old_power_state=old_power,
        power_state=power_state,
    )
    fields: dict[str, Any] = instance_fields(instance)
    payload = InstanceUpdatePayload(**fields, state_update=update, old_display_name=renamed)
    return _of_instance(INSTANCE_UPDATE, instance, payload, request_id, packed)


@dataclass(frozen=True)
class EventFacts:
    """What some events say beyond the instance: of a rebuild or snapshot the image, of a move its hosts and flavor."""

    new_image: str = ""
    source_host: str | None = None
    dest_host: str | None = None
    new_flavor: Flavor | None = None


def instance_event(
    event_type: str,
    instance: Instance,
    request_id: str,
    failure: str = "",
    packed: Pack = pack,
    of: EventFacts | None = None,
) -> Notification:
    """A phase of an action on an instance; ``failure`` says why, for the phase error."""
    of = of or EventFacts()
    fields: dict[str, Any] = instance_fields(instance)
    fault = ExceptionPayload(exception_message=failure) if failure else None
    if EVENT_TYPES[event_type] is InstanceRebuildPayload:
        rebuild = InstanceRebuildPayload(**fields, fault=fault, new_image_uuid=of.new_image)
        return _of_instance(event_type, instance, rebuild, request_id, packed)
    if EVENT_TYPES[event_type] is InstanceSnapshotPayload:
        snapshot = InstanceSnapshotPayload(**fields, fault=fault, snapshot_image_id=of.new_image)
        return _of_instance(event_type, instance, snapshot, request_id, packed)
    if EVENT_TYPES[event_type] is InstanceMovePayload:
        flavor = flavor_payload(of.new_flavor or instance.flavor)
        moved = InstanceMovePayload(
            **fields, fault=fault, source_host=of.source_host, dest_host=of.dest_host, new_flavor=flavor
        )
        return _of_instance(event_type, instance, moved, request_id, packed)
    return _of_instance(event_type, instance, InstanceActionPayload(**fields, fault=fault), request_id, packed)


def instance_exists(instance: Instance, beginning_us: int, ending_us: int, packed: Pack = pack) -> Notification:
    """``instance.exists`` for one audit period."""
    fields: dict[str, Any] = instance_fields(instance)
    period = AuditPeriodPayload(audit_period_beginning_us=beginning_us, audit_period_ending_us=ending_us)
    return _of_instance(INSTANCE_EXISTS, instance, InstanceExistsPayload(**fields, audit_period=period), "", packed)


def events_folded(instance: Instance, count: int, packed: Pack = pack) -> Notification:
    """``instance.events_folded``: the agent had to wait, and ``count`` power states are told by nothing else."""
    fields: dict[str, Any] = instance_fields(instance)
    payload = InstanceEventsFoldedPayload(**fields, count=count)
    return _of_instance(INSTANCE_EVENTS_FOLDED, instance, payload, "", packed)


def build_request_error(
    former: BuildRequest | None, request: BuildRequest, now_us: int, packed: Pack = pack
) -> Notification | None:
    """``instance.create.error`` when a server ends in ERROR at the root, since no cell had room or answered."""
    if request.state != BUILD_ERROR or (former is not None and former.state == BUILD_ERROR):
        return None
    instance = _instance_of(request, now_us, vm_state=VM_ERROR, task_state=None)
    failure = request.fault.message if request.fault is not None else ""
    return instance_event(INSTANCE_CREATE_ERROR, instance, request.request_id, failure, packed)


def build_request_deleted(
    request: BuildRequest, now_us: int, request_id: str, packed: Pack = pack
) -> tuple[Notification, Notification]:
    """``instance.delete.start`` and ``.end`` of a server that no cell has, in one commit; as Nova tells them."""
    state = VM_ERROR if request.state == BUILD_ERROR else VM_BUILDING
    going = _instance_of(request, now_us, vm_state=state, task_state=TASK_DELETING)
    gone = _instance_of(request, now_us, vm_state=VM_DELETED, task_state=None, deleted_at_us=now_us)
    return (
        instance_event(INSTANCE_DELETE_START, going, request_id, packed=packed),
        instance_event(INSTANCE_DELETE_END, gone, request_id, packed=packed),
    )


def _instance_of(request: BuildRequest, now_us: int, **states: Any) -> Instance:
    """The server of a build request, as it would be shown."""
    return Instance(
        uuid=request.uuid,
        project_id=request.project_id,
        user_id=request.user_id,
        name=request.name,
        flavor=request.flavor,
        spec=request.spec,
        created_at_us=request.created_at_us,
        updated_at_us=now_us,
        **states,
    )


def service_change(former: Host | None, host: Host, packed: Pack = pack) -> Notification | None:
    """``service.create`` for a new host; ``service.update`` when it goes up or down, is disabled or forced down, or
    has a new agent."""
    if former is not None and _service_state(former) == _service_state(host):
        return None
    event_type = SERVICE_CREATE if former is None else SERVICE_UPDATE
    payload, truncated = _at_level(service_payload(host), packed)
    return Notification(event_type=event_type, payload=payload, truncated=truncated)


def _service_state(host: Host) -> tuple[Any, ...]:
    return (host.state, host.disabled, host.disabled_reason, host.forced_down, host.service_id, host.agent_epoch)


def _at_level(payload: Payload, packed: Pack) -> tuple[bytes, bool]:
    """The packed payload, and whether it is left out: a change is never refused for what is told of it."""
    try:
        return packed(payload), False
    except CannotLower as error:
        log.warning("payload left out, the cell's level cannot say it kind=%s error=%s", type(payload).__name__, error)
        return b"", True


def _of_instance(event_type: str, instance: Instance, payload: Payload, request_id: str, packed: Pack) -> Notification:
    body, truncated = _at_level(payload, packed)
    return Notification(
        event_type=event_type,
        priority=PRIORITY_ERROR if event_type.endswith(ERROR) else PRIORITY_INFO,
        request_id=request_id,
        user_id=instance.user_id,
        project_id=instance.project_id,
        instance_uuid=instance.uuid,
        payload=body,
        truncated=truncated,
    )


def _instance_put(former: Any, image: Any, change: Change) -> Notification | None:
    return instance_update(former, image, change.request_id, change.packed)


def _host_put(former: Any, image: Any, change: Change) -> Notification | None:
    return service_change(former, image, change.packed)


def _build_request_put(former: Any, image: Any, change: Change) -> Notification | None:
    return build_request_error(former, image, change.now_us, change.packed)


_OF_TABLE: dict[str, Callable[[Any, Any, Change], Notification | None]] = {
    INSTANCES.name: _instance_put,
    HOSTS.name: _host_put,
    BUILD_REQUESTS.name: _build_request_put,
}


def tell_of_rows(change: Change) -> None:
    """Tell of every row that a change puts, before what its decision tells itself: states first, then the action."""
    found: list[Notification] = []
    for put in change.puts.values():
        derive = _OF_TABLE.get(put.table.name)
        if derive is not None and put.image is not None:
            notification = derive(put.former, put.image, change)
            if notification is not None:
                found.append(notification)
    if found:
        change.notify_first(found)
