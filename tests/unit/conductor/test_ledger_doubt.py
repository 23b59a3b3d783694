"""Lost connections, fences and guards: what they do to verdicts."""

import pytest

from tests.unit.conductor.ledger_fake import BUSY, LOST_AFTER, LOST_BEFORE
from tests.unit.conductor.ledger_world import World, wait_for
from zcompute.bus.errors import NotOwner
from zcompute.conductor.settings import LedgerLimits


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER])
def test_a_lost_connection_costs_nothing_and_repeats_nothing(world: World, fault: str) -> None:
    world.commit("1", world.add_ram("1"))
    world.connection.faults.append(fault)
    assert world.commit("1", world.add_ram("1")) == 2
    stored = world.stored("1")
    assert stored is not None
    assert stored.memory_mb == 2
    assert world.connection.reconnects == 1
    numbers = [number for number, _ in world.connection.sent]
    assert len({nonce for number, nonce in world.connection.sent if number == numbers[2]}) == 1, "the same bytes again"


def test_a_resend_found_applied_gives_no_verdict_before_a_barrier_has_committed(world: World) -> None:
    world.connection.faults.extend([LOST_AFTER])
    before = world.lane.applied
    world.commit("1", world.add_ram("1"))
    assert world.lane.applied == before + 2
    assert world.database.commits[-1].changes == []


def test_a_barrier_that_is_lost_too_needs_another(world: World) -> None:
    world.connection.faults.extend([LOST_AFTER, "", LOST_AFTER])
    before = world.lane.applied
    assert world.commit("1", world.add_ram("1")) == 1
    assert world.lane.applied == before + 3


def test_a_busy_database_is_asked_again(world: World) -> None:
    world.connection.faults.extend([BUSY, BUSY])
    assert world.commit("1", world.add_ram("1")) == 1


def test_no_database_for_too_long_ends_the_incarnation() -> None:
    world = World(LedgerLimits(retry_ms_min=1, retry_ms_max=5, lane_retry_s_max=0.1))
    world.commit("1", world.add_ram("1"))
    world.database.down = True
    with pytest.raises(NotOwner):
        world.commit("1", world.add_ram("1"))
    assert "no database" in world.reason
    world.close()


def test_a_fenced_lane_ends_all_and_every_waiting_call_is_told(world: World) -> None:
    lost: list[list[int]] = []
    world.ledger.on_lose(lost.append)
    world.commit("1", world.put_flavor("1", name="a"))
    world.connection.gate.clear()
    in_flight = world.submit("1", world.put_flavor("1", name="b"))
    wait_for(lambda: len(world.connection.sent) > world.lane.applied)
    filling = world.submit("1", world.put_flavor("1", name="c"))
    world.store.fetch_gate.clear()
    loading = world.submit("2", world.put_flavor("2"))
    world.database.kill("i1", [])
    world.connection.gate.set()
    for ticket in (in_flight, filling, loading):
        with pytest.raises(NotOwner):
            ticket.wait(1000)
    with pytest.raises(NotOwner):
        world.commit("1", world.put_flavor("1"))
    stored = world.stored("1")
    assert stored is not None
    assert stored.name == "a"
    wait_for(lambda: lost == [list(range(256))])


def test_a_guard_that_fails_ends_the_incarnation(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="a"))
    del world.database.tables["flavors"][("1",)]
    with pytest.raises(NotOwner):
        world.commit("1", world.put_flavor("1", name="b"))
    assert "another row" in world.reason
