"""What every benchmark shares: its options, its table, its JSON."""

import argparse
from dataclasses import dataclass

from rich.console import Console

from zcompute.cli.up.report import show_metrics, write_json

QUICK_S_MAX = 50


@dataclass(frozen=True)
class Target:
    """What a metric has to reach: ``at_least`` or ``at_most`` a value."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    def missed_by(self, metrics: dict[str, float]) -> str:
        """A sentence when the metric misses its target, "" when it reaches it."""
        value = metrics[self.metric]
        if self.at_least is not None and value < self.at_least:
            return f"{self.metric} is {value:g}, expected at least {self.at_least:g}"
        if self.at_most is not None and value > self.at_most:
            return f"{self.metric} is {value:g}, expected at most {self.at_most:g}"
        return ""


def parser(name: str, what: str) -> argparse.ArgumentParser:
    """The options of all benchmarks: --json, --quick."""
    made = argparse.ArgumentParser(prog=f"python -m loadtest.{name}", description=what)
    made.add_argument("--json", metavar="FILE", help="write the metrics to this file")
    made.add_argument("--quick", action="store_true", help=f"a shorter run, at most {QUICK_S_MAX} s in all")
    return made


def publish(name: str, metrics: dict[str, float], json_path: str | None, targets: tuple[Target, ...] = ()) -> bool:
    """Print the table, write the JSON; True when every target is reached (those missed are named)."""
    show_metrics(Console(), name, metrics)
    if json_path:
        write_json(json_path, name, metrics)
    missed = [text for text in (target.missed_by(metrics) for target in targets) if text]
    for text in missed:
        print(f"target missed: {text}")
    return not missed
