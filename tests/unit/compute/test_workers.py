import gevent
import pytest
from gevent.event import Event

from zcompute.compute.errors import WorkersFull
from zcompute.compute.workers import Workers


def test_work_of_one_key_runs_in_order_and_one_at_a_time() -> None:
    workers, log, gates = Workers(4, 10), list[str](), [Event(), Event()]

    def work(number: int) -> None:
        log.append(f"begin {number}")
        gates[number].wait(5)
        log.append(f"end {number}")

    workers.submit("a", lambda: work(0))
    workers.submit("a", lambda: work(1))
    gevent.sleep(0)
    assert workers.busy("a")
    assert len(workers) == 2
    for gate in gates:
        gate.set()
    with gevent.Timeout(5):
        while len(workers):
            gevent.sleep(0)
    assert log == ["begin 0", "end 0", "begin 1", "end 1"]
    assert not workers.busy("a")
    assert len(workers) == 0


def test_no_more_than_workers_max_run_and_no_more_than_waiting_max_wait() -> None:
    workers, gate, running = Workers(2, 3), Event(), list[int]()

    def work(number: int) -> None:
        running.append(number)
        gate.wait(5)

    for number in range(5):
        workers.submit(number, lambda number=number: work(number))
    gevent.sleep(0)
    assert running == [0, 1]
    with pytest.raises(WorkersFull):
        workers.submit("one more", lambda: work(9))
    with pytest.raises(WorkersFull):
        workers.submit(0, lambda: work(9))
    gate.set()
    with gevent.Timeout(5):
        while len(workers):
            gevent.sleep(0)
    assert running == [0, 1, 2, 3, 4]


def test_work_that_fails_stops_nobody() -> None:
    workers, done = Workers(1, 3), Event()
    workers.submit("a", lambda: 1 // 0)
    workers.submit("a", done.set)
    assert done.wait(5)
    assert workers.stop(5)


def test_stop_begins_nothing_more_and_kills_what_does_not_end() -> None:
    workers, never, begun = Workers(1, 3), Event(), list[int]()
    workers.submit("a", lambda: never.wait(60))
    workers.submit("a", lambda: begun.append(1))
    workers.submit("b", lambda: begun.append(2))
    gevent.sleep(0)
    assert not workers.stop(0.01)
    assert begun == []
    assert len(workers) == 0
    with pytest.raises(WorkersFull, match="stopping"):
        workers.submit("c", lambda: None)
