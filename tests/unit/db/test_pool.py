"""The pool of connections: bounded, last in first out, without the broken."""

import gevent
import pytest

from zcompute.db.errors import ConnectionLost, DatabaseBusy
from zcompute.db.session import LockWaitTimeout, Pool, retried


class FakeConnection:
    def __init__(self) -> None:
        self.is_open = True

    def cut(self) -> None:
        self.is_open = False


def test_a_connection_is_used_again_and_a_broken_one_is_not() -> None:
    pool: Pool[FakeConnection] = Pool(FakeConnection, 2)
    with pool.borrow() as (first, used):
        assert not used
    with pool.borrow() as (second, used):
        assert (second is first, used) == (True, True)
        second.cut()
    with pool.borrow() as (third, used):
        assert (third is first, used) == (False, False)


def test_no_more_connections_than_the_limit() -> None:
    pool: Pool[FakeConnection] = Pool(FakeConnection, 1, wait_s=0.01)
    with pool.borrow(), pytest.raises(DatabaseBusy, match="all 1 connections"):
        pool.borrow().__enter__()
    with pool.borrow():
        pass


def test_a_failed_connect_gives_its_place_back() -> None:
    def fail() -> FakeConnection:
        raise ConnectionLost("nobody there")

    pool: Pool[FakeConnection] = Pool(fail, 1, wait_s=0.01)
    for _ in range(3):
        with pytest.raises(ConnectionLost, match="nobody there"):
            pool.borrow().__enter__()


def test_a_killed_borrower_gives_its_place_back() -> None:
    pool: Pool[FakeConnection] = Pool(FakeConnection, 1, wait_s=1)

    def hold() -> None:
        with pool.borrow():
            gevent.sleep(10)

    holder = gevent.spawn(hold)
    gevent.sleep(0)
    holder.kill()
    with pool.borrow():
        pass


def test_a_closed_pool_keeps_nothing() -> None:
    pool: Pool[FakeConnection] = Pool(FakeConnection, 2)
    with pool.borrow() as (connection, _):
        pool.close()
    assert not connection.is_open
    with pytest.raises(ConnectionLost):
        pool.borrow().__enter__()


def test_a_transaction_is_tried_again_a_bounded_number_of_times() -> None:
    tries: list[str] = []

    def attempt() -> None:
        tries.append("try")
        raise LockWaitTimeout("held") if len(tries) % 2 else DatabaseBusy("deadlock")

    with pytest.raises(LockWaitTimeout):
        retried(attempt, lambda: tries.append("kill"))
    assert (tries.count("try"), tries[1]) == (5, "kill")
