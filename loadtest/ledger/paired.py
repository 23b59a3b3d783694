"""Conductors of several source trees in turn, in the same cell under the same agents: what a change is worth.

    python -m loadtest.ledger.paired [TREE ...] [--agents 1000] [--rounds 3] [--seconds 4] [--rates 100,5000]

The shape is the full run's (4,000 in flight, frames of four from 1,000 agents) with fewer instances, so that seeding
takes seconds. Each round starts the conductors of each tree in turn. CPU microseconds an update by who spent it: the
loop's thread and libzmq's I/O thread of the conductors, in user and system mode; the rest of their threads;
MariaDB; the agents.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Iterable  # noqa: E402
from dataclasses import astuple, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

from loadtest.bus.contender import ROOT  # noqa: E402
from loadtest.ledger.cell import NATIVE, Cell, Writers  # noqa: E402
from loadtest.ledger.measuring import Bench, Measured  # noqa: E402
from loadtest.ledger.readback import read_back  # noqa: E402

INSTANCES = 20_000
BUFFER_POOL_MB = 256
WARM_UP_S = 0.5
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
UTIME, STIME = 11, 12  # fields of /proc/PID/task/TID/stat behind the name


@dataclass(frozen=True)
class Threads:
    """CPU seconds of the conductors so far."""

    loop_user: float = 0.0
    loop_system: float = 0.0
    io_user: float = 0.0
    io_system: float = 0.0
    rest: float = 0.0

    @staticmethod
    def read(pids: Iterable[int]) -> "Threads":
        """As /proc has it."""
        found = dict.fromkeys(("loop_user", "loop_system", "io_user", "io_system", "rest"), 0.0)
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").iterdir():
                name, fields = (task / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
                user, system = (int(fields.split()[at]) / TICKS_A_SECOND for at in (UTIME, STIME))
                kind = "loop" if int(task.name) == pid else "io" if "ZMQbg/IO" in name else "rest"
                if kind == "rest":
                    found["rest"] += user + system
                else:
                    found[f"{kind}_user"] += user
                    found[f"{kind}_system"] += system
        return Threads(**found)

    def us_since(self, before: "Threads", updates: int) -> tuple[float, ...]:
        """Microseconds an update."""
        return tuple((b - a) / updates * 1e6 for a, b in zip(astuple(before), astuple(self), strict=True))


def measure(bench: Bench, tree: Path, seconds: float, rates: list[float]) -> tuple[float, ...]:
    """One round of one tree: updates/s, CPU us of conductors, MariaDB, agents, then those of the threads; prints it."""
    writers = Writers(bench.cell, NATIVE, 2, tree)
    try:
        bench.connect(writers)
        bench.sweep(writers)
        before = Threads.read(process.pid for process in writers.processes)
        found = bench.closed(writers, seconds, WARM_UP_S)
        threads = Threads.read(process.pid for process in writers.processes).us_since(before, found.reports)
        row = (found.updates_per_second, found.conductor_us, found.mariadbd_us, found.agents_us, *threads)
        _tell(tree.name, row, found)
        for rate in rates:
            _tell(f"{tree.name} {rate:g}/s", (), bench.paced(writers, rate, seconds, WARM_UP_S))
        return row
    finally:
        bench.leave(writers)


def _tell(name: str, row: tuple[float, ...], found: Measured) -> None:
    latency = f"p50 {found.p50_ms:.1f} p99 {found.p99_ms:.1f} conductors {found.conductor_us:.1f}"
    print(f"{name:24}", " ".join(f"{value:8.1f}" for value in row), latency, flush=True)


def main() -> int:
    """All rounds; the exit status."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("trees", nargs="*", type=Path, default=[ROOT])
    options.add_argument("--agents", type=int, default=1_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=4.0)
    options.add_argument("--rates", default="", help="paced runs after each, updates a second, by commas")
    given = options.parse_args()
    rates = [float(rate) for rate in given.rates.split(",") if rate]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows: dict[Path, list[tuple[float, ...]]] = {tree.resolve(): [] for tree in given.trees}
    with tempfile.TemporaryDirectory(prefix="zcompute-paired-") as directory:
        bench = Bench(Cell(Path(directory), INSTANCES, given.agents, BUFFER_POOL_MB))
        try:
            bench.cell.start()
            print(f"{'':24} updates/s  conduct mariadbd   agents   loop u   loop s     io u     io s     rest")
            for _ in range(given.rounds):
                for tree, of_tree in rows.items():
                    of_tree.append(measure(bench, tree, given.seconds, rates))
            found = read_back(bench)
        finally:
            bench.cell.stop()
    for tree, of_tree in rows.items():
        medians = [statistics.median(column) for column in zip(*of_tree, strict=True)]
        print(f"{'median ' + tree.name:24}", " ".join(f"{value:8.1f}" for value in medians))
    print(f"lost {found.lost} repeated {found.repeated}")
    return 1 if found.lost or found.repeated else 0


if __name__ == "__main__":
    sys.exit(main())
