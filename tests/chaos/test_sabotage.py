"""The chaos' checker can fail: with any one safeguard taken out of the services, the same traffic shows it.

One cluster a safeguard; for each seed the fault is done as often as DONE says, and meanwhile the violation must
show. ``make test`` tries SEEDS_SHORT of the five seeds; ZCOMPUTE_SABOTAGE_SEEDS=5 tries all.
"""

import os
import random
import time

import gevent
import pytest

from loadtest.chaos import check
from loadtest.chaos.check import Violation
from loadtest.chaos.cluster import CELL, Cluster
from loadtest.chaos.faults import WHOLE_S, Faults
from loadtest.chaos.run import Plan, run
from tests.cluster.conftest import require_mariadb
from zcompute.cli.exits import CommandError
from zcompute.cli.up.layout import CONDUCTOR, Shape

SEEDS_SHORT = 1
SEEDS = range(1, 1 + int(os.environ.get("ZCOMPUTE_SABOTAGE_SEEDS", str(SEEDS_SHORT))))
DATABASE_KILLS, DATABASE_HELD_S = 3, 0.2  # a batch must be in flight when it dies
BY_HAND = {"fence"}  # a conductor that was stopped mostly learns that its life is over before it sends what it held
DONE = {"stop": 3}  # a conductor that is stopped between two batches shows nothing; other faults are done once
AFTER_S = 1.5  # what a fault has done shows within this
SHAPE = Shape(cells=("c1",), build_ms=200, delete_ms=50)

SHOWN_BY = {
    "fence": ("stop", {check.STALE_WRITER, check.INVERTED, check.LOST}),
    "sequence": ("", {check.REPEATED, check.INVERTED, check.LOST}),
    "outbox": ("agent", {check.LOST}),
    "watermark": ("database", {check.LOST, check.INVERTED}),
    "generation": ("kill", {check.DEAD_OWNER_OBEYED}),
}


def fault_of(cluster: Cluster, name: str, seed: int) -> None:
    """The fault with this seed, and some time for what it does to be seen."""
    faults = Faults(cluster, [], seed, print)
    try:
        if name == "database":
            chance = random.Random(seed)
            for _ in range(DATABASE_KILLS):
                with cluster.batches_held(chance.choice(cluster.members(CONDUCTOR, CELL)), DATABASE_HELD_S):
                    cluster.kill_database(CELL)
                cluster.start_database(CELL)
                cluster.wait_whole(WHOLE_S)
                gevent.sleep(AFTER_S)
        elif name:
            for _ in range(DONE.get(name, 1)):
                faults.once(name)
    except CommandError as error:  # without the safeguard a cluster may well not get whole again
        print(f"seed {seed}: {error}")
    finally:
        faults.close()
    gevent.sleep(AFTER_S)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", SHOWN_BY)
def test_without_a_safeguard_the_traffic_shows_a_violation(kind: str) -> None:
    require_mariadb()
    if kind in BY_HAND and len(SEEDS) == SEEDS_SHORT:
        pytest.skip(f"{kind} shows on some seeds only: ZCOMPUTE_SABOTAGE_SEEDS=5 tries it; the simulation sees it")
    fault, expected = SHOWN_BY[kind]
    windows: list[tuple[float, float]] = []

    def act(cluster: Cluster, _: Faults) -> None:
        for seed in SEEDS:
            began = time.monotonic()
            fault_of(cluster, fault, seed)
            windows.append((began, time.monotonic()))

    plan = Plan(
        (), 0, 1, shape=SHAPE, booters=2, prefix=("tests.chaos.sabotage", kind, "--"), audited=False, sabotaged=True
    )
    violations = run(plan, print, act).violations
    shown = [_within(violations, expected, window) for window in windows]
    print(f"{kind}: {shown} of {len(violations)} violations")
    assert len(shown) == len(SEEDS)
    assert all(shown), f"without {kind} the seeds showed {shown} violations of {sorted(expected)}"


def _within(violations: list[Violation], kinds: set[str], window: tuple[float, float]) -> int:
    begin, end = window
    return sum(violation.kind in kinds and begin <= violation.t <= end for violation in violations)
