"""Scatter-gather: one deadline, and what is missing by name."""

import time

import gevent

from zcompute.bus.context import request_id
from zcompute.cells.gather import gather


def test_results_and_failures_by_name() -> None:
    def fail() -> int:
        raise ValueError("broken")

    gathered = gather({"a": lambda: 1, "b": fail, "c": lambda: 3}, 1000)
    assert gathered.results == {"a": 1, "c": 3}
    assert gathered.missing == {"b": "ValueError: broken"}
    assert isinstance(gathered.errors["b"], ValueError)


def test_a_call_that_does_not_answer_costs_the_deadline_and_its_own_result_only() -> None:
    began_s = time.monotonic()
    gathered = gather({"slow": lambda: gevent.sleep(30), "fast": lambda: None}, 100)
    assert time.monotonic() - began_s < 10
    assert list(gathered.results) == ["fast"]
    assert "100 ms" in gathered.missing["slow"]


def test_calls_that_found_no_worker_in_time_are_missing_too() -> None:
    gathered = gather({str(n): (lambda: gevent.sleep(30)) for n in range(5)}, 50, workers_max=2)
    assert sorted(gathered.missing) == ["0", "1", "2", "3", "4"]


def test_many_calls_share_few_workers() -> None:
    gathered = gather({str(n): (lambda: gevent.sleep(0.001)) for n in range(50)}, 5000, workers_max=4)
    assert len(gathered.results) == 50


def test_the_request_id_goes_along() -> None:
    token = request_id.set("req-7")
    try:
        assert gather({"a": request_id.get}, 1000).results == {"a": "req-7"}
    finally:
        request_id.reset(token)


def test_results_are_told_as_they_come() -> None:
    told: list[tuple[str, float]] = []
    began_s = time.monotonic()
    calls = {"slow": lambda: gevent.sleep(0.1), "fast": lambda: None}
    gather(calls, 1000, on_result=lambda name, _: told.append((name, time.monotonic() - began_s)))
    assert [name for name, _ in told] == ["fast", "slow"]
    assert told[0][1] < 0.08


def test_what_is_open_at_the_deadline_is_ended_and_leaves_nothing_behind() -> None:
    ended = []

    def hang() -> None:
        try:
            gevent.sleep(30)
        finally:
            ended.append(1)

    gather({str(n): hang for n in range(3)}, 30)
    gevent.sleep(0.01)
    assert len(ended) == 3
