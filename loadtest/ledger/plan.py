"""What is measured, in which order, for how long."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtest.ledger.bare_join import BareJoin
from loadtest.ledger.cell import NATIVE, ORM, PORTABLE, SINGLE, Cell, Writers
from loadtest.ledger.measuring import Bench, Measured
from loadtest.ledger.readback import read_back
from loadtest.report import Target

RIVAL_IN_FLIGHT = 1_000
PART_S = 13.0  # what a contender of the quick run and the end may take, on a busy machine
BARE_BATCHES_A_SECOND_MAX = 160
Metrics = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """Sizes and durations. ``rates``: (updates a second, seconds)."""

    instances: int
    agents: int
    rounds: int
    seconds: float
    warm_up_s: float
    bare_s: float
    rates: tuple[tuple[int, float], ...]
    zipf_s: float
    contender_s: float
    single_connections: tuple[int, ...]
    orm_connections: tuple[int, ...]
    buffer_pool_mb: int = 1024
    sizes: tuple[int, ...] = ()
    sizes_rounds: int = 3
    leave_out: frozenset[str] = frozenset()
    run_s_max: float = 0.0  # contenders that would begin too late for it are left out; 0: none is


FULL = Plan(
    instances=200_000, agents=1_000, rounds=3, seconds=6.0, warm_up_s=1.5, bare_s=3.0,
    rates=((5_000, 8.0), (1_000, 6.0), (100, 6.0), (10, 12.0)), zipf_s=5.0, contender_s=4.0,
    single_connections=(2, 4, 8, 16), orm_connections=(2, 4, 8, 16), sizes=(10_000, 1_000_000),
)  # fmt: skip
QUICK = Plan(
    instances=20_000, agents=250, rounds=2, seconds=2.0, warm_up_s=0.3, bare_s=0.8,
    rates=((5_000, 2.0), (1_000, 1.0), (100, 1.0), (10, 2.0)), zipf_s=0.8, contender_s=1.0,
    single_connections=(16,), orm_connections=(8,), buffer_pool_mb=256, leave_out=frozenset({"one"}),
    run_s_max=50.0,
)  # fmt: skip
TINY = Plan(
    instances=1_000, agents=10, rounds=1, seconds=0.5, warm_up_s=0.2, bare_s=0.2,
    rates=((100, 0.5),), zipf_s=0.3, contender_s=0.4, single_connections=(2,), orm_connections=(2,), buffer_pool_mb=64,
)  # fmt: skip

TARGETS = (
    Target("updates_per_second", at_least=10_000),
    Target("coalesced_percent", at_most=5),
    Target("ratio_bare_join", at_least=0.3),
    Target("ratio_portable", at_least=2.2),
    Target("ratio_single_update", at_least=3.5),
    Target("ratio_orm", at_least=10),
    Target("cpu_us_update_conductor", at_most=35),
    Target("cpu_us_update_mariadbd", at_most=60),
    Target("ack_p99_ms_at_5000", at_most=50),
    Target("ack_p50_ms_at_1000", at_most=6),
    Target("ack_p50_ms_at_100", at_most=6),
    Target("ack_p50_ms_at_10", at_most=6),
    Target("lost", at_most=0),
    Target("repeated", at_most=0),
)
TARGETS_FULL = (Target("ratio_rows_1m", at_least=0.75),)


def run(plan: Plan, directory: Path, only: frozenset[str]) -> Metrics:
    """Everything, or the parts named: native, one, portable, single_update, orm, sizes."""
    metrics: Metrics = {}
    began = time.monotonic()
    bench = Bench(Cell(directory / "cell", plan.instances, plan.agents, plan.buffer_pool_mb))
    (directory / "cell").mkdir()
    parts: dict[str, Callable[[Bench, Plan, Metrics], None]] = {
        "native": _native, "one": _one, "portable": _portable, "single_update": _single_update, "orm": _orm,
    }  # fmt: skip
    try:
        print(f"{plan.instances} instances, {plan.agents} agents: seeding")
        bench.cell.start()
        for name, part in parts.items():
            if name not in only and (only or name in plan.leave_out):
                continue
            if plan.run_s_max and time.monotonic() - began > plan.run_s_max - PART_S and name != NATIVE:
                print(f"{name}: left out, {time.monotonic() - began:.0f} s have passed on this machine")
                continue
            part(bench, plan, metrics)
        found = read_back(bench)
    finally:
        bench.cell.stop()
    metrics["instances_read_back"] = found.read
    metrics["updates_acknowledged"] = bench.tally.applied
    metrics["put_off"] = bench.tally.put_off
    metrics["links_lost"] = bench.tally.links_lost
    lost, repeated = found.lost, found.repeated
    if plan.sizes and (not only or "sizes" in only):
        more = _sizes(plan, directory, metrics)
        lost, repeated = lost + more[0], repeated + more[1]
    metrics["lost"], metrics["repeated"] = lost, repeated
    return metrics


def _native(bench: Bench, plan: Plan, metrics: Metrics) -> None:
    writers = Writers(bench.cell, NATIVE, 2)
    bare = BareJoin(bench.cell.target, plan.instances)
    try:
        bench.connect(writers)
        swept = bench.sweep(writers)
        metrics["cold_updates_per_second"] = round(swept.updates_per_second)
        rounds: list[Measured] = []
        bares: list[float] = []
        ratios: list[float] = []
        batches_max = max(2, int(plan.bare_s * BARE_BATCHES_A_SECOND_MAX))
        for _ in range(plan.rounds):
            bares.append(bare.run(plan.bare_s, batches_max)[0])
            rounds.append(_told(NATIVE, bench.closed(writers, plan.seconds, plan.warm_up_s)))
            ratios.append(rounds[-1].updates_per_second / bares[-1])
        metrics["updates_per_second"] = round(_median(rounds, "updates_per_second"))
        metrics["bare_join_rows_per_second"] = round(statistics.median(bares))
        metrics["ratio_bare_join"] = round(statistics.median(ratios), 3)
        metrics["cpu_us_update_conductor"] = round(_median(rounds, "conductor_us"), 1)
        metrics["cpu_us_update_mariadbd"] = round(_median(rounds, "mariadbd_us"), 1)
        metrics["cpu_us_update_agents"] = round(_median(rounds, "agents_us"), 1)
        metrics["ack_p50_ms_at_full_load"] = round(_median(rounds, "p50_ms"), 1)
        metrics["ack_p99_ms_at_full_load"] = round(_median(rounds, "p99_ms"), 1)
        metrics["rows_per_batch"] = round(sum(one.rows for one in rounds) / max(1, sum(one.batches for one in rounds)))
        reports = sum(one.reports for one in rounds)
        metrics["coalesced_percent"] = round(100 * (1 - sum(one.rows for one in rounds) / reports), 2)
        for rate, seconds in plan.rates:
            paced = _told(f"{rate}/s", bench.paced(writers, rate, seconds, plan.warm_up_s))
            metrics[f"ack_p50_ms_at_{rate}"] = round(paced.p50_ms, 2)
            metrics[f"ack_p99_ms_at_{rate}"] = round(paced.p99_ms, 2)
        zipf = _told("zipf", bench.closed(writers, plan.zipf_s, plan.warm_up_s, zipf=True))
        metrics["zipf_reports_per_second"] = round(zipf.updates_per_second)
        metrics["zipf_rows_per_second"] = round(zipf.updates_per_second * zipf.rows / zipf.reports)
    finally:
        bare.close()
        bench.leave(writers)


def _one(bench: Bench, plan: Plan, metrics: Metrics) -> None:
    found = _ours(bench, plan, NATIVE, 1)
    metrics["updates_per_second_one_conductor"] = round(found.updates_per_second)


def _portable(bench: Bench, plan: Plan, metrics: Metrics) -> None:
    found = _ours(bench, plan, PORTABLE, 2)
    metrics["portable_updates_per_second"] = round(found.updates_per_second)
    _ratio(metrics, PORTABLE)


def _ours(bench: Bench, plan: Plan, kind: str, count: int) -> Measured:
    writers = Writers(bench.cell, kind, count)
    try:
        bench.connect(writers)
        bench.sweep(writers)
        return _told(f"{kind}, {count} conductors", bench.closed(writers, plan.contender_s, plan.warm_up_s))
    finally:
        bench.leave(writers)


def _single_update(bench: Bench, plan: Plan, metrics: Metrics) -> None:
    _rival(bench, plan, metrics, SINGLE, plan.single_connections)


def _orm(bench: Bench, plan: Plan, metrics: Metrics) -> None:
    _rival(bench, plan, metrics, ORM, plan.orm_connections)


def _rival(bench: Bench, plan: Plan, metrics: Metrics, kind: str, connections: tuple[int, ...]) -> None:
    writers = Writers(bench.cell, kind, 2)
    try:
        bench.connect(writers)
        best = 0.0
        for count in connections:
            writers.connections(count)
            found = bench.closed(writers, plan.contender_s, plan.warm_up_s, in_flight=RIVAL_IN_FLIGHT)
            _told(f"{kind}, {count} connections", found)
            if found.updates_per_second > best:
                best = found.updates_per_second
                metrics[f"{kind}_updates_per_second"] = round(best)
                metrics[f"{kind}_best_connections"] = count
        _ratio(metrics, kind)
    finally:
        bench.leave(writers)


def _ratio(metrics: Metrics, kind: str) -> None:
    if "updates_per_second" in metrics:
        ratio = metrics["updates_per_second"] / metrics[f"{kind}_updates_per_second"]
        metrics[f"ratio_{kind}"] = round(ratio, 2)


def _sizes(plan: Plan, directory: Path, metrics: Metrics) -> tuple[int, int]:
    """Few and many instances, each in a cell of its own, taken alternately; what was lost and repeated."""
    benches: list[Bench] = []
    writers: list[Writers] = []
    rates: list[list[float]] = [[] for _ in plan.sizes]
    try:
        for size in plan.sizes:
            place = directory / f"cell-{size}"
            place.mkdir()
            print(f"{size} instances: seeding")
            bench = Bench(Cell(place, size, plan.agents, plan.buffer_pool_mb * 2))
            benches.append(bench)
            bench.cell.start()
            writers.append(Writers(bench.cell, NATIVE, 2))
            bench.connect(writers[-1])
        for _ in range(plan.sizes_rounds):
            for at, bench in enumerate(benches):
                found = bench.closed(writers[at], plan.seconds, plan.warm_up_s)
                rates[at].append(_told(f"{plan.sizes[at]} instances", found).updates_per_second)
        lost = [read_back(bench) for bench in benches]
    finally:
        for each, bench in zip(writers, benches, strict=False):
            bench.leave(each)
        for bench in benches:
            bench.cell.stop()
    ratios = [many / few for few, many in zip(rates[0], rates[-1], strict=True)]
    metrics["ratio_rows_1m"] = round(statistics.median(ratios), 3)
    return sum(one.lost for one in lost), sum(one.repeated for one in lost)


def _median(rounds: list[Measured], name: str) -> float:
    return float(statistics.median([getattr(one, name) for one in rounds]))


def _told(what: str, found: Measured) -> Measured:
    print(
        f"{what}: {found.updates_per_second:.0f} updates/s, CPU us an update: conductors {found.conductor_us:.1f}, "
        f"mariadbd {found.mariadbd_us:.1f}, agents {found.agents_us:.1f}; ack p50 {found.p50_ms:.1f} ms, "
        f"p99 {found.p99_ms:.1f} ms",
        flush=True,
    )
    return found
