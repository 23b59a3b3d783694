"""What becomes of a task at its deadline. Pure."""

from zcompute.conductor.tasks.build_walk import abandon, no_host_told
from zcompute.conductor.tasks.decision import Decision, park
from zcompute.conductor.tasks.moves.plans import NOTHING_BEGUN, PLANS
from zcompute.conductor.tasks.moves.walk import roll_back
from zcompute.objects.instance import Instance
from zcompute.objects.task import Task


def expire(instance: Instance, task: Task, message: str, now_us: int, ending_s: int) -> Decision:
    """A task that has told no host anything ends; one that waits for a silent host is parked."""
    if no_host_told(task):
        return abandon(instance, task, message, now_us, ending_s)
    if task.kind in PLANS and task.step in NOTHING_BEGUN:
        return roll_back(instance, task, message, now_us, ending_s)
    return park(instance, task, message, now_us)
