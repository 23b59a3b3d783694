"""The command: many seeds side by side, one seed again, and the smallest plan that still fails."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from tests.simulation.cell.plan import THEMES, Event, Scale, make_plan
from tests.simulation.cell.runner import LIVES_OF_A_CHILD, Life, Outcome, Pool, live, warm_up
from tests.simulation.cell.shrink import shrink

FAILURES_SHOWN_MAX = 10


@dataclass
class Total:
    """Of all seeds run."""

    seeds: int = 0
    digests: dict[int, int] = field(default_factory=dict)
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    commits: int = 0
    acks: int = 0
    commands: int = 0
    failed: list[Outcome] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.digests[outcome.seed] = outcome.digest
        self.virtual_s += outcome.virtual_s
        self.cpu_s += outcome.cpu_s
        self.commits += outcome.commits
        self.acks += outcome.acks
        self.commands += outcome.commands
        self.seen.update(outcome.seen)
        if outcome.failed:
            self.failed.append(outcome)


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    it = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    it.add_argument("--seeds", type=int, default=100, help="how many, from --seed on")
    it.add_argument("--seed", type=int, default=1, help="the first seed")
    it.add_argument("--seconds", type=float, default=5.0, help="virtual seconds with faults, before the rest")
    it.add_argument("--conductors", type=int, default=2)
    it.add_argument("--agents", type=int, default=10)
    it.add_argument("--theme", default="", choices=["", *THEMES], help="of the faults; each seed draws one")
    it.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    it.add_argument("--lives", type=int, default=LIVES_OF_A_CHILD, help="of seeds in one process, one by one")
    it.add_argument("--budget-s", type=float, default=0.0, help="begin no further seed after so long; 0: no limit")
    it.add_argument("--sabotage", default="", help="switch a guard off: see tests/simulation/cell/sabotage.py")
    it.add_argument("--first", action="store_true", help="end at the first failure")
    it.add_argument("--progress-s", type=float, default=0.0, help="say so often how far it is; 0: not at all")
    it.add_argument("--json", default="", help="write what was counted, and each seed's digest, to this file")
    it.add_argument("--keep", default="", help="only these events of the plan, by number: 3,7,12")
    it.add_argument("--shrink", action="store_true", help="find the fewest events with which the first failure stays")
    it.add_argument("--verbose", action="store_true", help="one seed, with its plan and the services' logs")
    return it


def main(arguments: list[str]) -> int:
    """0: nothing was violated."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of strings are walked in the same order in every run
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *arguments])
    given = parser().parse_args(arguments)
    scale = Scale.of(given.seconds, given.conductors, given.agents, given.theme)
    if given.verbose:
        return _one(given.seed, scale, _kept(make_plan(given.seed, scale), given.keep), given.sabotage)
    began_s = monotonic()
    total = Total()
    warm_up()
    seeds = iter(range(given.seed, given.seed + given.seeds))
    pool = Pool(given.jobs, min(given.lives, -(-given.seeds // max(1, given.jobs))))
    said_s = began_s
    for outcome in run_all(seeds, scale, pool, given.keep, given.sabotage, given.budget_s):
        total.add(outcome)
        if given.progress_s and monotonic() - said_s >= given.progress_s:
            said_s = monotonic()
            _progress(total, given.seed, said_s - began_s)
        if outcome.failed and len(total.failed) <= FAILURES_SHOWN_MAX:
            show(outcome, given)
        if outcome.failed and given.first:
            break
    _sum_up(total, monotonic() - began_s)
    if given.json:
        _write(Path(given.json), total)
    if total.failed and given.shrink:
        seed = total.failed[0].seed
        numbers = shrink(seed, scale, given.sabotage)
        print(f"seed {seed} fails with these events alone: --keep {','.join(map(str, numbers))}")
        plan = make_plan(seed, scale)
        print("\n".join(str(plan[number]) for number in numbers))
    return 1 if total.failed else 0


def run_all(
    seeds: Iterator[int], scale: Scale, pool: Pool, keep: str = "", sabotage: str = "", budget_s: float = 0.0
) -> Iterator[Outcome]:
    """The outcomes, as they come."""
    ends_at_s = monotonic() + budget_s if budget_s else float("inf")
    for seed in seeds:
        if monotonic() >= ends_at_s:
            break
        yield from pool.begin(Life(seed, scale, _kept(make_plan(seed, scale), keep), sabotage))
    yield from pool.rest()


def _kept(plan: list[Event], keep: str) -> list[Event]:
    return [plan[int(number)] for number in keep.split(",")] if keep else plan


def show(outcome: Outcome, given: argparse.Namespace) -> None:
    """A failure, and how to see it again."""
    theme = f" --theme {given.theme}" if given.theme else ""
    size = f"--seconds {given.seconds} --conductors {given.conductors} --agents {given.agents}{theme}"
    print(f"seed {outcome.seed} FAILED (again: python -m tests.simulation --seed {outcome.seed} --seeds 1 {size})")
    for text in [*outcome.violations, *outcome.crashes][:5]:
        print(f"  {text}")
    sys.stdout.flush()


def _progress(total: Total, first: int, wall_s: float) -> None:
    """A run that was ended goes on with ``--seed next_seed``: all before are told of."""
    while first in total.digests:
        first += 1
    print(
        f"{datetime.now(UTC):%H:%M:%S} seeds={total.seeds} next_seed={first} failed={len(total.failed)} "
        f"wall_s={wall_s:.0f} cpu_s_per_seed={total.cpu_s / max(1, total.seeds):.4f}",
        flush=True,
    )


def _sum_up(total: Total, wall_s: float) -> None:
    share = max(1, total.seeds)
    pace = total.virtual_s / max(wall_s, 0.001) * 60
    print(
        f"seeds={total.seeds} failed={len(total.failed)} virtual_s={total.virtual_s:.0f} wall_s={wall_s:.1f} "
        f"virtual_s_per_minute={pace:.0f} cpu_s_per_seed={total.cpu_s / share:.4f} "
        f"commits={total.commits} acks={total.acks} commands={total.commands}"
    )
    print("  ".join(f"{name}={count}" for name, count in sorted(total.seen.items())))


def _write(path: Path, total: Total) -> None:
    report = {
        "seeds": total.seeds,
        "virtual_s": total.virtual_s,
        "cpu_s_per_seed": total.cpu_s / max(1, total.seeds),
        "commits": total.commits,
        "seen": dict(total.seen),
        "digests": total.digests,
        "failed": [asdict(outcome) for outcome in total.failed],
    }
    path.write_text(json.dumps(report, indent=1))


def _one(seed: int, scale: Scale, events: list[Event], sabotage: str) -> int:
    for number, event in enumerate(events):
        print(f"{number:3d} {event}")
    outcome = live(seed, scale, events, sabotage, verbose=True)
    print(outcome)
    return 1 if outcome.failed else 0
