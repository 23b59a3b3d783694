"""``--kill-conductor``: one conductor of every cell loses its life in the middle of its work.

What is in flight is read where it is journaled: build requests in the root's database, tasks in a cell's.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import gevent
from gevent.pool import Group

from zcompute.cli.up.boots import Booter
from zcompute.cli.up.layout import PROJECT_ID
from zcompute.cli.up.region import Region
from zcompute.db.drivers import open_store
from zcompute.db.store import Store
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
    stores = {cell: open_store(region.primary_url(cell)) for cell in region.cells}
    hunts = Group()
    try:
        while booter.share_done < SHARE_FIRST:
            gevent.sleep(LOOK_S)
        for cell, store in stores.items():
            hunts.start(gevent.Greenlet(_kill_one, region, booter, cell, store, said))
        return [hunt.get() for hunt in list(hunts)]
    finally:
        hunts.kill()
        for store in stores.values():
            store.close()


def _kill_one(region: Region, booter: Booter, cell: str, store: Store, said: Callable[[str], None]) -> Victim:
    in_flight, service_id = _busiest(region, booter, cell, store)
    victim = Victim(service_id, region.kill(service_id), in_flight)
    said(
        f"killed {victim.service_id} (pid {victim.pid}) of cell {cell} at {booter.share_done:.0%} of the boots, "
        f"with {victim.in_flight} under way in its partitions"
    )
    return victim


def _busiest(region: Region, booter: Booter, cell: str, store: Store) -> tuple[int, str]:
    """The living conductor with most work under way, as soon as one has any; how much, and its service id."""
    while True:
        work = work_in_flight(store, cell, booter.under_way)
        living = region.conductors(cell)
        busy = [(count, service_id) for service_id, count in work.items() if service_id in living and count]
        if busy:
            return max(busy)
        if booter.share_done >= SHARE_LAST:
            return 0, living[0]
        gevent.sleep(LOOK_S)
