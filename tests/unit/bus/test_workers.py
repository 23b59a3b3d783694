"""The pools of workers: whose job is next, and who is refused."""

from collections import Counter
from collections.abc import Iterator

import gevent
import pytest
from gevent.event import Event as Flag

from tests.unit.bus.conftest import wait_until
from zcompute.bus.workers import WorkerPool

RUN_MAX = 4


class Pool:
    """One worker, held until `go`; what ran, by owner."""

    def __init__(self, queue_max: int) -> None:
        self.pool = WorkerPool("calls", 1, queue_max, RUN_MAX)
        self.ran: list[str] = []
        self.go = Flag()
        assert self.pool.submit("first", self.go.wait)
        wait_until(lambda: self.pool.running and not self.pool.queued)

    def put(self, owner: str, count: int) -> int:
        """How many of so many jobs are taken."""
        return sum(self.pool.submit(owner, self.ran.append, owner) for _ in range(count))

    def run(self) -> list[str]:
        self.go.set()
        wait_until(lambda: not self.pool.queued)
        return self.ran


@pytest.fixture
def made() -> Iterator[list[Pool]]:
    pools: list[Pool] = []
    yield pools
    for one in pools:
        one.go.set()
        gevent.sleep(0)
        one.pool.close()


def a_pool(made: list[Pool], queue_max: int) -> Pool:
    made.append(Pool(queue_max))
    return made[-1]


def test_owners_have_their_turns_whoever_has_filled_the_queue(made: list[Pool]) -> None:
    pool = a_pool(made, 10_000)
    pool.put("flood", 1000)
    pool.put("neighbour", 3)
    pool.put("other", 1)
    ran = pool.run()
    assert len(ran) == 1004
    assert [at for at, owner in enumerate(ran) if owner == "neighbour"][-1] < 9
    assert ran.index("other") < 4


def test_jobs_of_one_owner_run_in_their_order(made: list[Pool]) -> None:
    pool = a_pool(made, 10_000)
    ran: list[tuple[str, int]] = []
    for number in range(50):
        for owner in ("a", "b", "c")[: 1 + number % 3]:
            pool.pool.submit(owner, ran.append, (owner, number))
    pool.run()
    assert len(ran) == 99
    for owner in "abc":
        numbers = [number for name, number in ran if name == owner]
        assert numbers == sorted(numbers)


def test_a_full_queue_still_takes_those_who_hold_less_than_their_share(made: list[Pool]) -> None:
    pool = a_pool(made, 100)
    assert pool.put("flood", 1000) == 100
    assert pool.put("neighbour", 1000) == 50
    assert pool.put("other", 1000) == 33
    assert pool.put("flood", 1) == 0
    assert pool.pool.queued == 183
    assert Counter(pool.run()) == {"flood": 100, "neighbour": 50, "other": 33}
    assert pool.pool.queued == 0


def test_however_many_owners_come_the_queue_is_bounded(made: list[Pool]) -> None:
    pool = a_pool(made, 20)
    owners = 100
    for _ in range(20):
        for number in range(owners):
            pool.put(str(number), 1)
    assert pool.pool.queued <= 2 * 20 + owners
    assert len(set(pool.run())) == owners
    assert pool.put("again", 30) == 20


def test_the_owner_of_a_queue_that_ran_empty_is_forgotten(made: list[Pool]) -> None:
    pool = a_pool(made, 100)
    for number in range(50):
        pool.put(str(number), 2)
    pool.run()
    assert not pool.pool._others
    assert pool.pool.jobs_beside == 0
    assert not pool.pool.jobs
