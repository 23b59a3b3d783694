"""Which steps wait for an agent's word, from whom, and what follows from it. Pure: a table of the walks' decisions."""

from zcompute.conductor.tasks.act_walk import STEP_APPLY, act_ended
from zcompute.conductor.tasks.awaited import Awaited
from zcompute.conductor.tasks.build_walk import STEP_CANCEL, STEP_SPAWN, cancel_ended, spawn_ended
from zcompute.conductor.tasks.delete_walk import STEP_DESTROY, destroy_ended
from zcompute.conductor.tasks.moves.results import MOVES_AWAITED
from zcompute.objects.task import TASK_ACT, TASK_BUILD, TASK_DELETE, Task


def present_host(task: Task) -> list[str]:
    """The host of the attempt under way."""
    return [task.body.host] if task.body.host else []


AWAITED: dict[tuple[str, str], Awaited] = {
    (TASK_BUILD, STEP_SPAWN): Awaited(present_host, spawn_ended),
    (TASK_BUILD, STEP_CANCEL): Awaited(present_host, cancel_ended),
    (TASK_ACT, STEP_APPLY): Awaited(present_host, act_ended),
    (TASK_DELETE, STEP_DESTROY): Awaited(
        lambda task: task.body.named_hosts, destroy_ended, lambda task: task.body.destroyed
    ),
    **MOVES_AWAITED,
}
