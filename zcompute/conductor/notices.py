"""What is told of a change: pure functions of the rows before and after it."""

from collections.abc import Callable
from typing import Any

from zcompute.conductor.change import Change
from zcompute.db.tables import HOSTS, INSTANCES
from zcompute.objects.base import pack
from zcompute.objects.host import Host
from zcompute.objects.instance import Instance
from zcompute.objects.notification import PRIORITY_ERROR, PRIORITY_INFO, Notification
from zcompute.objects.notification_payloads import (
    ERROR,
    AuditPeriodPayload,
    ExceptionPayload,
    InstanceActionPayload,
    InstanceExistsPayload,
    InstanceStateUpdatePayload,
    InstanceUpdatePayload,
    Payload,
    instance_fields,
    power_name,
    service_payload,
)

INSTANCE_UPDATE = "instance.update"
INSTANCE_EXISTS = "instance.exists"
SERVICE_CREATE = "service.create"
SERVICE_UPDATE = "service.update"


def instance_update(former: Instance | None, instance: Instance, request_id: str) -> Notification | None:
    """``instance.update`` when a state or the name has changed, as Nova's."""
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
    return _of_instance(INSTANCE_UPDATE, instance, payload, request_id)


def instance_event(event_type: str, instance: Instance, request_id: str, failure: str = "") -> Notification:
    """A phase of an action on an instance; ``failure`` says why, for the phase error."""
    fields: dict[str, Any] = instance_fields(instance)
    fault = ExceptionPayload(exception_message=failure) if failure else None
    return _of_instance(event_type, instance, InstanceActionPayload(**fields, fault=fault), request_id)


def instance_exists(instance: Instance, beginning_us: int, ending_us: int) -> Notification:
    """``instance.exists`` for one audit period."""
    fields: dict[str, Any] = instance_fields(instance)
    period = AuditPeriodPayload(audit_period_beginning_us=beginning_us, audit_period_ending_us=ending_us)
    return _of_instance(INSTANCE_EXISTS, instance, InstanceExistsPayload(**fields, audit_period=period), "")


def service_change(former: Host | None, host: Host) -> Notification | None:
    """``service.create`` for a new host; ``service.update`` when it goes up or down, is disabled or forced down, or
    has a new agent."""
    if former is not None and _service_state(former) == _service_state(host):
        return None
    event_type = SERVICE_CREATE if former is None else SERVICE_UPDATE
    return Notification(event_type=event_type, payload=pack(service_payload(host)))


def _service_state(host: Host) -> tuple[Any, ...]:
    return (host.state, host.disabled, host.disabled_reason, host.forced_down, host.service_id, host.agent_epoch)


def _of_instance(event_type: str, instance: Instance, payload: Payload, request_id: str) -> Notification:
    return Notification(
        event_type=event_type,
        priority=PRIORITY_ERROR if event_type.endswith(ERROR) else PRIORITY_INFO,
        request_id=request_id,
        user_id=instance.user_id,
        project_id=instance.project_id,
        instance_uuid=instance.uuid,
        payload=pack(payload),
    )


def _instance_put(former: Any, image: Any, change: Change) -> Notification | None:
    return instance_update(former, image, change.request_id)


def _host_put(former: Any, image: Any, change: Change) -> Notification | None:
    return service_change(former, image)


_OF_TABLE: dict[str, Callable[[Any, Any, Change], Notification | None]] = {
    INSTANCES.name: _instance_put,
    HOSTS.name: _host_put,
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
        change.notifications[:0] = found
