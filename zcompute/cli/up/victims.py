"""``--kill-conductor``: one conductor of every cell loses its life in the middle of its work.

What is in flight is read where it is journaled: build requests in the root's database, tasks in a cell's.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import gevent

from zcompute.cli.up.boots import Booter
from zcompute.cli.up.layout import PROJECT_ID
from zcompute.cli.up.region import Region
from zcompute.db.store import Store, open_store
from zcompute.db.tables import TASKS
from zcompute.objects.cell import ROOT_CELL

SHARE_FIRST = 0.30
SHARE_LAST = 0.65
LOOK_S = 0.01
TASKS_MAX = 500


@dataclass(frozen=True)
class Victim:
    """A conductor that was killed, and how much of its work was under way."""

    service_id: str
    pid: int
    in_flight: int


def work_in_flight(store: Store, cell: str, under_way: list[str]) -> Counter[str]:
    """How much of what is under way each conductor of a cell has: its tasks; in the root, all of the project's."""
    owners = store.read_map().partition_map()
    if cell == ROOT_CELL:
        return Counter({owners.owner_of(PROJECT_ID): len(under_way)})
    tasks = store.scan(TASKS, limit=TASKS_MAX)
    return Counter(owners.owner_of(task.instance_uuid) for task in tasks)


def kill_when_busy(region: Region, booter: Booter, said: Callable[[str], None]) -> list[Victim]:
    """Wait until 30 % of the boots are done, then kill in every cell the conductor with most work under way.

    From 65 % on a victim is taken even if no work of its own can be seen at this moment, so that all are dead by 70 %.
    """
    stores = {cell: open_store(region.database_url(cell)) for cell in region.cells}
    victims: list[Victim] = []
    try:
        while booter.share_done < SHARE_FIRST:
            gevent.sleep(LOOK_S)
        for cell, store in stores.items():
            victims.append(_kill_one(region, booter, cell, store))
            said(
                f"killed {victims[-1].service_id} (pid {victims[-1].pid}) of cell {cell} at "
                f"{booter.share_done:.0%} of the boots, with {victims[-1].in_flight} under way in its partitions"
            )
    finally:
        for store in stores.values():
            store.close()
    return victims


def _kill_one(region: Region, booter: Booter, cell: str, store: Store) -> Victim:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        work = work_in_flight(store, cell, booter.under_way)
        living = region.conductors(cell)
        busy = [(count, service_id) for service_id, count in work.items() if service_id in living and count]
        if busy:
            in_flight, service_id = max(busy)
            return Victim(service_id, region.kill(service_id), in_flight)
        if booter.share_done >= SHARE_LAST:
            return Victim(living[0], region.kill(living[0]), 0)
        gevent.sleep(LOOK_S)
    raise TimeoutError(f"no conductor of cell {cell} had work under way")
