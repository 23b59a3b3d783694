"""The primary of a cell is killed under traffic, and a replica promoted: nothing that was acknowledged is lost.

Promotions that are killed half-way, under the same traffic: tests/failpoints/test_promotion.py.
"""

import os
import random

import pytest

from loadtest.chaos.cluster import CELL, Cluster
from loadtest.chaos.faults import DATABASE, KILL, PROMOTE, Faults
from loadtest.chaos.measure import metrics
from loadtest.chaos.run import Plan, run
from tests.cluster.conftest import require_mariadb
from tests.cluster.region import command
from zcompute.cli.up.layout import CONDUCTOR

ACKNOWLEDGED_MIN = 1_000
PER_SECOND = 100.0
SEED = int(os.environ.get("ZCOMPUTE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)


def promote(cluster: Cluster, faults: Faults) -> None:
    """And what an operator, a restarted server and a restarted conductor meet then."""
    faults.once(PROMOTE)
    assert cluster.map_rows().term == 2
    shown = command("db", "status", "--config", str(cluster.paths.config(cluster.members(CONDUCTOR, CELL)[0])))
    assert shown.returncode == 0, shown.stdout + shown.stderr
    faults.once(DATABASE)
    faults.once(KILL)


@pytest.mark.timeout(240)
def test_a_primary_that_is_killed_and_replaced_under_load_loses_nothing_that_was_acknowledged() -> None:
    require_mariadb()
    print(f"ZCOMPUTE_CHAOS_SEED={SEED}")
    outcome = run(Plan((PROMOTE,), 0.0, SEED, per_second=PER_SECOND), print, promote)
    shown = [f"{one.kind} {one.subject}: {one.detail}" for one in outcome.violations[:20]]
    assert not outcome.violations, "\n".join(shown)
    assert metrics(outcome.events)["acknowledged"] >= ACKNOWLEDGED_MIN, "without traffic nothing is shown"
