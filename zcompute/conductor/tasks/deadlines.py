"""Which deadline every task_state has: behind it the task ends with a fault, or parks while a host is silent. Pure."""

from dataclasses import dataclass

from zcompute.conductor.tasks.moves.plans import PLANS
from zcompute.conductor.tasks.settings import ACT_DEADLINES_S, MOVE_DEADLINES_S, TaskSettings
from zcompute.objects.instance import (
    TASK_DELETING,
    TASK_SCHEDULING,
    TASK_SPAWNING,
)
from zcompute.objects.task import TASK_ACT, TASK_BUILD, TASK_DELETE


@dataclass(frozen=True)
class Deadline:
    """``seconds`` are those of the whole task of this ``kind``, ``setting`` names where they come from."""

    kind: str
    seconds: int
    setting: str


def deadlines(settings: TaskSettings) -> dict[str, tuple[Deadline, ...]]:
    """By task_state; one that several kinds of task set has several."""
    found: dict[str, tuple[Deadline, ...]] = {}

    def add(task_state: str, kind: str, seconds: int, setting: str) -> None:
        found[task_state] = (*found.get(task_state, ()), Deadline(kind, seconds, setting))

    for task_state in (TASK_SCHEDULING, TASK_SPAWNING):
        add(task_state, TASK_BUILD, settings.build_deadline_s, "[conductor] build_deadline_s")
    add(TASK_DELETING, TASK_DELETE, settings.delete_deadline_s, "[conductor] delete_deadline_s")
    for task_state, seconds in ACT_DEADLINES_S.items():
        add(task_state, TASK_ACT, min(seconds, settings.act_deadline_s_max), "ACT_DEADLINES_S")
    for plan in PLANS.values():
        seconds = min(MOVE_DEADLINES_S[plan.kind], settings.move_deadline_s_max)
        for task_state in dict.fromkeys(plan.task_states.values()):
            add(task_state, plan.kind, seconds, "MOVE_DEADLINES_S")
    return found


def deadline_lines() -> list[str]:
    """The rows of the table in docs/operating/tasks.md: the defaults."""
    return [
        f"| {task_state} | {row.kind} | {row.seconds} | `{row.setting}` |"
        for task_state, rows in sorted(deadlines(TaskSettings()).items())
        for row in rows
    ]
