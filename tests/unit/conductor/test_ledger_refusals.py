"""Changes that the database or a limit refuses, and those decided upon them."""

import time
from typing import Any

import pytest

from tests.unit.conductor.ledger_world import FLAVORS, GLOBAL, INSTANCES, World, flavor, instance, wait_for
from zcompute.bus.errors import Busy, InvalidRequest, NotOwner
from zcompute.conductor.errors import LedgerMisuse, NotLoaded, WrongPartition
from zcompute.conductor.ledger import Change
from zcompute.conductor.settings import LedgerLimits
from zcompute.db.tables import TASKS
from zcompute.objects.partition import partition_of
from zcompute.objects.task import Task


def test_a_refused_row_fails_its_own_change_only(world: World) -> None:
    world.connection.gate.clear()
    tickets = [world.submit(str(n), world.put_flavor(str(n), name="x" * (300 if n == 7 else 3))) for n in range(20)]
    world.connection.gate.set()
    for n, ticket in enumerate(tickets):
        if n == 7:
            with pytest.raises(InvalidRequest, match="too long"):
                ticket.wait(1000)
        else:
            ticket.wait(1000)
    assert world.stored("7") is None
    assert all(world.stored(str(n)) is not None for n in range(20) if n != 7)
    assert world.commit("7", lambda change: change.get(FLAVORS, ("7",))) is None, "the cache forgot it too"


def test_what_was_decided_upon_a_refused_row_is_to_be_submitted_again(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="good"))
    world.connection.gate.clear()
    blocker = world.submit("0", world.put_flavor("0"))
    before = world.submit("1", world.add_ram("1"))
    bad = world.submit("1", world.put_flavor("1", name="x" * 300))
    upon = world.submit("1", world.add_ram("1"))
    keys = world.flavor_keys("1", "2")

    def copy(change: Change) -> None:
        former = change.get(FLAVORS, ("1",))
        assert former is not None
        change.put(FLAVORS, flavor("2", name=former.name[:5]))

    derived = world.ledger.submit(GLOBAL, keys, copy)
    derived_again = world.submit("2", world.add_ram("2"))
    other = world.submit("3", world.add_ram("3"))
    world.connection.gate.set()
    assert blocker.wait(1000)
    assert before.wait(1000) == 513
    with pytest.raises(InvalidRequest):
        bad.wait(1000)
    for ticket in (upon, derived, derived_again):
        with pytest.raises(Busy):
            ticket.wait(1000)
    assert other.wait(1000) == 1
    assert world.commit("1", world.add_ram("1")) == 514
    stored = world.stored("1")
    assert stored is not None
    assert (stored.name, stored.memory_mb) == ("good", 514)
    assert world.stored("2") is None
    assert not world.reason


def test_a_refusal_without_a_key_is_narrowed_down_by_halves(world: World) -> None:
    uuid = "8a3c6b62-0000-4000-8000-000000000001"
    partition = partition_of(uuid)

    def add(task_id: str) -> Any:
        def decide(change: Change) -> None:
            assert change.get(TASKS, (task_id,)) is None
            change.put(TASKS, Task(id=task_id, instance_uuid=uuid, kind="build", step="s"))

        return world.ledger.submit(partition, [(TASKS, (task_id,))], decide)

    world.connection.gate.clear()
    tickets = [add("t1"), *(world.submit(str(n), world.put_flavor(str(n))) for n in range(5)), add("t2")]
    world.connection.gate.set()
    for ticket in tickets[:-1]:
        ticket.wait(1000)
    with pytest.raises(InvalidRequest, match="duplicate"):
        tickets[-1].wait(1000)


def test_an_unstorable_value_is_refused_before_it_reaches_a_batch(world: World) -> None:
    world.commit("1", world.put_flavor("1"))

    def decide(change: Change) -> None:
        change.put(FLAVORS, flavor("1", extra_specs={"a": object()}))

    with pytest.raises(InvalidRequest):
        world.commit("1", decide)


def test_more_rows_than_a_change_may_have_are_refused() -> None:
    world = World(LedgerLimits(decision_rows_max=3))

    def decide(change: Change) -> None:
        for n in range(4):
            change.put(FLAVORS, flavor(str(n)))

    with pytest.raises(InvalidRequest, match="at most 3"):
        world.ledger.commit(GLOBAL, world.flavor_keys(*"0123"), decide, timeout_ms=1000)
    world.close()


