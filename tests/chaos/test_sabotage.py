"""The chaos' checker can fail: with any one safeguard taken out of the services, the same traffic shows it.

One cluster a safeguard; for each seed the fault is done as often as DONE says, and meanwhile the violation must
show. ``make test`` tries SEEDS_SHORT of the five seeds; ZCOMPUTE_SABOTAGE_SEEDS=5 tries all.
"""

import os
import random
import signal
import time

import gevent
import pytest

from loadtest.chaos import check
from loadtest.chaos.check import Violation
from loadtest.chaos.cluster import CELL, Cluster, wait_until
from loadtest.chaos.faults import WHOLE_S, Faults
from loadtest.chaos.run import Plan, run
from tests.chaos.sabotage import stop_file
from tests.cluster.conftest import require_mariadb
from zcompute.cli.exits import CommandError
from zcompute.cli.up.layout import CONDUCTOR, Shape

SEEDS_SHORT = 1
SEEDS = range(1, 1 + int(os.environ.get("ZCOMPUTE_SABOTAGE_SEEDS", str(SEEDS_SHORT))))
DATABASE_KILLS = 2
BURST_S = 0.15  # the agents speak for so long, meanwhile batches are held
SETTLED_S = 0.3
ZOMBIE_HELD_S = 0.08  # batches gather for so long before one is decided and not sent
ZOMBIE_NEWER_S = 0.5  # the new owner takes newer reports for so long before the old one goes on
ZOMBIE_S = 10.0
NO_FAULT_S = 2.5  # late repeats come all the time
AFTER_S = 1.0  # what a fault has done shows within this: five looks of a reader
KEPT = 40
SHAPE = Shape(cells=("c1",), computes=1, hosts_per_compute=2, build_ms=200, delete_ms=50)

SHOWN_BY = {
    "fence": ("zombie", {check.STALE_WRITER, check.INVERTED, check.LOST}),
    "sequence": ("", {check.REPEATED, check.INVERTED, check.LOST}),
    "outbox": ("agent", {check.LOST}),
    "watermark": ("database", {check.LOST, check.INVERTED}),
    "generation": ("kill", {check.DEAD_OWNER_OBEYED}),
}


def zombie(cluster: Cluster, victim: str) -> None:
    """A conductor decides a batch and is stopped before it sends it; when it goes on, others have taken over, and have
    acknowledged newer reports of the same instances. Nothing newer comes while what it has done is looked at."""
    former = cluster.incarnations()[victim]
    stop = stop_file(cluster.paths.config(victim))
    with cluster.batches_held(victim, ZOMBIE_HELD_S):
        stop.touch()
    wait_until(lambda: not stop.exists(), f"{victim} has stopped itself", ZOMBIE_S)
    wait_until(lambda: former not in cluster.incarnations().values(), "others have taken over", ZOMBIE_S)
    gevent.sleep(ZOMBIE_NEWER_S)
    cluster.pause()
    gevent.sleep(SETTLED_S)
    cluster.kill(victim, signal.SIGCONT)
    gevent.sleep(AFTER_S)
    cluster.go_on()
    cluster.wait_whole(WHOLE_S)


def database_away(cluster: Cluster, victim: str) -> None:
    """The database is killed with batches in flight that are the last word on their instances: the agents had said
    nothing for a while, and say nothing more once these are on their way. Anything newer would cover what is lost."""
    for _ in range(DATABASE_KILLS):
        cluster.pause()
        gevent.sleep(SETTLED_S)
        gevent.spawn_later(BURST_S, cluster.pause)
        cluster.go_on()
        with cluster.batches_held(victim, BURST_S):
            cluster.kill_database(CELL)
        cluster.start_database(CELL)
        cluster.wait_whole(WHOLE_S)
        gevent.sleep(AFTER_S)
        cluster.go_on()


OWN_FAULTS = {"zombie": zombie, "database": database_away}


def fault_of(cluster: Cluster, name: str, seed: int) -> None:
    """The fault with this seed, and some time for what it does to be seen."""
    faults = Faults(cluster, [], seed, print)
    try:
        if name in OWN_FAULTS:
            OWN_FAULTS[name](cluster, random.Random(seed).choice(cluster.members(CONDUCTOR, CELL)))
        elif name:
            faults.once(name)
        else:
            gevent.sleep(NO_FAULT_S)
    except CommandError as error:  # without the safeguard a cluster may well not get whole again
        print(f"seed {seed}: {error}")
    finally:
        faults.close()
        cluster.go_on()
    gevent.sleep(AFTER_S)


def sabotaged(kind: str, fault: str) -> tuple[list[tuple[float, float]], list[Violation]]:
    """For each seed the time of its fault, and every violation of the run."""
    windows: list[tuple[float, float]] = []

    def act(cluster: Cluster, _: Faults) -> None:
        for seed in SEEDS:
            began = time.monotonic()
            fault_of(cluster, fault, seed)
            windows.append((began, time.monotonic()))

    prefix = ("tests.chaos.sabotage", kind, "--")
    plan = Plan((), 0, 1, kept=KEPT, shape=SHAPE, prefix=prefix, audited=False, sabotaged=True)
    return windows, run(plan, print, act).violations


@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", SHOWN_BY)
def test_without_a_safeguard_the_traffic_shows_a_violation(kind: str) -> None:
    require_mariadb()
    fault, expected = SHOWN_BY[kind]
    windows, violations = sabotaged(kind, fault)
    shown = [_within(violations, expected, window) for window in windows]
    print(f"{kind}: {shown} of {len(violations)} violations")
    assert len(shown) == len(SEEDS)
    assert all(shown), f"without {kind} the seeds showed {shown} violations of {sorted(expected)}"


@pytest.mark.timeout(200)
@pytest.mark.skipif(len(SEEDS) == SEEDS_SHORT, reason="the other half of the fence's test, by hand")
def test_with_every_safeguard_a_zombie_shows_nothing() -> None:
    require_mariadb()
    windows, violations = sabotaged("nothing", "zombie")
    assert len(windows) == len(SEEDS)
    assert not violations, violations[:5]


def _within(violations: list[Violation], kinds: set[str], window: tuple[float, float]) -> int:
    begin, end = window
    return sum(violation.kind in kinds and begin <= violation.t <= end for violation in violations)
