"""Reads are spread over the conductors of a cell, and one that hangs is left out for a while."""

from collections import Counter
from random import Random

from zcompute.cells.balance import REST_S_MAX, REST_S_MIN, Balance


class Conductor:
    """Whoever can be asked."""


def three() -> tuple[Balance[Conductor], list[Conductor]]:
    return Balance(Random(1)), [Conductor() for _ in range(3)]


def test_the_less_loaded_of_two_is_asked() -> None:
    balance, all_of_them = three()
    busy, idle = all_of_them[:2]
    balance.began(busy)
    assert all(balance.choose([busy, idle], 0.0) is idle for _ in range(20))
    balance.ended(busy)
    balance.began(idle)
    assert all(balance.choose([busy, idle], 0.0) is busy for _ in range(20))


def test_under_load_nobody_has_much_more_than_another() -> None:
    balance, all_of_them = three()
    for _ in range(300):
        balance.began(balance.choose(all_of_them, 0.0))
    counts = [balance.open_at(each) for each in all_of_them]
    assert max(counts) - min(counts) <= 10


def test_idle_conductors_are_asked_by_turns_of_chance() -> None:
    balance, all_of_them = three()
    asked = Counter(id(balance.choose(all_of_them, 0.0)) for _ in range(600))
    assert len(asked) == 3
    assert min(asked.values()) > 100


def test_who_was_late_rests_longer_each_time_and_is_asked_when_nobody_else_is_there() -> None:
    balance, (late, other, _) = three()
    now_s = rest_s = 0.0
    for _ in range(6):
        balance.was_late(late, now_s)
        balance.was_late(late, now_s)  # two that were under way together count once
        rest_s = min(max(REST_S_MIN, rest_s * 2), REST_S_MAX)
        assert all(balance.choose([late, other], now_s + rest_s - 0.01) is other for _ in range(20))
        now_s += rest_s
        assert late in [balance.choose([late, other], now_s) for _ in range(20)]
    balance.was_late(late, now_s)
    assert balance.choose([late], now_s) is late
    balance.answered(late)
    assert late in [balance.choose([late, other], now_s) for _ in range(20)]