def test_a_full_queue_says_busy_and_recovers() -> None:
    world = World(LedgerLimits(filling_rows_max=5, batch_rows_max=2))
    world.commit("1", world.add_ram("1"))
    world.connection.gate.clear()
    tickets = [world.submit("1", world.add_ram("1")) for _ in range(5)]
    with pytest.raises(Busy) as busy:
        world.submit("1", world.add_ram("1"))
    assert busy.value.retry_after_ms > 0
    world.connection.gate.set()
    assert [ticket.wait(1000) for ticket in tickets] == [2, 3, 4, 5, 6]
    assert world.commit("1", world.add_ram("1")) == 7
    assert (world.lane.queued_rows, world.lane.queued_bytes) == (0, 0)
    world.close()


def test_a_batch_that_fills_for_too_long_says_busy_and_recovers() -> None:
    world = World(LedgerLimits(batch_age_ms_max=50))
    world.commit("1", world.add_ram("1"))
    world.connection.gate.clear()
    tickets = [world.submit("1", world.add_ram("1"))]
    wait_for(lambda: world.lane.queued_decisions == 0)  # it is in flight: its age is that of no batch that fills
    time.sleep(0.06)
    tickets.append(world.submit("1", world.add_ram("1")))
    tickets.append(world.submit("1", world.add_ram("1")))
    time.sleep(0.06)
    with pytest.raises(Busy, match="batch_age_ms_max"):
        world.submit("1", world.add_ram("1"))
    assert world.ledger.refused == {"batch_age_ms_max": 1}
    world.connection.gate.set()
    assert [ticket.wait(1000) for ticket in tickets] == [2, 3, 4]
    assert world.commit("1", world.add_ram("1")) == 5
    world.close()


def test_too_many_calls_waiting_for_rows_say_busy() -> None:
    world = World(LedgerLimits(waiting_decisions_max=2))
    world.store.fetch_gate.clear()
    tickets = [world.submit(str(n), world.add_ram(str(n))) for n in range(2)]
    with pytest.raises(Busy):
        world.submit("9", world.add_ram("9"))
    world.store.fetch_gate.set()
    for ticket in tickets:
        ticket.wait(1000)
    assert world.commit("9", world.add_ram("9")) == 1
    world.close()


def test_misuse_is_an_error_of_the_call_that_makes_it(world: World) -> None:
    world.commit("1", world.put_flavor("1"))
    with pytest.raises(NotLoaded):
        world.commit("1", lambda change: change.get(FLAVORS, ("2",)))
    with pytest.raises(NotLoaded):
        world.commit("1", lambda change: change.put(FLAVORS, flavor("2")))
    with pytest.raises(LedgerMisuse):
        world.commit("1", lambda change: change.put(FLAVORS, change.get(FLAVORS, ("1",))))
    with pytest.raises(LedgerMisuse):
        world.commit("1", lambda change: world.submit("1", lambda inner: None))
    uuid = "8a3c6b62-0000-4000-8000-000000000001"
    keys = [(INSTANCES, (uuid,))]
    assert partition_of(uuid) != GLOBAL
    with pytest.raises(WrongPartition):
        world.ledger.commit(GLOBAL, keys, lambda change: change.put(INSTANCES, instance(uuid)), timeout_ms=1000)
    world.database.seed(INSTANCES, instance(uuid.replace("1", "2")))
    with pytest.raises(WrongPartition):
        world.ledger.commit(GLOBAL, [(INSTANCES, (uuid.replace("1", "2"),))], lambda change: None, timeout_ms=1000)
    assert not world.reason


def test_a_decision_on_more_rows_than_its_limit_is_refused() -> None:
    world = World(LedgerLimits(decision_keys_max=3))
    with pytest.raises(InvalidRequest, match="at most 3"):
        world.ledger.submit(GLOBAL, world.flavor_keys(*"0123"), lambda change: None)
    world.close()


def test_what_was_decided_upon_a_refused_change_is_answered_when_the_life_ends(world: World) -> None:
    world.connection.gate.clear()
    bad = world.submit("1", world.put_flavor("1", name="x" * 1000))
    wait_for(lambda: world.lane._in_flight)
    upon_it = world.submit("1", world.add_ram("1"))
    undo = world.lane._undo

    def undo_and_stall(*what: Any) -> None:
        world.connection.gate.clear()  # the batch that lets the refusals out never comes back
        undo(*what)

    world.lane._undo = undo_and_stall
    world.connection.gate.set()
    wait_for(lambda: len(world.lane._refused) == 2)
    world.end("stopped")
    for ticket in (bad, upon_it):
        with pytest.raises(NotOwner):
            ticket.wait(100)
