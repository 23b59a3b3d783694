"""Which move has which steps, in which order, and what undoes a step. Pure: from here come code, tests and docs.

Up to the switch a move that cannot go on is rolled back: the undos of its steps, the last first, then ``rolled_back``.
From the switch on it goes forward only. What a shelved server has instead of a switch is its image.
"""

from dataclasses import dataclass, field

from zcompute.objects.instance import (
    TASK_MIGRATING,
    TASK_REBUILDING,
    TASK_RESIZE_CONFIRMING,
    TASK_RESIZE_FINISH,
    TASK_RESIZE_MIGRATED,
    TASK_RESIZE_MIGRATING,
    TASK_RESIZE_PREP,
    TASK_RESIZE_REVERTING,
    TASK_SHELVING,
    TASK_SHELVING_OFFLOADING,
    TASK_UNSHELVING,
    VM_ACTIVE,
    VM_RESIZED,
    VM_SHELVED,
    VM_SHELVED_OFFLOADED,
)
from zcompute.objects.task import (
    TASK_CONFIRM_RESIZE,
    TASK_EVACUATE,
    TASK_EXPORT,
    TASK_IMPORT,
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
)

STEP_SCHEDULE = "schedule"
STEP_CLAIM = "claim"
STEP_PREPARE = "prepare"
STEP_SEND = "send"
STEP_MIGRATE = "migrate"
STEP_REACH = "reach"
STEP_CHECK_FENCE = "check_fence"
STEP_HOLD = "hold"
STEP_SENT = "sent"
STEP_PREPARED = "prepared"
STEP_SWITCH = "switch"
STEP_SWITCH_BACK = "switch_back"
STEP_ACTIVATE = "activate"
STEP_GRANT = "grant"
STEP_SPAWN = "spawn"
STEP_POWER_OFF = "power_off"
STEP_CLEAN_SOURCE = "clean_source"
STEP_CLEAN_DESTINATION = "clean_destination"
STEP_REOPEN = "reopen"
STEP_FINISH = "finish"
STEP_SHUT_DOWN = "shut_down"
STEP_SNAPSHOT = "snapshot"
STEP_LEAVE = "leave"
STEP_POWER_ON = "power_on"
STEP_BUILD = "build"
STEP_UNDO_SEND = "undo_send"
STEP_UNDO_PREPARE = "undo_prepare"
STEP_UNDO_SHUT_DOWN = "undo_shut_down"
STEP_UNDO_BUILD = "undo_build"
STEP_ROLLED_BACK = "rolled_back"

UNDO = {
    STEP_SEND: STEP_UNDO_SEND,
    STEP_PREPARE: STEP_UNDO_PREPARE,
    STEP_SHUT_DOWN: STEP_UNDO_SHUT_DOWN,
    STEP_BUILD: STEP_UNDO_BUILD,
}
"""What undoes a step. A live migration that has failed has changed nothing at its source."""
NOTHING_BEGUN = frozenset({STEP_SCHEDULE, STEP_CLAIM, STEP_REACH, STEP_CHECK_FENCE})
"""Steps before which, and in which, no host has been told to do anything."""
AT_SOURCE = frozenset(
    {
        STEP_SEND, STEP_MIGRATE, STEP_CLEAN_SOURCE, STEP_REOPEN, STEP_UNDO_SEND, STEP_SHUT_DOWN, STEP_SNAPSHOT,
        STEP_POWER_ON, STEP_UNDO_SHUT_DOWN,
    }
)  # fmt: skip
"""Steps at the host that the move leaves; all others that command a host are at the one it goes to."""
AWAIT_ROOT = frozenset({STEP_HOLD, STEP_SENT, STEP_PREPARED})
"""Steps that end with a word of the root, which alone knows what the other cell has done."""


