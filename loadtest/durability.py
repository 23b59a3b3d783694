"""What durability ``replicated`` costs against ``local``: the same cell, the same servers, by turns.

    python -m loadtest.durability --json d.json [--quick]

The ledger's agents and conductor at their best rate, then at a low one, on a primary and two replicas which all flush
every commit. Both modes replicate; in ``replicated`` each commit waits for one replica besides: the run fails where one
did not, or where one waited in ``local``. A round is one of each, in turn first.
"""

from gevent import monkey

monkey.patch_all()

import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections import defaultdict  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402

from loadtest.bus.contender import cpu_s  # noqa: E402
from loadtest.ledger.cell import NATIVE, Writers  # noqa: E402
from loadtest.ledger.measuring import Bench, Measured  # noqa: E402
from loadtest.ledger.readback import read_back  # noqa: E402
from loadtest.reads.beside import OPTIONS, REPLICAS, ReplicatedCell, Sizes  # noqa: E402
from loadtest.report import parser, publish  # noqa: E402
from zcompute.db.durability import ACKER_OPTIONS, LOCAL, MODES, REPLICATED, SWITCHED_ON  # noqa: E402
from zcompute.db.private_replicas import PrivateReplicas  # noqa: E402

FULL = Sizes(instances=10_000, agents=100, rounds=3, seconds=5.0)
QUICK = replace(FULL, instances=2_000, agents=50, rounds=1, seconds=2.0)
CONDUCTORS = 1
WARM_UP_S = 1.0
ALONE_PER_SECOND, ALONE_S = 100, 3.0  # so few that each change is a batch of its own, mostly
COLUMNS = (
    "updates_per_second", "primary_us", "conductor_us", "replicas_us", "p50_ms", "p99_ms", "alone_p50_ms",
    "alone_p99_ms",
)  # fmt: skip
WAITED = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Rpl_semi_sync_master_yes_tx', 'Rpl_semi_sync_master_no_tx')"


class DurableCell(ReplicatedCell):
    """The ledger's cell in the one mode or the other."""

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        super().__init__(directory, sizes)
        ports = [server.port for server in self.servers.servers]
        self.servers = PrivateReplicas(
            directory / "servers", ports, buffer_pool_mb=sizes.buffer_pool_mb, options=(*OPTIONS, *ACKER_OPTIONS)
        )  # fmt: skip
        self.server = self.servers.primary
        self.durability = LOCAL

    def turn(self, durability: str) -> None:
        """The mode of the conductors that are started from now on."""
        self.durability = durability
        off = ("SET GLOBAL rpl_semi_sync_master_enabled = OFF",)
        self.server.administer(*(SWITCHED_ON if durability == REPLICATED else off))

    def waited(self) -> tuple[int, int]:
        """Commits so far that a replica has acknowledged, and those that went on without."""
        rows = {row["Variable_name"].lower(): int(row["Value"]) for row in self.server.administer(WAITED)}
        return rows["rpl_semi_sync_master_yes_tx"], rows["rpl_semi_sync_master_no_tx"]

    def database_section(self, driver: str) -> dict[str, object]:
        return {**super().database_section(driver), "durability": self.durability}

    def replicas_cpu_s(self) -> float:
        """CPU time of both replicas so far."""
        return sum(cpu_s(replica.pid or 0) for replica in self.servers.replicas)


def measure(directory: Path, sizes: Sizes) -> dict[str, float]:
    """The metrics: the medians of each mode's rounds, and the ratio of the two."""
    cell = DurableCell(directory, sizes)
    bench = Bench(cell)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    try:
        cell.start()
        for number in range(sizes.rounds):
            for durability in MODES if number % 2 == 0 else reversed(MODES):
                found[durability].append(_one(cell, bench, durability, sizes))
        read = read_back(bench)
    finally:
        cell.stop()
    metrics: dict[str, float] = {"lost": read.lost, "repeated": read.repeated}
    for mode in MODES:
        metrics[f"waited_{mode}"] = min(one["waited"] for one in found[mode])
        metrics[f"unwaited_{mode}"] = max(one["unwaited"] for one in found[mode])
    for column in COLUMNS:
        values = {mode: [one[column] for one in found[mode]] for mode in MODES}
        for mode in MODES:
            metrics[f"{column}_{mode}"] = round(statistics.median(values[mode]), 2)
        ratios = [one / other for one, other in zip(values[REPLICATED], values[LOCAL], strict=True)]
        metrics[f"{column}_ratio"] = round(statistics.median(ratios), 3)
        metrics[f"{column}_ratio_min"], metrics[f"{column}_ratio_max"] = round(min(ratios), 3), round(max(ratios), 3)
    return metrics


def _one(cell: DurableCell, bench: Bench, durability: str, sizes: Sizes) -> dict[str, float]:
    cell.turn(durability)
    cell.servers.wait_caught_up()
    writers = Writers(cell, NATIVE, CONDUCTORS)
    try:
        bench.connect(writers)
        waited, unwaited = cell.waited()
        before_s = cell.replicas_cpu_s()
        run: Measured = bench.closed(writers, sizes.seconds, WARM_UP_S)
        cell.servers.wait_caught_up()
        replicas_s = cell.replicas_cpu_s() - before_s
        alone = bench.paced(writers, ALONE_PER_SECOND, ALONE_S, WARM_UP_S)
        waited, unwaited = cell.waited()[0] - waited, cell.waited()[1] - unwaited
    finally:
        bench.leave(writers)
    return {
        "updates_per_second": run.updates_per_second,
        "primary_us": run.mariadbd_us,
        "conductor_us": run.conductor_us,
        "replicas_us": replicas_s / max(1, run.rows) * 1e6,
        "p50_ms": run.p50_ms,
        "p99_ms": run.p99_ms,
        "alone_p50_ms": alone.p50_ms,
        "alone_p99_ms": alone.p99_ms,
        "waited": waited,
        "unwaited": unwaited,
    }


def main() -> int:
    """Run the benchmark; the exit status."""
    given = parser("durability", "What durability replicated costs against local.").parse_args()
    with tempfile.TemporaryDirectory(prefix="zcompute-bench-") as directory:
        metrics = measure(Path(directory), QUICK if given.quick else FULL)
    metrics["replicas"] = REPLICAS
    publish("durability", metrics, given.json)
    lost = metrics["lost"] or metrics["repeated"]
    waited = metrics[f"waited_{REPLICATED}"] and not metrics[f"unwaited_{REPLICATED}"]
    return 0 if waited and not metrics[f"waited_{LOCAL}"] and not lost else 1


if __name__ == "__main__":
    sys.exit(main())
