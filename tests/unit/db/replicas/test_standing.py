"""When a replica takes reads, and when it is looked at again."""

from zcompute.db.replicas.identity import Followed, Identity, refusal, trouble
from zcompute.db.replicas.standing import RETRY_S_MAX, RETRY_S_MIN, Standing, State

PRIMARY = Identity(1, "c1", "cell", "0004")
FOLLOWED = Followed(1, "127.0.0.1:3306", "Yes", "Yes")


def test_a_replica_serves_once_it_has_been_looked_at() -> None:
    standing = Standing(2.0)
    assert not standing.takes_reads
    assert standing.state is State.NEW
    standing.passed(1.0)
    assert standing.takes_reads
    assert standing.reason == ""


def test_one_too_far_behind_leaves_and_comes_back_when_it_has_nearly_caught_up() -> None:
    standing = Standing(2.0)
    standing.passed(0.0)
    standing.measured(2.0, 1.0)
    assert standing.takes_reads
    standing.measured(2.1, 2.0)
    assert standing.state is State.LAGGING
    assert "2000 ms behind" in standing.reason
    standing.passed(2.5)  # it is what it should be, but still behind
    standing.measured(1.5, 3.0)
    assert not standing.takes_reads
    standing.measured(1.0, 4.0)
    assert standing.takes_reads
    assert standing.since_s == 4.0


def test_one_that_is_away_is_looked_at_ever_more_rarely_and_anew_after_a_success() -> None:
    standing = Standing(2.0)
    pauses = []
    for _ in range(8):
        standing.lost("refused", 100.0)
        pauses.append(standing.look_at_s - 100.0)
    assert abs(pauses[0] - RETRY_S_MIN) < 1e-6
    assert abs(pauses[-1] - RETRY_S_MAX) < 1e-6
    standing.passed(200.0)
    standing.lost("refused", 300.0)
    assert abs(standing.look_at_s - 300.0 - RETRY_S_MIN) < 1e-6
    standing.measured(0.0, 301.0)
    assert standing.state is State.AWAY


def found(**changes: object) -> Identity:
    fields = {"server_id": 2, "cell": "c1", "kind": "cell", "revision": "0004", "followed": (FOLLOWED,), **changes}
    return Identity(**fields)  # type: ignore[arg-type]  # whatever the test names


def test_a_replica_of_this_primary_is_taken() -> None:
    assert refusal(found(), PRIMARY) == ""


def test_each_reason_to_refuse_is_told_in_a_sentence() -> None:
    assert "found the database of cell 'c2'" in refusal(found(cell="c2"), PRIMARY)
    assert "found the primary itself" in refusal(found(server_id=1), PRIMARY)
    assert "follows nobody" in refusal(found(followed=()), PRIMARY)
    other = Followed(7, "10.0.0.9:3306", "Yes", "Yes", "wrong password")
    assert "10.0.0.9:3306 (server_id 7, wrong password)" in refusal(found(followed=(other,)), PRIMARY)
    assert "at 0003, the primary's at 0004" in refusal(found(revision="0003"), PRIMARY)
    assert refusal(Identity(problem="no such database"), PRIMARY) == "no such database"


def test_stopped_threads_are_trouble_but_no_refusal() -> None:
    stopped = found(followed=(Followed(1, "a:1", "Yes", "No", "duplicate key"),))
    assert refusal(stopped, PRIMARY) == ""
    assert trouble(stopped, PRIMARY) == "its SQL thread is stopped: duplicate key"
    assert "IO thread" in trouble(found(followed=(Followed(1, "a:1", "Connecting", "Yes"),)), PRIMARY)
    assert trouble(found(), PRIMARY) == ""