@dataclass(frozen=True)
class Plan:
    """One kind of move. ``task_states``: the server's from a step on. ``events`` are told when a step has ended (BEGIN:
    when the move is accepted).

    ``leaves_copy``: the source keeps its stopped copy and its claim until the move is confirmed or reverted.
    ``vm_state`` at its end, "": that of before.
    """

    kind: str
    steps: tuple[str, ...]
    task_states: dict[str, str] = field(default_factory=dict)
    events: dict[str, tuple[str, ...]] = field(default_factory=dict)
    leaves_copy: bool = False
    vm_state: str = ""

    def after(self, step: str) -> str:
        """The step that follows."""
        return self.steps[self.steps.index(step) + 1]

    def task_state(self, step: str) -> str:
        """The server's task_state in a step: that of the nearest step before it which names one."""
        known = ""
        for name in self.steps:
            known = self.task_states.get(name, known)
            if step in (name, UNDO.get(name)):
                break
        return known

    def undos(self, step: str) -> list[str]:
        """What is to be undone when the move ends in ``step``, which may be half done (an undo is done), in order."""
        by_undo = {undo: name for name, undo in UNDO.items()}
        reached = self.steps.index(by_undo.get(step, step))
        done = self.steps[: reached if step in by_undo else reached + 1]
        return [UNDO[name] for name in reversed(done) if name in UNDO]

    @property
    def revocable(self) -> tuple[str, ...]:
        """The steps from which there is a way back: those before the switch (an export's is the root's), or up to the
        one by which it is done."""
        for last in (STEP_SNAPSHOT, STEP_POWER_ON):
            if last in self.steps:
                return self.steps[: self.steps.index(last) + 1]
        if STEP_SWITCH in self.steps:
            return self.steps[: self.steps.index(STEP_SWITCH)]
        return self.steps[: self.steps.index(STEP_CLEAN_SOURCE)] if UNDO.keys() & set(self.steps) else ()

    @property
    def all_steps(self) -> tuple[str, ...]:
        """With those of the way back."""
        back = [UNDO[name] for name in reversed(self.steps) if name in UNDO]
        return (*self.steps, *back, *([STEP_ROLLED_BACK] if self.revocable else []))


_COLD = (STEP_SCHEDULE, STEP_CLAIM, STEP_REACH, STEP_PREPARE, STEP_SEND, STEP_SWITCH, STEP_ACTIVATE, STEP_FINISH)
BEGIN = "begin"
_COLD_STATES = {
    STEP_SCHEDULE: TASK_RESIZE_PREP,
    STEP_SEND: TASK_RESIZE_MIGRATING,
    STEP_SWITCH: TASK_RESIZE_MIGRATED,
    STEP_ACTIVATE: TASK_RESIZE_FINISH,
}


def _phases(name: str, failed: str = "") -> dict[str, tuple[str, ...]]:
    """``start`` and ``end`` of an action, and how it is told that it failed."""
    events: dict[str, tuple[str, ...]] = {
        BEGIN: (f"instance.{name}.start",),
        STEP_FINISH: (f"instance.{name}.end",),
    }
    if failed:
        events[STEP_ROLLED_BACK] = (f"instance.{name}.{failed}",)
    return events


