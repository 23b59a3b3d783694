"""What follows from an agent's word on a move's step. Pure: rows for zcompute.conductor.tasks.results."""

from zcompute.conductor.tasks.awaited import Awaited, Ended
from zcompute.conductor.tasks.moves import shelving, walk
from zcompute.conductor.tasks.moves.plans import (
    PLANS,
    STEP_ACTIVATE,
    STEP_BUILD,
    STEP_CLEAN_DESTINATION,
    STEP_CLEAN_SOURCE,
    STEP_MIGRATE,
    STEP_POWER_OFF,
    STEP_POWER_ON,
    STEP_PREPARE,
    STEP_REOPEN,
    STEP_SEND,
    STEP_SHUT_DOWN,
    STEP_SNAPSHOT,
    STEP_SPAWN,
    STEP_UNDO_BUILD,
    STEP_UNDO_PREPARE,
    STEP_UNDO_SEND,
    STEP_UNDO_SHUT_DOWN,
    host_of_step,
)
from zcompute.objects.task import Task

ENDED: dict[str, Ended] = {
    STEP_PREPARE: walk.prepared,
    STEP_SEND: walk.left,
    STEP_MIGRATE: walk.left,
    STEP_ACTIVATE: walk.arrived,
    STEP_SPAWN: walk.arrived,
    STEP_POWER_OFF: walk.arrived,
    STEP_REOPEN: walk.arrived,
    STEP_CLEAN_SOURCE: walk.cleaned,
    STEP_CLEAN_DESTINATION: walk.cleaned,
    STEP_UNDO_SEND: walk.undo_ended,
    STEP_UNDO_PREPARE: walk.undo_ended,
    STEP_SHUT_DOWN: shelving.first_step_ended,
    STEP_POWER_ON: shelving.first_step_ended,
    STEP_SNAPSHOT: shelving.snapshot_ended,
    STEP_BUILD: walk.prepared,
    STEP_UNDO_SHUT_DOWN: walk.undo_ended,
    STEP_UNDO_BUILD: walk.undo_ended,
}


def _host(task: Task) -> list[str]:
    return [host_of_step(task)]


MOVES_AWAITED: dict[tuple[str, str], Awaited] = {
    (kind, step): Awaited(_host, ENDED[step])
    for kind, plan in PLANS.items()
    for step in plan.all_steps
    if step in ENDED
}
