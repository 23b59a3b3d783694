"""What may be done to a server in which state: action x vm_state x task_state x lock, in one place.

The rules are Nova's (nova/compute/api.py: check_instance_state and check_instance_lock of each method). One task of an
instance is under way at most, so every action but a delete wants no task_state.
"""

from dataclasses import dataclass

from zcompute.objects.command import (
    VERB_PAUSE,
    VERB_REBOOT,
    VERB_REBUILD,
    VERB_RESCUE,
    VERB_RESUME,
    VERB_SNAPSHOT,
    VERB_START,
    VERB_STOP,
    VERB_SUSPEND,
    VERB_UNPAUSE,
    VERB_UNRESCUE,
)
from zcompute.objects.errors import ActionForbidden, InstanceBusy, InstanceLocked
from zcompute.objects.instance import (
    TASK_IMAGE_SNAPSHOT,
    TASK_PAUSING,
    TASK_POWERING_OFF,
    TASK_POWERING_ON,
    TASK_REBOOTING,
    TASK_REBOOTING_HARD,
    TASK_REBUILDING,
    TASK_RESCUING,
    TASK_RESIZE_MIGRATING,
    TASK_RESTORING,
    TASK_RESUMING,
    TASK_SOFT_DELETING,
    TASK_SUSPENDING,
    TASK_UNPAUSING,
    TASK_UNRESCUING,
    VM_ACTIVE,
    VM_ERROR,
    VM_PAUSED,
    VM_RESCUED,
    VM_RESIZED,
    VM_SHELVED,
    VM_SHELVED_OFFLOADED,
    VM_SOFT_DELETED,
    VM_STOPPED,
    VM_SUSPENDED,
    Instance,
)
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
)


@dataclass(frozen=True)
class Action:
    """One action. ``key`` names it on the wire and in tasks, ``name`` in histories and messages, as Nova's.

    ``vm_states`` it may begin in, None for any that is not deleted; ``task_state`` while it goes on (empty: it is over
    at once, or the move says so), ``vm_state`` at its end (empty: as it was). ``verb`` is what the agent is told, or
    ``kind`` the kind of a move's task (``kind_here``: that of one in which the server stays on its host); ``event`` is
    the name that notifications have. ``unlocked``: a lock keeps all but administrators from it. ``administrators``:
    nobody else may do it. ``key_said``: what Nova's refusals call it, where that is not its name in the history.
    ``makes_image``: of its arguments' image_ref, of which the root is told what has become.
    """

    key: str
    name: str
    vm_states: frozenset[str] | None
    verb: str = ""
    task_state: str = ""
    vm_state: str = ""
    event: str = ""
    unlocked: bool = True
    administrators: bool = False
    kind: str = ""
    kind_here: str = ""
    key_said: str = ""
    makes_image: bool = False


def _of(*vm_states: str) -> frozenset[str]:
    return frozenset(vm_states)


START = Action("start", "start", _of(VM_STOPPED), VERB_START, TASK_POWERING_ON, VM_ACTIVE, "power_on")
STOP = Action(
    "stop", "stop", _of(VM_ACTIVE, VM_RESCUED, VM_ERROR), VERB_STOP, TASK_POWERING_OFF, VM_STOPPED, "power_off"
)
REBOOT = Action("reboot_soft", "reboot", _of(VM_ACTIVE), VERB_REBOOT, TASK_REBOOTING, VM_ACTIVE, "reboot")
REBOOT_HARD = Action(
    "reboot_hard",
    "reboot",
    _of(VM_ACTIVE, VM_STOPPED, VM_PAUSED, VM_SUSPENDED, VM_ERROR),
    VERB_REBOOT,
    TASK_REBOOTING_HARD,
    VM_ACTIVE,
    "reboot",
)
PAUSE = Action("pause", "pause", _of(VM_ACTIVE), VERB_PAUSE, TASK_PAUSING, VM_PAUSED, "pause")
UNPAUSE = Action("unpause", "unpause", _of(VM_PAUSED), VERB_UNPAUSE, TASK_UNPAUSING, VM_ACTIVE, "unpause")
SUSPEND = Action("suspend", "suspend", _of(VM_ACTIVE), VERB_SUSPEND, TASK_SUSPENDING, VM_SUSPENDED, "suspend")
RESUME = Action("resume", "resume", _of(VM_SUSPENDED), VERB_RESUME, TASK_RESUMING, VM_ACTIVE, "resume")
RESCUE = Action(
    "rescue", "rescue", _of(VM_ACTIVE, VM_STOPPED, VM_ERROR), VERB_RESCUE, TASK_RESCUING, VM_RESCUED, "rescue"
)
UNRESCUE = Action("unrescue", "unrescue", _of(VM_RESCUED), VERB_UNRESCUE, TASK_UNRESCUING, VM_ACTIVE, "unrescue")
REBUILD = Action(  # one that was stopped is so again
    "rebuild", "rebuild", _of(VM_ACTIVE, VM_STOPPED, VM_ERROR), VERB_REBUILD, TASK_REBUILDING, VM_ACTIVE, "rebuild"
)
SNAPSHOT = Action(
    "snapshot",
    "createImage",
    _of(VM_ACTIVE, VM_STOPPED, VM_PAUSED, VM_SUSPENDED),
    VERB_SNAPSHOT,
    TASK_IMAGE_SNAPSHOT,
    event="snapshot",
    unlocked=False,
    makes_image=True,
)
LOCK = Action("lock", "lock", None, event="lock", unlocked=False)
UNLOCK = Action("unlock", "unlock", None, event="unlock", unlocked=False)
RESET_STATE = Action("reset_state", "resetState", None, unlocked=False, administrators=True)
MIGRATE = Action(
    "migrate", "migrate", _of(VM_ACTIVE, VM_STOPPED), vm_state=VM_RESIZED, administrators=True, kind=TASK_MIGRATE
)
RESIZE = Action("resize", "resize", _of(VM_ACTIVE, VM_STOPPED), vm_state=VM_RESIZED, kind=TASK_RESIZE)
CONFIRM_RESIZE = Action("confirm_resize", "confirmResize", _of(VM_RESIZED), kind=TASK_CONFIRM_RESIZE)
REVERT_RESIZE = Action("revert_resize", "revertResize", _of(VM_RESIZED), kind=TASK_REVERT_RESIZE)
LIVE_MIGRATE = Action(
    "live_migrate", "live-migration", _of(VM_ACTIVE), administrators=True, kind=TASK_LIVE_MIGRATE,
    key_said="os-migrateLive",
)  # fmt: skip
EVACUATE = Action("evacuate", "evacuate", _of(VM_ACTIVE, VM_STOPPED, VM_ERROR), administrators=True, kind=TASK_EVACUATE)
SHELVE = Action(
    "shelve",
    "shelve",
    _of(VM_ACTIVE, VM_STOPPED, VM_PAUSED, VM_SUSPENDED),
    vm_state=VM_SHELVED_OFFLOADED,
    kind=TASK_SHELVE,
    kind_here=TASK_SHELVE_HERE,
    makes_image=True,
)
SHELVE_OFFLOAD = Action(
    "shelve_offload",
    "shelveOffload",
    _of(VM_SHELVED),
    vm_state=VM_SHELVED_OFFLOADED,
    administrators=True,
    kind=TASK_SHELVE_OFFLOAD,
)
UNSHELVE = Action(
    "unshelve",
    "unshelve",
    _of(VM_SHELVED, VM_SHELVED_OFFLOADED),
    vm_state=VM_ACTIVE,
    kind=TASK_UNSHELVE,
    kind_here=TASK_UNSHELVE_HERE,
)

