"""Nova's word for how a server is: its status, from vm_state and task_state (nova/api/openstack/common.py)."""

from collections.abc import Iterable

from zcompute.objects.instance import (
    TASK_MIGRATING,
    TASK_REBOOTING,
    TASK_REBOOTING_HARD,
    TASK_REBUILDING,
    TASK_RESIZE_FINISH,
    TASK_RESIZE_MIGRATED,
    TASK_RESIZE_MIGRATING,
    TASK_RESIZE_PREP,
    TASK_RESIZE_REVERTING,
    VM_ACTIVE,
    VM_BUILDING,
    VM_DELETED,
    VM_ERROR,
    VM_PAUSED,
    VM_RESCUED,
    VM_RESIZED,
    VM_SHELVED,
    VM_SHELVED_OFFLOADED,
    VM_SOFT_DELETED,
    VM_STOPPED,
    VM_SUSPENDED,
)

STATUS_DELETED = "DELETED"
STATUS_UNKNOWN = "UNKNOWN"

OF_VM_STATE: dict[str, str] = {
    VM_ACTIVE: "ACTIVE",
    VM_BUILDING: "BUILD",
    VM_STOPPED: "SHUTOFF",
    VM_PAUSED: "PAUSED",
    VM_SUSPENDED: "SUSPENDED",
    VM_RESCUED: "RESCUE",
    VM_RESIZED: "VERIFY_RESIZE",
    VM_SHELVED: "SHELVED",
    VM_SHELVED_OFFLOADED: "SHELVED_OFFLOADED",
    VM_SOFT_DELETED: "SOFT_DELETED",
    VM_ERROR: "ERROR",
    VM_DELETED: STATUS_DELETED,
}
"""While nothing is under way that has a status of its own."""

_RESIZING = (TASK_RESIZE_PREP, TASK_RESIZE_MIGRATING, TASK_RESIZE_MIGRATED, TASK_RESIZE_FINISH)

_OF_TASK_STATE: dict[tuple[str, str], str] = {
    (VM_ACTIVE, TASK_REBOOTING): "REBOOT",
    (VM_ACTIVE, TASK_REBOOTING_HARD): "HARD_REBOOT",
    (VM_ACTIVE, TASK_REBUILDING): "REBUILD",
    (VM_ACTIVE, TASK_MIGRATING): "MIGRATING",
    (VM_STOPPED, TASK_REBUILDING): "REBUILD",
    (VM_PAUSED, TASK_MIGRATING): "MIGRATING",
    (VM_ERROR, TASK_REBUILDING): "REBUILD",
    (VM_RESIZED, TASK_RESIZE_REVERTING): "REVERT_RESIZE",
    **{(vm_state, task): "RESIZE" for vm_state in (VM_ACTIVE, VM_STOPPED) for task in _RESIZING},
}

STATUSES: dict[str, tuple[str, ...]] = {status: (vm_state,) for vm_state, status in OF_VM_STATE.items()}
"""The vm_states behind each status that a list can be asked for. Those that only a task_state has are not among them:
a server that reboots is in the list of ACTIVE ones, as in Nova."""


def status_of(vm_state: str, task_state: str | None) -> str:
    """As clients are shown it."""
    if task_state is not None:
        found = _OF_TASK_STATE.get((vm_state, task_state))
        if found is not None:
            return found
    return OF_VM_STATE.get(vm_state, STATUS_UNKNOWN)


def vm_states_of(statuses: Iterable[str]) -> set[str]:
    """The states behind statuses; one that nobody knows has none, as in Nova."""
    return {state for status in statuses for state in STATUSES.get(status, ())}
