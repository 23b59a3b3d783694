"""Lists share room: first come, first served, and no one waits longer than told."""

import time

import gevent
import pytest

from zcompute.bus.errors import Busy
from zcompute.cells.room import Room


def room(rows_max: int = 100, lists_max: int = 10, wait_ms: int = 2_000) -> Room:
    return Room(rows_max, lists_max, wait_ms, retry_after_ms=1_500)


def test_what_does_not_fit_waits_for_room_and_is_refused_after_its_time() -> None:
    full = room(wait_ms=50)
    with full.held(80, 1_000):
        began_s = time.monotonic()
        with pytest.raises(Busy) as refused, full.held(30, 1_000):
            raise AssertionError("there is no room")
        assert 0.03 < time.monotonic() - began_s < 1
        assert refused.value.retry_after_ms == 1_500
        with full.held(20, 1_000):
            assert (full.rows, full.lists) == (100, 2)
    assert (full.rows, full.lists, full.refused) == (0, 0, 1)


def test_rows_that_are_needed_no_more_let_others_in() -> None:
    shared = room()
    seen = []

    def second() -> None:
        with shared.held(60, 1_000) as share:
            seen.append(share.rows)

    with shared.held(100, 1_000) as share:
        waiting = gevent.spawn(second)
        gevent.sleep(0)
        assert not seen
        share.shrink_to(40)
        share.shrink_to(90)  # never more again
        waiting.get(timeout=1)
    assert seen == [60]
    assert (shared.rows, shared.lists) == (0, 0)


def test_a_small_list_does_not_overtake_a_large_one_for_ever() -> None:
    shared = room()
    order = []

    def listing(rows: int) -> None:
        with shared.held(rows, 1_000):
            order.append(rows)
            gevent.sleep(0)

    with shared.held(90, 1_000):
        greenlets = [gevent.spawn(listing, rows) for rows in (50, 5, 6)]
        gevent.sleep(0)
        assert order == []
    gevent.joinall(greenlets, timeout=1, raise_error=True)
    assert order == [50, 5, 6]


def test_so_many_lists_at_once_and_no_more_however_small() -> None:
    shared = room(lists_max=1, wait_ms=10)
    with shared.held(1, 1_000), pytest.raises(Busy), shared.held(1, 1_000):
        raise AssertionError("there is no room")


def test_more_rows_than_there_are_take_all_of_them() -> None:
    shared = room()
    with shared.held(1_000, 1_000) as share:
        assert share.rows == shared.rows == 100
    assert shared.rows == 0


@pytest.mark.parametrize("when", ["waiting", "let in"])
def test_one_that_is_killed_while_it_waits_leaves_no_room_behind(when: str) -> None:
    shared = room()

    def listing() -> None:
        with shared.held(50, 1_000):
            raise AssertionError("killed before")

    with shared.held(100, 1_000) as share:
        waiting = gevent.spawn(listing)
        gevent.sleep(0)
        if when == "let in":
            share.shrink_to(0)
        waiting.kill()
    assert (shared.rows, shared.lists) == (0, 0)
    with shared.held(100, 10):
        pass
