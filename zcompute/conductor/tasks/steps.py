"""Every kind of task and its steps, declared. A conductor never touches a kind or step that is not here."""

from zcompute.conductor.tasks.act import ACT_STEPS
from zcompute.conductor.tasks.build import BUILD_STEPS
from zcompute.conductor.tasks.build_cancel import Cancel
from zcompute.conductor.tasks.delete import DELETE_STEPS
from zcompute.conductor.tasks.moves.steps import MOVES
from zcompute.conductor.tasks.run import Step
from zcompute.objects.task import TASK_ACT, TASK_BUILD, TASK_DELETE, Task

KINDS: dict[str, tuple[Step, ...]] = {
    TASK_BUILD: (*BUILD_STEPS, Cancel()),
    TASK_DELETE: DELETE_STEPS,
    TASK_ACT: ACT_STEPS,
    **MOVES,
}

_BY_NAME: dict[tuple[str, str], Step] = {(kind, step.name): step for kind, steps in KINDS.items() for step in steps}

STEP_NAMES = frozenset(_BY_NAME)
"""Every (kind, step) that this release knows."""


def step_of(task: Task) -> Step | None:
    """The task's present step, None when this release does not know it."""
    return _BY_NAME.get((task.kind, task.step))
