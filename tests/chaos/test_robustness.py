"""Two minutes of every fault under traffic; what the clients saw is possible. See docs/reliability.md."""

import os
import random

import pytest

from loadtest.chaos.faults import KINDS
from loadtest.chaos.measure import metrics
from loadtest.chaos.run import Plan, run
from tests.cluster.conftest import require_mariadb

SECONDS = 120.0
ACKNOWLEDGED_MIN = 2_000
FAULTS_MIN = 6
SEED = int(os.environ.get("ZCOMPUTE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)


@pytest.mark.timeout(300)
def test_under_every_fault_nothing_is_lost_repeated_or_reordered() -> None:
    require_mariadb()
    print(f"ZCOMPUTE_CHAOS_SEED={SEED}")
    outcome = run(Plan(KINDS, SECONDS, SEED), print)
    found = metrics(outcome.events)
    print(found)
    shown = [f"{one.kind} {one.subject}: {one.detail}" for one in outcome.violations[:20]]
    assert not outcome.violations, "\n".join(shown)
    assert found["acknowledged"] >= ACKNOWLEDGED_MIN, "without traffic nothing is shown"
    assert found["faults"] >= FAULTS_MIN
