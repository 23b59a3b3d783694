"""`zcompute db promote` killed at a step of a promotion, under traffic, and run again: it completes, the term is raised
once, and nothing that was acknowledged is lost (the model of loadtest.chaos over all of them, and the audit)."""

import os
import random
import signal
import subprocess
import sys

import pytest

from loadtest.chaos.cluster import CELL, Cluster
from loadtest.chaos.faults import PROMOTE, Faults
from loadtest.chaos.measure import metrics
from loadtest.chaos.run import Plan, run
from tests.cluster.conftest import require_mariadb
from tests.unit.test_failpoints import OF_PROMOTIONS, places
from zcompute.cli.up.layout import CONDUCTOR
from zcompute.failpoints import ENVIRONMENT

CUT_SHORT_S = 30
ACKNOWLEDGED_MIN = 1_000
PER_SECOND = 20.0
PLACES = (
    "promote.io_stopped",
    "promote.before_term",
    "promote.after_term",
    "promote.repointed",
    "promote.before_writable",
    "promote.writable",
)


def cut_short(cluster: Cluster, place: str) -> None:
    """The operator's command, killed there."""
    config = cluster.paths.config(cluster.members(CONDUCTOR, CELL)[0])
    words = [sys.executable, "-m", "zcompute.cli.main", "db", "promote", "--config", str(config)]
    armed = {**os.environ, ENVIRONMENT: f"{place}=kill"}
    done = subprocess.run(words, env=armed, capture_output=True, text=True, timeout=CUT_SHORT_S, check=False)
    assert done.returncode == -signal.SIGKILL, f"{place}: {done.stdout}{done.stderr}"


def test_every_place_of_a_promotion_is_tried() -> None:
    assert sorted(PLACES) == sorted(place for place in places() if place.startswith(OF_PROMOTIONS))


@pytest.mark.timeout(300)
def test_killed_between_two_steps_and_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    require_mariadb()

    def promote_each(cluster: Cluster, faults: Faults) -> None:
        finish = cluster.promote
        for term, place in enumerate(PLACES, 2):

            def promote(cell: str, place: str = place) -> None:
                cut_short(cluster, place)
                finish(cell)

            monkeypatch.setattr(cluster, "promote", promote)
            print(place)
            faults.once(PROMOTE)
            assert cluster.map_rows().term == term, place

    plan = Plan((PROMOTE,), 0.0, random.SystemRandom().randrange(1, 2**31), per_second=PER_SECOND)
    outcome = run(plan, print, promote_each)
    shown = [f"{one.kind} {one.subject}: {one.detail}" for one in outcome.violations[:20]]
    assert not outcome.violations, "\n".join(shown)
    assert metrics(outcome.events)["acknowledged"] >= ACKNOWLEDGED_MIN, "without traffic nothing is shown"
