"""Verdicts: when they leave and what they rest on; where rows and verdicts go when a partition leaves."""

from typing import Any

import gevent
import pytest

from tests.unit.conductor.ledger_world import FLAVORS, GLOBAL, World, flavor, wait_for
from zcompute.bus.errors import DeadlineExceeded, NotOwner
from zcompute.conductor.ledger import Change
from zcompute.db.batch import HandOver
from zcompute.db.errors import ReceiverDead
from zcompute.db.store import ConductorRow
from zcompute.db.tables import TASKS
from zcompute.objects.partition import partition_of
from zcompute.objects.task import Task


def test_a_commit_returns_what_decide_returned_after_the_row_is_stored(world: World) -> None:
    put = world.commit("1", world.put_flavor("1", name="a"))
    assert put.revision == 1
    assert world.stored("1") == put


def test_no_verdict_leaves_before_its_batch_has_committed(world: World) -> None:
    world.connection.gate.clear()
    ticket = world.submit("1", world.put_flavor("1"))
    with pytest.raises(DeadlineExceeded):
        ticket.wait(50)
    assert not ticket.done
    world.connection.gate.set()
    ticket.wait(1000)
    assert world.stored("1") is not None


def test_a_decision_that_writes_nothing_waits_for_a_batch_that_began_after_it(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="a"))
    world.connection.gate.clear()
    first = world.submit("1", world.put_flavor("1", name="b"))
    wait_for(lambda: len(world.connection.sent) > world.lane.applied)
    reads = [world.submit("1", lambda change: change.get(FLAVORS, ("1",)).name) for _ in range(5)]
    before = world.lane.applied
    world.connection.gate.set()
    assert [read.wait(1000) for read in reads] == ["b"] * 5
    assert first.done
    assert world.lane.applied == before + 2, "one empty batch, shared by all who waited"


def test_an_error_of_decide_keeps_nothing_and_is_raised_after_a_later_batch(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="a"))

    def decide(change: Change) -> None:
        change.put(FLAVORS, flavor("1", name="never"))
        raise KeyError("no")

    world.connection.gate.clear()
    ticket = world.submit("1", decide)
    gevent.sleep(0.02)
    assert not ticket.done
    world.connection.gate.set()
    with pytest.raises(KeyError):
        ticket.wait(1000)
    assert world.commit("1", lambda change: change.get(FLAVORS, ("1",)).name) == "a"


def test_decisions_see_what_was_decided_before_them_though_it_has_not_committed(world: World) -> None:
    world.connection.gate.clear()
    tickets = [world.submit("1", world.add_ram("1")) for _ in range(10)]
    world.connection.gate.set()
    assert [ticket.wait(1000) for ticket in tickets] == list(range(1, 11))
    stored = world.stored("1")
    assert stored is not None
    assert (stored.memory_mb, stored.revision) == (10, 10)


def test_changes_of_one_row_within_a_batch_are_one_row_of_it(world: World) -> None:
    world.commit("1", world.add_ram("1"))
    batches = len(world.database.commits)
    tickets = [world.submit("1", world.add_ram("1")) for _ in range(10)]
    for ticket in tickets:
        ticket.wait(1000)
    rows = [batch.rows() for batch in world.database.commits[batches:]]
    assert sum(rows) == len(rows) <= 2


def test_a_row_replaced_by_another_with_the_same_unique_value_goes_in_one_commit(world: World) -> None:
    uuid = "8a3c6b62-0000-4000-8000-000000000001"
    partition = partition_of(uuid)
    world.database.seed(TASKS, Task(id="t9", instance_uuid=uuid, kind="build", step="s"))

    def replace(change: Change) -> None:
        change.delete(TASKS, ("t9",))
        change.put(TASKS, Task(id="t1", instance_uuid=uuid, kind="delete", step="s"))

    world.ledger.commit(partition, [(TASKS, ("t9",)), (TASKS, ("t1",))], replace, timeout_ms=1000)
    assert list(world.database.tables["tasks"]) == [("t1",)]


def test_insert_and_delete_within_a_batch_leave_nothing_and_a_row_that_comes_back_is_an_update(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="a"))
    world.connection.gate.clear()
    blocker = world.submit("0", world.put_flavor("0"))
    gevent.sleep(0.01)
    come = world.submit("2", world.put_flavor("2"))
    go = world.submit("2", lambda change: change.delete(FLAVORS, ("2",)))
    leave = world.submit("1", lambda change: change.delete(FLAVORS, ("1",)))
    again = world.submit("1", world.put_flavor("1", name="b"))
    world.connection.gate.set()
    for ticket in (blocker, come, go, leave, again):
        ticket.wait(1000)
    stored = world.stored("1")
    assert stored is not None
    assert (stored.name, stored.revision) == ("b", 2)
    assert world.stored("2") is None


def test_callbacks_run_once_and_one_that_fails_keeps_nobody_back(world: World) -> None:
    seen: list[Any] = []

    def fail(_: Any) -> None:
        raise RuntimeError("a caller's mistake")

    ticket = world.submit("1", world.add_ram("1"))
    ticket.on_done(fail)
    ticket.on_done(lambda done: seen.append(done.result))
    ticket.wait(1000)
    ticket.on_done(lambda done: seen.append(done.result))
    wait_for(lambda: seen == [1, 1])
    assert not world.reason


def test_a_partition_leaves_behind_all_that_was_decided_on_it(world: World) -> None:
    other = world.store.register(ConductorRow("s2", "i2", "tcp://127.0.0.1:2"), 1)[0]
    world.commit("1", world.put_flavor("1", name="a"))
    world.connection.gate.clear()
    decided = world.submit("1", world.put_flavor("1", name="b"))
    world.store.fetch_gate.clear()
    waiting = world.submit("2", world.put_flavor("2"))
    world.ledger.leave([GLOBAL])
    with pytest.raises(NotOwner):
        waiting.wait(10)
    assert not world.ledger.owns(GLOBAL)
    with pytest.raises(NotOwner):
        world.submit("1", world.put_flavor("1"))
    gone = world.lane.hand_over(HandOver([GLOBAL], other))
    world.connection.gate.set()
    gone.wait(1000)
    assert decided.wait(1000)
    assert world.database.partitions[GLOBAL] == (other, world.database.map_version)
    stored = world.stored("1")
    assert stored is not None
    assert stored.name == "b"
    world.ledger.lose([GLOBAL])
    world.store.fetch_gate.set()
    assert not world.reason


def test_a_dead_receiver_leaves_the_partition_where_it_is(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="a"))
    world.ledger.leave([GLOBAL])
    ticket = world.lane.hand_over(HandOver([GLOBAL], 99))
    with pytest.raises(ReceiverDead):
        ticket.wait(1000)
    gained: list[list[int]] = []
    world.ledger.on_gain(gained.append)
    world.ledger.stay([GLOBAL])
    assert world.commit("1", world.add_ram("1")) == 513
    assert gained == [[GLOBAL]], "whoever met NotOwner meanwhile begins again"
