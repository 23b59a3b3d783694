"""Moves that nobody confirms: after their window, once, and only the move that was seen."""

from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest

from tests.unit.conductor.cell.cell_world import CellWorld
from zcompute.conductor.cell.auto_confirm import AutoConfirm
from zcompute.conductor.cell.settings import CellSettings
from zcompute.db.tables import INSTANCE_ACTIONS, INSTANCES
from zcompute.objects.instance import VM_ACTIVE, VM_ERROR, VM_RESIZED
from zcompute.objects.partition import partition_of

HOUR_S = 3600


@pytest.fixture
def world() -> Iterator[CellWorld]:
    world = CellWorld("h1", "h2")
    yield world
    world.close()


@pytest.fixture
def moved(world: CellWorld) -> str:
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.act(uuid, "migrate", administrator=True)
    world.wait_state(uuid, VM_RESIZED)
    return uuid


def sweep(world: CellWorld, *seen) -> AutoConfirm:
    """An hour's window, over a store that finds these, whatever they are by now."""

    def expired(table, partition, column, before_us, limit):
        assert (table, column, limit) == (INSTANCES, "resized_at_us", CellSettings().confirm_rows_max)
        return [each for each in seen if partition_of(each.uuid) == partition and each.resized_at_us < before_us]

    store = SimpleNamespace(expired=expired)
    return AutoConfirm(world.ledger, store, HOUR_S, CellSettings(), world.actions.confirm)


def waited(world: CellWorld, uuid: str, hours: int) -> None:
    since_us = world.ledger.now_us() - hours * HOUR_S * 1_000_000
    move = msgspec.structs.replace(world.instance(uuid).move, since_us=since_us)
    world.put(uuid, move=move, resized_at_us=since_us)


def test_a_move_is_confirmed_when_its_window_is_over_and_not_before(world: CellWorld, moved: str) -> None:
    assert sweep(world, world.instance(moved)).look() == 0
    waited(world, moved, 2)
    world.put(moved, locked=True, locked_by_admin=True)
    seen = world.instance(moved)
    assert sweep(world, seen).look() == 1
    row = world.wait_state(moved, VM_ACTIVE)
    assert (row.host, row.move, row.resized_at_us) == ("h2", None, None)
    assert (world.agents["h1"].domains, sorted(world.claims.values())) == (set(), ["h2"])
    done = world.database.row(INSTANCE_ACTIONS, (moved, f"confirm-{moved}-{seen.move.since_us}"))
    assert (done.action, done.result) == ("confirmResize", "Success")


def test_a_move_that_was_reverted_meanwhile_or_is_another_is_left_alone(world: CellWorld, moved: str) -> None:
    waited(world, moved, 2)
    seen = world.instance(moved)
    world.act(moved, "revert_resize")
    world.wait_state(moved, VM_ACTIVE)
    world.act(moved, "migrate", administrator=True)
    again = world.wait_state(moved, VM_RESIZED)
    sweep(world, seen).look()
    assert world.instance(moved) == again


def test_what_another_conductor_owns_or_a_task_has_is_left_alone(world: CellWorld, moved: str) -> None:
    waited(world, moved, 2)
    seen = world.instance(moved)
    confirmed: list[str] = []
    mine = [partition for partition in world.ledger.owned() if partition != partition_of(moved)]
    ledger = SimpleNamespace(now_us=world.ledger.now_us, owned=lambda: mine, owns=lambda partition: True)
    store = SimpleNamespace(expired=lambda table, partition, *_: [seen] if partition == partition_of(moved) else [])
    others = AutoConfirm(ledger, store, HOUR_S, CellSettings(), lambda each: confirmed.append(each.uuid))
    assert others.look() == 0
    assert sweep(world, msgspec.structs.replace(seen, task_id="parked")).look() == 0
    assert (confirmed, world.instance(moved)) == ([], seen)


def test_the_index_has_what_waits_and_nothing_else(world: CellWorld, moved: str) -> None:
    """Each way out of waiting, and back: whatever cannot be confirmed would stand before all others."""
    waits = world.instance(moved)
    assert waits.resized_at_us == waits.move.since_us
    world.act(moved, "reset_state", administrator=True, vm_state=VM_ERROR)
    assert world.instance(moved).resized_at_us is None
    world.act(moved, "reset_state", administrator=True, vm_state=VM_ACTIVE)
    assert (world.instance(moved).vm_state, world.instance(moved).resized_at_us) == (VM_RESIZED, waits.resized_at_us)
    world.agents["h2"].silent = True
    world.act(moved, "revert_resize")
    assert world.instance(moved).resized_at_us is None
    world.delete(moved)
    assert world.instance(moved).resized_at_us is None
