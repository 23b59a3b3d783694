"""What is measured, in which order, for how long."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.reads import beside, cells, own, rates
from loadtest.reads.rates import Metrics
from loadtest.reads.scene import scene
from loadtest.report import Target
from zcompute.cli.up.layout import Shape


@dataclass(frozen=True)
class Plan:
    """Sizes and durations."""

    instances: int
    seconds: float
    rows: tuple[int, int]  # few and many
    cells_instances: int
    own_seconds: float
    ledger: beside.Sizes
    parts: tuple[str, ...]


TARGETS = (
    Target("get_per_second", at_least=1_500),
    Target("list_100_per_second", at_least=500),
    Target("detail_100_per_second", at_least=120),
    Target("get_ratio_of_rows", at_least=0.7),
    Target("list_100_ratio_of_rows", at_least=0.7),
    Target("detail_100_ratio_of_rows", at_least=0.7),
    Target("cells_late_ratio", at_most=1.5),
    Target("cells_list_cpu_ratio", at_most=1.3),
    Target("cells_detail_cpu_ratio", at_most=1.3),
    Target("silent_cell_over_deadline_ms", at_most=100),
    Target("own_write_misses", at_most=0),
    Target("row_reads_at_primary_share", at_most=0.05),
    Target("ratio_primary_cpu_under_reads", at_most=1.15),
    Target("ratio_ack_p99_under_reads", at_most=1.15),
    Target("ledger_lost", at_most=0),
    Target("ledger_repeated", at_most=0),
)


def one_cell(replicas: int = 2, api_workers: int = 2) -> Shape:
    """One cell without hosts: nothing but reads happens there."""
    return Shape(cells=("c1",), conductors=1, schedulers=0, computes=0, replicas=replicas, api_workers=api_workers)


def _rates(plan: Plan, directory: Path, metrics: Metrics) -> None:
    with scene(directory, one_cell()) as found:
        found.seed({"c1": range(plan.instances)})
        rates.measure(found, plan.instances, plan.seconds, metrics)


def _million(plan: Plan, directory: Path, metrics: Metrics) -> None:
    """Few rows, then many in the very same databases."""
    with scene(directory, one_cell()) as found:
        few, many = plan.rows
        found.seed({"c1": range(few)})
        rates.measure(found, few, plan.seconds, metrics, f"rows_{few}_")
        began_s = time.monotonic()
        found.seed({"c1": range(few, many)})
        print(f"{many - few} more instances in {time.monotonic() - began_s:.0f} s", flush=True)
        rates.measure(found, many, plan.seconds, metrics, f"rows_{many}_")
    for name in ("get", "list_100", "detail_100"):
        rate = metrics[f"rows_{many}_{name}_per_second"] / metrics[f"rows_{few}_{name}_per_second"]
        metrics[f"{name}_ratio_of_rows"] = round(rate, 2)


def _cells(plan: Plan, directory: Path, metrics: Metrics) -> None:
    cells.measure(directory, plan.cells_instances, plan.seconds, metrics)


def _own(plan: Plan, directory: Path, metrics: Metrics) -> None:
    own.measure(directory, plan.own_seconds, metrics)


def _ledger(plan: Plan, directory: Path, metrics: Metrics) -> None:
    beside.measure(directory, plan.ledger, metrics)


PARTS: dict[str, Callable[[Plan, Path, Metrics], None]] = {
    "rates": _rates, "rows": _million, "cells": _cells, "own": _own, "ledger": _ledger,
}  # fmt: skip

FULL = Plan(
    instances=10_000, seconds=6.0, rows=(10_000, 1_000_000), cells_instances=100_000, own_seconds=30.0,
    ledger=beside.Sizes(instances=20_000, agents=250, rounds=4, seconds=10.0),
    parts=("rates", "rows", "cells", "own", "ledger"),
)  # fmt: skip
QUICK = Plan(
    instances=10_000,
    seconds=2.0,
    rows=(10_000, 100_000),
    cells_instances=20_000,
    own_seconds=8.0,
    ledger=beside.Sizes(instances=2_000, agents=50, rounds=1, seconds=2.0),
    parts=("rates",),
)


def run(plan: Plan, directory: Path, only: Sequence[str]) -> Metrics:
    """The plan's parts, or those named."""
    metrics: Metrics = {}
    for name in only or plan.parts:
        PARTS[name](plan, directory / name, metrics)
    return metrics
