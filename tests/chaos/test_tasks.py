"""Servers led through actions and moves while conductors, agents, hosts and the database are hurt: what was accepted is
done or told as failed, nothing is stuck, and no server ever ran on two hosts."""

import os
import random

import pytest

from loadtest.chaos.cluster import Cluster
from loadtest.chaos.faults import DATABASE, HOST, KILL, STOP, Faults
from loadtest.chaos.run import Plan, run
from loadtest.chaos.tasks import TRAFFIC
from tests.cluster.conftest import require_mariadb

FAULTS = (KILL, HOST, STOP, DATABASE)
WALKERS = 12
DONE_MIN = 30
SEED = int(os.environ.get("ZCOMPUTE_CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)


def one_after_the_other(cluster: Cluster, faults: Faults) -> None:
    for kind in FAULTS:
        faults.once(kind)


@pytest.mark.timeout(300)
def test_under_every_fault_what_was_accepted_of_a_server_is_done_or_told_and_it_is_in_one_place() -> None:
    require_mariadb()
    print(f"ZCOMPUTE_CHAOS_SEED={SEED}")
    outcome = run(Plan(FAULTS, 0.0, SEED, traffic=TRAFFIC, walkers=WALKERS), print, one_after_the_other)
    print(outcome.metrics)
    shown = [f"{one.kind} {one.subject}: {one.detail}" for one in outcome.violations[:20]]
    assert not outcome.violations, "\n".join(shown)
    assert outcome.metrics["done"] >= DONE_MIN, "without traffic nothing is shown"
    assert outcome.metrics["faults"] == len(FAULTS)
