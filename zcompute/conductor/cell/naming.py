"""Which claims and placements nobody names any more: read at the primary, after their commits."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from zcompute.conductor.cell.claims import Named, in_force
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCES, TASKS
from zcompute.objects.instance import Instance
from zcompute.objects.task import Task

N = TypeVar("N", bound=Named)


class Naming:
    """For the sweepers."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def unnamed(self, found: Sequence[N]) -> list[N]:
        """Those that neither the instance's row nor its running task names.

        The attempt's own task is read first, then the instance, then the instance's task: a task that ends meanwhile
        has written the claim in force into the instance before, so no order of events hides one in force.
        """
        if not found:
            return []
        tasks = self._tasks({one.task_id for one in found})
        unnamed = [one for one in found if not in_force(one, None, tasks.get(one.task_id))]
        instances = self._instances({one.instance_uuid for one in unnamed})
        unnamed = [one for one in unnamed if not in_force(one, instances.get(one.instance_uuid), None)]
        present = {one.instance_uuid: instances.get(one.instance_uuid) for one in unnamed}
        tasks = self._tasks({row.task_id for row in present.values() if row is not None and row.task_id})

        def present_task(one: N) -> Task | None:
            instance = present[one.instance_uuid]
            return None if instance is None or instance.task_id is None else tasks.get(instance.task_id)

        return [one for one in unnamed if not in_force(one, None, present_task(one))]

    def _tasks(self, ids: Iterable[str]) -> dict[str, Task]:
        keys = [(task_id,) for task_id in ids]
        return {key[0]: task for key, task in self._store.fetch(TASKS, keys).items()} if keys else {}

    def _instances(self, uuids: Iterable[str]) -> dict[str, Instance]:
        keys = [(uuid,) for uuid in uuids]
        return {key[0]: row for key, row in self._store.fetch(INSTANCES, keys).items()} if keys else {}
