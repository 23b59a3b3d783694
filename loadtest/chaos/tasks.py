"""The traffic ``tasks``: servers that are led through actions and moves, deleted in their midst, and evacuated."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from loadtest.chaos.check import Violation, check
from loadtest.chaos.check_tasks import Ended, Tasks, check_tasks, metrics_of_tasks, once_only, reasons
from loadtest.chaos.cluster import Cluster, wait_until
from loadtest.chaos.history import Asked, Event, read_history
from loadtest.chaos.lost_hosts import TaskFaults
from loadtest.chaos.rest import read_all, read_final, rest
from loadtest.chaos.walks import Walks
from loadtest.tasks.hosts import read_lines
from zcompute.api.creation import operation_id_of
from zcompute.cli.exits import CommandError
from zcompute.cli.up.layout import PROJECT_ID, Shape
from zcompute.db.errors import StoreError
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCE_ACTIONS, INSTANCES, TASKS

if TYPE_CHECKING:
    from loadtest.chaos.run import Plan

TRAFFIC = "tasks"
SHAPE = Shape(cells=("c1",), computes=5, hosts_per_compute=1, build_ms=20, delete_ms=20, step_ms=20)
WALKERS = 24
WALKERS_S = 110.0
TASKS_S = 90.0
WARM_UP_S = 2.0
REASONS_SHOWN = 15

Act = Callable[[Cluster, TaskFaults], None]


def live(
    cluster: Cluster, plan: "Plan", said: Callable[[str], None], act: Act | None = None
) -> tuple[list[Violation], dict[str, float]]:
    """The violations, and how much there was. Raises CommandError when the cluster does not come to rest."""
    walks = Walks(cluster, plan.seed)
    faults = TaskFaults(cluster, list(plan.faults), plan.seed, said, walks)
    cluster.wait_whole(WALKERS_S)
    said(f"{plan.walkers} clients")
    walks.walk(plan.walkers)
    time.sleep(WARM_UP_S)
    if act is None:
        faults.run(time.monotonic() + plan.seconds, plan.kills_max)
    else:
        act(cluster, faults)
    walks.stop(WALKERS_S)
    rest(cluster)
    store = cluster.store()
    try:
        _await_tasks(store, said)
        final, tasks = once_only(read_final(store)), _read_tasks(cluster, store)
    finally:
        store.close()
    walks.close()
    faults.close()
    events = read_history(cluster.history)
    ids = _operation_ids(events)
    for reason, count in reasons(events, tasks, ids).most_common(REASONS_SHOWN):
        said(f"{count:5d} {reason}")
    found = [*check(events, final), *check_tasks(events, tasks, ids)]
    return found, metrics_of_tasks(events, tasks, ids)


def _operation_ids(events: list[Event]) -> dict[str, str]:
    asked = [event for event in events if isinstance(event, Asked) and event.key]
    return {event.key: operation_id_of(event.key, PROJECT_ID) for event in asked}


def _await_tasks(store: Store, said: Callable[[str], None]) -> None:
    """What has not ended in time is found by the checks."""
    try:
        wait_until(lambda: not store.scan(TASKS, limit=1), "every task has ended", TASKS_S)
    except (CommandError, StoreError) as error:
        said(str(error))


def _read_tasks(cluster: Cluster, store: Store) -> Tasks:
    tasks = read_all(store, TASKS)
    instances = read_all(store, INSTANCES)
    operations = {
        (row.instance_uuid, row.operation_id): Ended(
            row.action, row.finished_at_us is not None, row.result, row.message
        )
        for row in read_all(store, INSTANCE_ACTIONS)
    }
    return Tasks(
        left=[f"{task.kind} of {task.instance_uuid} is {task.state} in {task.step}" for task in tasks],
        busy=[row.uuid for row in instances if row.task_state is not None and row.task_id is None],
        operations=operations,
        lines=read_lines(cluster.paths.hosts),
    )