PLANS: dict[str, Plan] = {
    plan.kind: plan
    for plan in (
        Plan(TASK_MIGRATE, _COLD, _COLD_STATES, _phases("resize", "error"), True, VM_RESIZED),
        Plan(TASK_RESIZE, _COLD, _COLD_STATES, _phases("resize", "error"), True, VM_RESIZED),
        Plan(
            TASK_LIVE_MIGRATE,
            (STEP_SCHEDULE, STEP_CLAIM, STEP_REACH, STEP_PREPARE, STEP_MIGRATE, STEP_SWITCH, STEP_GRANT, STEP_FINISH),
            {STEP_SCHEDULE: TASK_MIGRATING},
            {
                BEGIN: ("instance.live_migration_pre.start",),
                STEP_PREPARE: ("instance.live_migration_pre.end",),
                STEP_SWITCH: ("instance.live_migration_post.start",),
                STEP_FINISH: ("instance.live_migration_post.end",),
                STEP_ROLLED_BACK: ("instance.live_migration_rollback.start", "instance.live_migration_rollback.end"),
            },
        ),
        Plan(
            TASK_EVACUATE,
            (
                STEP_SCHEDULE,
                STEP_CLAIM,
                STEP_REACH,
                STEP_CHECK_FENCE,
                STEP_SWITCH,
                STEP_SPAWN,
                STEP_POWER_OFF,
                STEP_FINISH,
            ),
            {STEP_SCHEDULE: TASK_REBUILDING},
            {BEGIN: ("instance.evacuate",)},
        ),
        Plan(
            TASK_EXPORT,
            (STEP_HOLD, STEP_SEND, STEP_SENT, STEP_CLEAN_SOURCE, STEP_FINISH),
            {STEP_HOLD: TASK_RESIZE_PREP, STEP_SEND: TASK_RESIZE_MIGRATING, STEP_SENT: TASK_RESIZE_MIGRATED},
            {BEGIN: ("instance.resize.start",), STEP_ROLLED_BACK: ("instance.resize.error",)},
        ),
        Plan(
            TASK_IMPORT,
            (
                STEP_SCHEDULE,
                STEP_CLAIM,
                STEP_PREPARE,
                STEP_PREPARED,
                STEP_SWITCH,
                STEP_ACTIVATE,
                STEP_FINISH,
            ),
            {STEP_SCHEDULE: TASK_RESIZE_PREP, STEP_SWITCH: TASK_RESIZE_MIGRATED, STEP_ACTIVATE: TASK_RESIZE_FINISH},
            {STEP_FINISH: ("instance.resize.end",)},
        ),
        Plan(
            TASK_CONFIRM_RESIZE,
            (STEP_CLEAN_SOURCE, STEP_FINISH),
            {STEP_CLEAN_SOURCE: TASK_RESIZE_CONFIRMING},
            _phases("resize_confirm"),
        ),
        Plan(
            TASK_REVERT_RESIZE,
            (STEP_CLEAN_DESTINATION, STEP_SWITCH_BACK, STEP_REOPEN, STEP_FINISH),
            {STEP_CLEAN_DESTINATION: TASK_RESIZE_REVERTING},
            _phases("resize_revert"),
        ),
        Plan(
            TASK_SHELVE,
            (STEP_SHUT_DOWN, STEP_SNAPSHOT, STEP_CLEAN_SOURCE, STEP_LEAVE, STEP_FINISH),
            {STEP_SHUT_DOWN: TASK_SHELVING, STEP_CLEAN_SOURCE: TASK_SHELVING_OFFLOADING},
            {
                BEGIN: ("instance.shelve.start",),
                STEP_SNAPSHOT: ("instance.shelve.end", "instance.shelve_offload.start"),
                STEP_FINISH: ("instance.shelve_offload.end",),
            },
            vm_state=VM_SHELVED_OFFLOADED,
        ),
        Plan(
            TASK_SHELVE_HERE,
            (STEP_SHUT_DOWN, STEP_SNAPSHOT, STEP_FINISH),
            {STEP_SHUT_DOWN: TASK_SHELVING},
            _phases("shelve"),
            vm_state=VM_SHELVED,
        ),
        Plan(
            TASK_SHELVE_OFFLOAD,
            (STEP_CLEAN_SOURCE, STEP_LEAVE, STEP_FINISH),
            {STEP_CLEAN_SOURCE: TASK_SHELVING_OFFLOADING},
            _phases("shelve_offload"),
            vm_state=VM_SHELVED_OFFLOADED,
        ),
        Plan(
            TASK_UNSHELVE,
            (STEP_SCHEDULE, STEP_CLAIM, STEP_BUILD, STEP_SWITCH, STEP_GRANT, STEP_FINISH),
            {STEP_SCHEDULE: TASK_UNSHELVING},
            _phases("unshelve"),
            vm_state=VM_ACTIVE,
        ),
        Plan(
            TASK_UNSHELVE_HERE,
            (STEP_POWER_ON, STEP_FINISH),
            {STEP_POWER_ON: TASK_UNSHELVING},
            _phases("unshelve"),
            vm_state=VM_ACTIVE,
        ),
    )
}


def host_of_step(task: Task) -> str:
    """The host that the task's present step commands."""
    return (task.body.source if task.step in AT_SOURCE else task.body.host) or ""
