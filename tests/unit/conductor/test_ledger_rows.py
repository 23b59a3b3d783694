"""Reading rows: once, in order, never older than what was committed."""

from typing import Any

import gevent
import msgspec
import pytest

from tests.unit.conductor.ledger_world import FLAVORS, GLOBAL, INSTANCES, World, flavor, wait_for
from zcompute.bus.errors import DeadlineExceeded, NotOwner
from zcompute.conductor.ledger import Change
from zcompute.conductor.settings import LedgerLimits
from zcompute.db.errors import ConnectionLost
from zcompute.objects.partition import partition_of


def test_rows_wanted_at_once_are_read_with_one_fetch(world: World) -> None:
    world.database.seed(FLAVORS, *(flavor(str(n)) for n in range(50)))
    tickets = [world.submit(str(n), world.add_ram(str(n))) for n in range(50)]
    for ticket in tickets:
        ticket.wait(1000)
    assert [len(keys) for _, keys in world.database.fetches] == [50]


def test_a_row_that_is_absent_is_read_once(world: World) -> None:
    for _ in range(3):
        assert world.commit("none", lambda change: change.get(FLAVORS, ("none",))) is None
    assert len(world.database.fetches) == 1


def test_decisions_of_a_partition_are_made_in_the_order_of_submission_whatever_must_be_read(world: World) -> None:
    order: list[str] = []

    def note(name: str) -> Any:
        return lambda change: order.append(name)

    world.commit("known", world.put_flavor("known"))
    world.store.fetch_gate.clear()
    tickets = [
        world.submit("new1", note("new1")),
        world.submit("known", note("known")),
        world.submit("new2", note("new2")),
    ]
    gevent.sleep(0.02)
    assert order == []
    world.store.fetch_gate.set()
    for ticket in tickets:
        ticket.wait(1000)
    assert order == ["new1", "known", "new2"]


def test_a_call_that_gives_up_while_its_rows_are_read_is_never_decided(world: World) -> None:
    decided: list[int] = []
    world.store.fetch_gate.clear()
    with pytest.raises(DeadlineExceeded):
        world.commit("1", lambda change: decided.append(1), timeout_ms=30)
    world.store.fetch_gate.set()
    world.commit("1", lambda change: decided.append(2))
    assert decided == [2]


def test_a_read_that_fails_is_tried_again_and_an_unreadable_row_fails_alone(world: World) -> None:
    world.store.fetch_errors.append(ConnectionLost("gone"))
    assert world.commit("1", world.add_ram("1")) == 1
    world.database.seed(FLAVORS, flavor("good"), flavor("bad"))
    row = world.database.tables["flavors"][("bad",)]
    at = FLAVORS.columns.index("extra_specs")
    world.database.tables["flavors"][("bad",)] = (*row[:at], b"\xc1", *row[at + 1 :])
    good, bad = world.submit("good", world.add_ram("good")), world.submit("bad", world.add_ram("bad"))
    assert good.wait(1000) == 513
    with pytest.raises(msgspec.DecodeError):
        bad.wait(1000)
    assert world.commit("good", world.add_ram("good")) == 514


def test_rows_read_for_an_ownership_that_ended_are_thrown_away(world: World) -> None:
    world.database.seed(FLAVORS, flavor("1", name="old"))
    world.store.fetch_gate.clear()
    ticket = world.submit("1", world.add_ram("1"))
    gevent.sleep(0.01)
    world.ledger.lose([GLOBAL])
    with pytest.raises(NotOwner):
        ticket.wait(100)
    world.database.seed(FLAVORS, flavor("1", name="new"))
    world.ledger.gain([(GLOBAL, 2, world.lane, 0)])
    again = world.submit("1", lambda change: change.get(FLAVORS, ("1",)).name)
    world.store.fetch_gate.set()
    assert again.wait(1000) == "new"


def test_a_row_evicted_after_its_commit_is_read_as_committed() -> None:
    world = World(LedgerLimits(cache_rows_max=2))
    for round_ in range(1, 4):
        for n in range(6):
            assert world.commit(str(n), world.add_ram(str(n))) == round_
    assert not world.reason
    world.close()


def test_a_row_wanted_twice_is_not_brought_back_by_the_older_read() -> None:
    """The second read begins when the first has brought the row; it changes, commits and is evicted meanwhile."""
    world = World(LedgerLimits(cache_rows_max=5))
    uuids = [uuid for n in range(3000) if partition_of(uuid := f"00000000-0000-4000-8000-{n:012d}") != GLOBAL][:4]

    def touch() -> None:
        for uuid in uuids:
            world.ledger.commit(partition_of(uuid), [(INSTANCES, (uuid,))], lambda change: None, timeout_ms=1000)

    touch()
    world.database.seed(FLAVORS, flavor("k", memory_mb=0), *(flavor(f"x{n}") for n in range(4)))
    world.store.fetch_gate.clear()

    def decide(change: Change) -> Any:
        world.store.fetch_gate.clear()  # for the second read, which begins now
        return world.add_ram("k")(change)

    first = world.submit("k", decide)
    wait_for(lambda: len(world.database.fetches) == 5)
    second = world.ledger.submit(GLOBAL, world.flavor_keys("x0", "x1", "x2", "x3", "k"), world.add_ram("k"))
    world.connection.gate.clear()
    world.store.fetch_gate.set()
    wait_for(lambda: len(world.database.fetches) == 6)
    world.connection.gate.set()
    assert first.wait(1000) == 1
    touch()
    world.store.fetch_gate.set()
    assert second.wait(1000) == 2
    assert not world.reason
    world.close()
