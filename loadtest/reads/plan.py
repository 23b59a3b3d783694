"""What is measured, in which order, for how long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.reads import rates
from loadtest.reads.rates import Metrics
from loadtest.reads.scene import scene
from loadtest.report import Target
from zcompute.cli.up.layout import Shape


@dataclass(frozen=True)
class Plan:
    """Sizes and durations."""

    instances: int
    seconds: float
    parts: tuple[str, ...]


TARGETS = (
    Target("get_per_second", at_least=1_500),
    Target("list_100_per_second", at_least=500),
    Target("detail_100_per_second", at_least=120),
)


def one_cell(replicas: int = 2, api_workers: int = 2) -> Shape:
    """One cell without hosts: nothing but reads happens there."""
    return Shape(cells=("c1",), conductors=1, schedulers=0, computes=0, replicas=replicas, api_workers=api_workers)


def _rates(plan: Plan, directory: Path, metrics: Metrics) -> None:
    with scene(directory, one_cell()) as found:
        found.seed({"c1": range(plan.instances)})
        rates.measure(found, plan.instances, plan.seconds, metrics)


PARTS: dict[str, Callable[[Plan, Path, Metrics], None]] = {"rates": _rates}

FULL = Plan(instances=10_000, seconds=6.0, parts=tuple(PARTS))
QUICK = Plan(instances=10_000, seconds=2.0, parts=("rates",))


def run(plan: Plan, directory: Path, only: Sequence[str]) -> Metrics:
    """The plan's parts, or those named."""
    metrics: Metrics = {}
    for name in only or plan.parts:
        PARTS[name](plan, directory / name, metrics)
    return metrics
