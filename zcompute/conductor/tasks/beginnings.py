"""How each action begins: the decision of the commit that accepts it. Pure; the state was checked before."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from msgspec.structs import replace

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.tasks.act_walk import begin_act
from zcompute.conductor.tasks.decision import Decision, make_fault
from zcompute.conductor.tasks.moves.begin import begin_move
from zcompute.conductor.tasks.settings import ACT_DEADLINES_S, MOVE_DEADLINES_S, TaskSettings
from zcompute.objects.actions import (
    ACTIONS,
    LIVE_MIGRATE,
    LOCK,
    REBUILD,
    RESET_STATE,
    SHELVE,
    SNAPSHOT,
    SOFT_DELETE,
    UNLOCK,
    UNSHELVE,
    Action,
    forbidden,
)
from zcompute.objects.errors import InstanceBusy
from zcompute.objects.instance import (
    POWER_RUNNING,
    POWER_SHUTDOWN,
    VM_ACTIVE,
    VM_ERROR,
    VM_RESIZED,
    VM_SHELVED,
    VM_SHELVED_OFFLOADED,
    VM_STOPPED,
    Instance,
)
from zcompute.objects.messages.instances import InstanceActionRequest

RESET_STATES = (VM_ACTIVE, VM_ERROR)


@dataclass(frozen=True)
class Beginning:
    """An action that is to begin. ``forced_down``: the host is to which it matters (of an evacuation, of a revert)."""

    action: Action
    instance: Instance
    request: InstanceActionRequest
    task_id: str
    request_id: str
    now_us: int
    settings: TaskSettings
    forced_down: bool = False


Begin = Callable[[Beginning], Decision]


def begin(it: Beginning) -> Decision:
    """What accepts it. Raises InstanceBusy, ActionForbidden, InvalidRequest."""
    return BEGINNINGS[it.action.key](it)


def _act(it: Beginning) -> Decision:
    return begin_act(
        it.action,
        it.instance,
        it.request,
        task_id=it.task_id,
        request_id=it.request_id,
        now_us=it.now_us,
        deadline_s=min(it.settings.act_deadline_s_max, ACT_DEADLINES_S[it.action.task_state]),
    )


def _rebuild(it: Beginning) -> Decision:
    """Nova's rebuild: the name and metadata change at once, the image when the disk is made of it."""
    instance, request = it.instance, it.request
    spec = instance.spec if request.metadata is None else replace(instance.spec, metadata=request.metadata)
    power = POWER_SHUTDOWN if instance.vm_state == VM_STOPPED else POWER_RUNNING
    renamed = replace(instance, name=request.name or instance.name, spec=spec)
    asked = replace(request, arguments=replace(request.arguments, power=power))
    return _act(dataclasses.replace(it, instance=renamed, request=asked))


def _snapshot(it: Beginning) -> Decision:
    """Nova's createImage; the image has its row at the root by now."""
    if not it.request.arguments.image_ref:
        raise InvalidRequest("expected the id of the image to be made, found none", field="image_ref")
    return _act(it)


def _live_migrate(it: Beginning) -> Decision:
    """Post-copy is no wish of the client's: the operator permits it, for those that are completed by force."""
    arguments = replace(it.request.arguments, post_copy=it.settings.permit_post_copy)
    return _move(dataclasses.replace(it, request=replace(it.request, arguments=arguments)))


def _move(it: Beginning) -> Decision:
    return _move_of(it.action.kind, it)


def _shelve(it: Beginning) -> Decision:
    """It is offloaded in the same task, where the settings say at once."""
    return _move_of(it.action.kind if it.settings.shelved_offload_time_s == 0 else it.action.kind_here, it)


def _unshelve(it: Beginning) -> Decision:
    return _move_of(it.action.kind if it.instance.host is None else it.action.kind_here, it)


def _move_of(kind: str, it: Beginning) -> Decision:
    return begin_move(
        kind,
        it.instance,
        it.request,
        task_id=it.task_id,
        request_id=it.request_id,
        now_us=it.now_us,
        deadline_s=min(it.settings.move_deadline_s_max, MOVE_DEADLINES_S[kind]),
        forced_down=it.forced_down,
    )


def _lock(it: Beginning) -> Decision:
    """As Nova's: an administrator's lock is not weakened by its user's."""
    locked = replace(
        it.instance,
        locked=True,
        locked_by_admin=it.request.administrator or it.instance.locked_by_admin,
        locked_reason=it.request.reason,
    )
    return Decision(instance=locked, events=("instance.lock",))


def _unlock(it: Beginning) -> Decision:
    if it.instance.locked_by_admin and not it.request.administrator:
        raise forbidden("unlock of an administrator's lock", it.instance)
    unlocked = replace(it.instance, locked=False, locked_by_admin=False, locked_reason=None)
    return Decision(instance=unlocked, events=("instance.unlock",))


def _reset_state(it: Beginning) -> Decision:
    """Nova's os-resetState. A task under way is not cut off by it: no task is ever stuck, and a parked one ends with
    the word of its host, with a delete, or when the host is forced down. A server whose move waits to be confirmed
    is RESIZED where it is not in ERROR, so that its other copy is not forgotten; one that was shelved is so again."""
    instance = it.instance
    if instance.task_id is not None:
        raise InstanceBusy(
            f"Cannot 'resetState' instance {instance.uuid}: its task {instance.task_id} has not ended",
            uuid=instance.uuid,
            vm_state=instance.vm_state,
            task_state=instance.task_state or "",
        )
    fault = make_fault("the state was set by an administrator", it.now_us) if it.request.vm_state == VM_ERROR else None
    waits = instance.move is not None and it.request.vm_state == VM_ACTIVE
    vm_state = VM_RESIZED if waits else it.request.vm_state
    if instance.shelved_image_ref is not None and it.request.vm_state == VM_ACTIVE:
        vm_state = VM_SHELVED_OFFLOADED if instance.host is None else VM_SHELVED
    return Decision(instance=replace(instance, vm_state=vm_state, fault=fault, soft_deleted_at_us=None))


BEGINNINGS: dict[str, Begin] = {
    **{key: _act for key, action in ACTIONS.items() if action.verb and action is not SOFT_DELETE},
    REBUILD.key: _rebuild,
    SNAPSHOT.key: _snapshot,
    **{key: _move for key, action in ACTIONS.items() if action.kind},
    LIVE_MIGRATE.key: _live_migrate,
    SHELVE.key: _shelve,
    UNSHELVE.key: _unshelve,
    LOCK.key: _lock,
    UNLOCK.key: _unlock,
    RESET_STATE.key: _reset_state,
}
