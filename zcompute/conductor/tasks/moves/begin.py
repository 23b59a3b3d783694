"""How a move begins: the decision of the commit that accepts it. Pure; the server's state was checked before."""

import msgspec

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.tasks.decision import Decision
from zcompute.conductor.tasks.moves.plans import BEGIN, PLANS
from zcompute.conductor.tasks.moves.walk import former_claim
from zcompute.objects.errors import ActionInvalid, InstanceBusy
from zcompute.objects.instance import Instance
from zcompute.objects.messages.instances import InstanceActionRequest
from zcompute.objects.task import (
    TASK_CONFIRM_RESIZE,
    TASK_EVACUATE,
    TASK_LIVE_MIGRATE,
    TASK_MIGRATE,
    TASK_RESIZE,
    TASK_REVERT_RESIZE,
    TASK_SHELVE,
    TASK_SHELVE_HERE,
    TASK_SHELVE_OFFLOAD,
    TASK_UNSHELVE,
    TASK_UNSHELVE_HERE,
    Task,
    TaskBody,
)

_TO_ITSELF = {
    **dict.fromkeys((TASK_MIGRATE, TASK_RESIZE), "Cannot migrate to the host where the server exists."),
    TASK_LIVE_MIGRATE: "Unable to migrate instance ({uuid}) to current host ({host}).",
    TASK_EVACUATE: "The target host can't be the same one.",
}
"""Nova's words for a destination that is the present host."""


_SHELVES = (TASK_SHELVE, TASK_SHELVE_HERE)
_SHELVING = (*_SHELVES, TASK_SHELVE_OFFLOAD, TASK_UNSHELVE, TASK_UNSHELVE_HERE)


def begin_move(
    kind: str,
    instance: Instance,
    request: InstanceActionRequest,
    *,
    task_id: str,
    request_id: str,
    now_us: int,
    deadline_s: int,
    forced_down: bool = False,
) -> Decision:
    """Take a move in. ``forced_down``: the host is that an evacuation leaves, or to which a revert goes.

    Raises InvalidRequest, ActionInvalid, InstanceBusy.
    """
    plan = PLANS[kind]
    if kind in (TASK_CONFIRM_RESIZE, TASK_REVERT_RESIZE):
        body = _back_or_on(kind, instance, forced_down)
    elif kind in _SHELVING:
        body = _on_or_off_the_shelf(kind, instance, request)
    else:
        body = _away(kind, instance, request, forced_down)
    task = Task(
        id=task_id,
        instance_uuid=instance.uuid,
        kind=kind,
        step=plan.steps[0],
        deadline_at_us=now_us + deadline_s * 1_000_000,
        operation_id=request.operation_id,
        request_id=request_id,
        body=msgspec.structs.replace(body, action=request.action, arguments=request.arguments, fault=instance.fault),
        created_at_us=now_us,
    )
    moving = msgspec.structs.replace(
        instance,
        task_state=plan.task_state(task.step),
        task_id=task_id,
        command_generation=instance.command_generation + 1,
    )
    return Decision(instance=moving, task=task, events=plan.events.get(BEGIN, ()))


def _check_flavor(instance: Instance, request: InstanceActionRequest) -> None:
    """As Nova's: a resize changes the flavor, and no disk becomes none."""
    flavor = request.arguments.flavor
    if flavor is None:
        raise InvalidRequest("a resize needs the flavor to become, found none", field="arguments.flavor")
    if flavor.flavorid == instance.flavor.flavorid:
        raise ActionInvalid("When resizing, instances must change flavor!", uuid=instance.uuid, action=request.action)
    if flavor.root_gb == 0 and instance.flavor.root_gb != 0:
        raise ActionInvalid(
            "Server disk was unable to be resized because: Resize to zero disk flavor is not allowed.",
            uuid=instance.uuid,
            action=request.action,
        )


def _check_no_move(instance: Instance) -> None:
    if instance.move is not None:
        raise InstanceBusy(
            f"Instance {instance.uuid} has a move from {instance.move.former_host} that is neither confirmed nor "
            "reverted: reset its state to active, then confirm or revert it",
            uuid=instance.uuid,
            vm_state=instance.vm_state,
            task_state="",
        )


def _on_or_off_the_shelf(kind: str, instance: Instance, request: InstanceActionRequest) -> TaskBody:
    _check_no_move(instance)
    if kind in _SHELVES and not request.arguments.image_ref:
        raise InvalidRequest("expected the id of the image to be made, found none", field="arguments.image_ref")
    return TaskBody(
        source=instance.host,
        named_hosts=[instance.host] if instance.host else [],
        former_vm_state=instance.vm_state,
    )


def _away(kind: str, instance: Instance, request: InstanceActionRequest, forced_down: bool) -> TaskBody:
    _check_no_move(instance)
    if kind == TASK_RESIZE:
        _check_flavor(instance, request)
    destination = request.arguments.peer_host
    if destination and destination == instance.host:
        raise ActionInvalid(
            _TO_ITSELF[kind].format(uuid=instance.uuid, host=destination), uuid=instance.uuid, action=request.action
        )
    if kind == TASK_EVACUATE and not forced_down:
        raise ActionInvalid(
            f"Compute service of {instance.host} is still in use.", uuid=instance.uuid, action=request.action
        )
    source = instance.host or ""
    named = [] if kind == TASK_EVACUATE else [source]
    return TaskBody(
        source=source, destination=destination or None, named_hosts=named, former_vm_state=instance.vm_state
    )


def _back_or_on(kind: str, instance: Instance, forced_down: bool) -> TaskBody:
    """Of a move that has ended and waits to be confirmed or reverted. A revert destroys the present copy first: never
    where the other is on a host that is down."""
    move = instance.move
    if move is None:
        raise InstanceBusy(
            f"Instance {instance.uuid} has not been resized.", uuid=instance.uuid, vm_state=instance.vm_state,
            task_state="",
        )  # fmt: skip
    if kind == TASK_REVERT_RESIZE and forced_down:
        raise InstanceBusy(
            f"Cannot 'revertResize' instance {instance.uuid}: its former host {move.former_host} is forced down",
            uuid=instance.uuid,
            vm_state=instance.vm_state,
            task_state="",
        )
    body = TaskBody(source=move.former_host, named_hosts=[move.former_host], former_vm_state=move.former_vm_state)
    if kind == TASK_CONFIRM_RESIZE:
        return msgspec.structs.replace(body, release=[former_claim(move)])
    present = instance.host or ""
    return msgspec.structs.replace(body, host=present, named_hosts=[*body.named_hosts, present])
