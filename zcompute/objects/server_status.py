"""Nova's word for how a server is: its status, from vm_state and task_state (nova/api/openstack/common.py)."""

from collections.abc import Iterable
from dataclasses import dataclass

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

_UPDATING_PASSWORD = "updating_password"  # no task of this release sets it; a list by it is empty

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
    (VM_ACTIVE, _UPDATING_PASSWORD): "PASSWORD",
    (VM_STOPPED, TASK_REBUILDING): "REBUILD",
    (VM_PAUSED, TASK_MIGRATING): "MIGRATING",
    (VM_ERROR, TASK_REBUILDING): "REBUILD",
    (VM_RESIZED, TASK_RESIZE_REVERTING): "REVERT_RESIZE",
    **{(vm_state, task): "RESIZE" for vm_state in (VM_ACTIVE, VM_STOPPED) for task in _RESIZING},
}

STATUSES = frozenset((*OF_VM_STATE.values(), *_OF_TASK_STATE.values()))
"""Those that a list can be asked for."""


@dataclass(frozen=True)
class States:
    """What a list by status looks for: one of these vm_states, and one of these task_states (None: any or none)."""

    vm_states: frozenset[str]
    task_states: frozenset[str] | None

    def hold(self, vm_state: str, task_state: str | None) -> bool:
        """Whether a server in these states is found."""
        return vm_state in self.vm_states and (self.task_states is None or task_state in self.task_states)


def status_of(vm_state: str, task_state: str | None) -> str:
    """As clients are shown it."""
    if task_state is not None:
        found = _OF_TASK_STATE.get((vm_state, task_state))
        if found is not None:
            return found
    return OF_VM_STATE.get(vm_state, STATUS_UNKNOWN)


def states_of(statuses: Iterable[str]) -> States:
    """The states behind statuses; one that nobody knows has none.

    As Nova's task_and_vm_state_from_status: where one of the statuses is that of a vm_state, task_states are not looked
    at, so the list of ACTIVE servers has those that reboot.
    """
    wanted = set(statuses)
    at_rest = {vm_state for vm_state, status in OF_VM_STATE.items() if status in wanted}
    pairs = [pair for pair, status in _OF_TASK_STATE.items() if status in wanted]
    vm_states = frozenset(at_rest.union(vm_state for vm_state, _ in pairs))
    return States(vm_states, None if at_rest else frozenset(task_state for _, task_state in pairs))
