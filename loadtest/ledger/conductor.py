"""The service `zcompute conductor`, with the history row of the benchmark's mix and its batches counted.

    python -m loadtest.ledger.conductor CONFIG       ("ready" once it works; each line of input: the counts so far)

Notifications are the conductor's own. A history row is written in production with the steps of tasks; here one goes
with each observed transition, through the same hook as the notification.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
from gevent.fileobject import FileObject  # noqa: E402

from loadtest.ledger.world import history_of  # noqa: E402
from zcompute import log as logs  # noqa: E402
from zcompute.conductor import life  # noqa: E402
from zcompute.conductor.cell.role import CellRole  # noqa: E402
from zcompute.conductor.change import Change  # noqa: E402
from zcompute.conductor.env import ConductorEnv  # noqa: E402
from zcompute.conductor.service import ConductorService  # noqa: E402
from zcompute.config import load  # noqa: E402
from zcompute.db.batch import Batch, Update  # noqa: E402
from zcompute.db.native.lane import NativeLane  # noqa: E402
from zcompute.db.portable.lane import PortableLane  # noqa: E402
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, INSTANCES  # noqa: E402


def record_transitions(change: Change) -> None:
    """The history row of every transition that a change makes."""
    for put in list(change.puts.values()):
        if put.table is not INSTANCES or put.former is None or put.image is None:
            continue
        if put.former.power_state != put.image.power_state:
            change.append(INSTANCE_ACTION_EVENTS, history_of(put.image, change.now_us))


class HistoryRole(CellRole):
    """The cell's role, with history rows of transitions."""

    def __init__(self, env: ConductorEnv) -> None:
        super().__init__(env)
        self._bench_ledger = env.ledger

    def start(self) -> None:
        super().start()
        self._bench_ledger.on_decided(record_transitions)


def count(kind: type[Any], counts: dict[str, int]) -> None:
    """Count the batches of a driver's lanes, and the instances' rows in them."""
    commit = kind.commit

    def counted(lane: Any, batch: Batch) -> None:
        commit(lane, batch)
        counts["batches"] += 1
        for change in batch.changes:
            if isinstance(change, Update) and change.table is INSTANCES:
                counts["rows"] += len(change.rows)

    kind.commit = counted


def main() -> None:
    """Serve until SIGTERM."""
    config = load(sys.argv[1])
    logs.setup(config.log, config.service.id)
    counts = {"batches": 0, "rows": 0}
    for kind in (NativeLane, PortableLane):
        count(kind, counts)
    vars(life)["CellRole"] = HistoryRole  # the one place where a life takes its role from
    service = ConductorService(config)
    service.start()
    print("ready", flush=True)
    for _ in FileObject(sys.stdin.buffer):
        print(json.dumps(counts), flush=True)
    while True:
        gevent.sleep(3600)


if __name__ == "__main__":
    main()