SOFT_DELETE = Action(  # what a delete does where servers are reclaimed later
    "soft_delete", "delete", None, VERB_STOP, TASK_SOFT_DELETING, VM_SOFT_DELETED, "soft_delete"
)
RESTORE = Action("restore", "restore", _of(VM_SOFT_DELETED), VERB_START, TASK_RESTORING, VM_ACTIVE, "restore")
DELETE = Action("delete", "delete", None)  # not asked for as an action: it pre-empts every task

ACTIONS: dict[str, Action] = {
    action.key: action
    for action in (
        START, STOP, REBOOT, REBOOT_HARD, PAUSE, UNPAUSE, SUSPEND, RESUME, RESCUE, UNRESCUE, REBUILD, SNAPSHOT, LOCK,
        UNLOCK, RESET_STATE, SOFT_DELETE, RESTORE, MIGRATE, RESIZE, CONFIRM_RESIZE, REVERT_RESIZE, LIVE_MIGRATE,
        EVACUATE, SHELVE, SHELVE_OFFLOAD, UNSHELVE,
    )
}  # fmt: skip


def check_state(action: Action, instance: Instance, *, administrator: bool) -> None:
    """Raises InstanceBusy (InstanceLocked) with Nova's words where the server's state or lock does not allow the
    action, and ActionForbidden where it is not for this caller."""
    if action.administrators and not administrator:
        raise forbidden(action.name, instance)
    if instance.crossing:  # whatever is done to one row would be lost with it
        task_state = instance.task_state or TASK_RESIZE_MIGRATING
        raise InstanceBusy(
            _while(action, instance, "task_state", task_state),
            uuid=instance.uuid, vm_state=instance.vm_state, task_state=task_state,
        )  # fmt: skip
    if action.unlocked and instance.locked and not administrator:
        raise InstanceLocked(
            f"Instance {instance.uuid} is locked",
            uuid=instance.uuid,
            vm_state=instance.vm_state,
            task_state=instance.task_state or "",
        )
    if action.vm_states is None:
        return
    if instance.vm_state not in action.vm_states:
        raise _refused(_while(action, instance, "vm_state", instance.vm_state), instance)
    if instance.task_state is not None:
        raise _refused(_while(action, instance, "task_state", instance.task_state), instance)
    if instance.task_id is not None:  # parked: a host is silent, and who knows what it does
        raise _refused(_while(action, instance, "vm_state", instance.vm_state), instance)
    if (action.verb or action.kind) and instance.launched_at_us is None:
        raise _refused(f"Cannot '{action.name}' instance {instance.uuid} which has never been active", instance)
    if (action.verb or action.kind) and instance.host is None and instance.vm_state != VM_SHELVED_OFFLOADED:
        raise _refused(f"Instance {instance.uuid} is not ready", instance)


def forbidden(name: str, instance: Instance) -> ActionForbidden:
    """Only administrators may do this, in Nova's words."""
    return ActionForbidden(f"Policy doesn't allow {name} to be performed.", uuid=instance.uuid, action=name)


def _while(action: Action, instance: Instance, attribute: str, state: str) -> str:
    name = action.key_said or action.name
    return f"Cannot '{name}' instance {instance.uuid} while it is in {attribute} {state}"


def _refused(message: str, instance: Instance) -> InstanceBusy:
    return InstanceBusy(message, uuid=instance.uuid, vm_state=instance.vm_state, task_state=instance.task_state or "")
