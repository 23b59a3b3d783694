"""What a promotion may do, from what the servers say of themselves."""

from dataclasses import replace

import pytest

from zcompute.db.durability import LOCAL, REPLICATED
from zcompute.db.failover.plan import Plan, plan
from zcompute.db.failover.standing import BEGUN_ANEW, Standing
from zcompute.db.replicas.position import parse_position

CELL = "c1"
P, R1, R2 = "p:3306", "r1:3306", "r2:3306"
LOST = Standing(P, problem="connection refused")


def replica(name: str, at: int = 100) -> Standing:
    """As a replica is found after its primary was killed: both threads there, the IO thread knocking."""
    position = parse_position(f"0-1-{at}")
    return Standing(
        name, server_id=2, cell=CELL, term=1, follows=P, followed_id=1, io_state="Connecting",
        io_doing="Reconnecting after a failed master event read", sql_running=True, received=position,
        applied=position, written=position,
    )  # fmt: skip


def planned(
    *servers: Standing, durability: str = REPLICATED, silent: frozenset[str] = frozenset(), to: str | None = None
) -> Plan:
    return plan(servers, CELL, durability, silent, to)


def test_with_every_acker_in_reach_nothing_may_go() -> None:
    assert planned(LOST, replica(R1), replica(R2)) == Plan(P, [R1, R2])


@pytest.mark.parametrize(
    ("acker", "reason"),
    [
        (Standing(R2, problem="timed out"), "it does not answer: timed out"),
        (replace(replica(R2), sql_running=False, error="1062"), "its SQL thread is stopped: 1062"),
        (replace(replica(R2), io_doing=BEGUN_ANEW), "it, or its replication, was started again since the loss"),
        (replace(replica(R2), followed_id=0), "it, or its replication, was started again since the loss"),
        (replace(replica(R2), follows=""), "it follows nobody"),
    ],
)
def test_an_acker_that_cannot_show_what_it_has_is_out_of_reach(acker: Standing, reason: str) -> None:
    found = planned(LOST, replica(R1), acker)
    assert len(found.may_go) == 1
    assert found.may_go[0].startswith(f"{R2} could acknowledge, and {reason}")
    assert planned(LOST, replica(R1), acker, silent=frozenset({R2})).may_go == []


def test_in_local_durability_a_loss_is_always_to_be_accepted() -> None:
    assert "durability is local" in planned(LOST, replica(R1), durability=LOCAL).may_go[0]


def test_a_primary_that_takes_writes_is_not_replaced_whatever_may_be_lost() -> None:
    alive = Standing(P, server_id=1, read_only=False, cell=CELL, term=1)
    assert "it is not lost" in planned(alive, replica(R1)).refusals[0]


def test_no_thread_of_a_replica_of_another_cell_is_stopped() -> None:
    found = planned(LOST, replica(R1), replace(replica(R2), cell="c2"))
    assert f"{R2} has the database of cell c2, expected {CELL}" in found.refusals


def test_without_a_replica_that_applies_there_is_no_new_primary() -> None:
    found = planned(LOST, replace(replica(R1), sql_running=False), Standing(R2, problem="timed out"))
    assert any("no replica can be the primary" in reason for reason in found.refusals)


def test_whom_the_replicas_follow_is_the_lost_one_wherever_it_stands_in_the_configuration() -> None:
    found = planned(replace(replica(P), follows=R1), Standing(R1, problem="gone"), replace(replica(R2), follows=R1))
    assert (found.lost, found.stop, found.may_go) == (R1, [P, R2], [])


def test_a_run_that_was_cut_short_behind_the_term_is_found_and_finished() -> None:
    begun = replace(replica(R1), term=2, io_state="No", io_doing="", written=parse_position("0-2-101"))
    other = replace(replica(R2), io_state="No", io_doing="")
    assert planned(LOST, begun, other).begun == R1
    assert "made the primary by an earlier run" in planned(LOST, begun, other, to=R2).refusals[0]


def test_a_run_that_was_cut_short_before_the_term_begins_again() -> None:
    stopped = [replace(replica(name), io_state="No", io_doing="") for name in (R1, R2)]
    assert planned(LOST, *stopped) == Plan(P, [R1, R2])


def test_a_server_that_is_asked_for_must_be_a_replica_that_answers() -> None:
    assert planned(LOST, replica(R1), replica(R2), to=R2).refusals == []
    assert "expected one of the replicas that answer: r1:3306" in planned(LOST, replica(R1), to=P).refusals[0]
