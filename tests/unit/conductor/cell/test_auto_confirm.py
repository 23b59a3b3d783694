"""Moves that nobody confirms: after their window, once, and only the move that was seen."""

from collections.abc import Iterator
from types import SimpleNamespace

import msgspec
import pytest

from tests.unit.conductor.cell.cell_world import CellWorld
from zcompute.conductor.cell.auto_confirm import AutoConfirm
from zcompute.conductor.cell.settings import CellSettings
from zcompute.db.tables import INSTANCE_ACTIONS
from zcompute.objects.instance import VM_ACTIVE, VM_RESIZED

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


def sweep(world: CellWorld, *pages, rows_max: int = 1000, asked: list | None = None) -> AutoConfirm:
    """An hour's window, over a store that answers each look with the next page."""
    left = list(pages)

    def list_instances(query):
        assert (query.project_id, query.vm_states, query.limit) == (None, [VM_RESIZED], rows_max)
        if asked is not None:
            asked.append(query.after)
        return left.pop(0)

    store = SimpleNamespace(list_instances=list_instances)
    settings = CellSettings(confirm_rows_max=rows_max)
    return AutoConfirm(world.ledger, store, HOUR_S, settings, world.actions.confirm)


def waited(world: CellWorld, uuid: str, hours: int) -> None:
    since_us = world.ledger.now_us() - hours * HOUR_S * 1_000_000
    world.put(uuid, move=msgspec.structs.replace(world.instance(uuid).move, since_us=since_us))


def test_a_move_is_confirmed_when_its_window_is_over_and_not_before(world: CellWorld, moved: str) -> None:
    assert sweep(world, [world.instance(moved)]).look() == 0
    waited(world, moved, 2)
    world.put(moved, locked=True, locked_by_admin=True)
    seen = world.instance(moved)
    assert sweep(world, [seen]).look() == 1
    row = world.wait_state(moved, VM_ACTIVE)
    assert (row.host, row.move) == ("h2", None)
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
    sweep(world, [seen]).look()
    assert world.instance(moved) == again


def test_what_another_conductor_owns_or_a_task_has_is_left_alone(world: CellWorld, moved: str) -> None:
    waited(world, moved, 2)
    seen = world.instance(moved)
    confirmed: list[str] = []
    ledger = SimpleNamespace(now_us=world.ledger.now_us, owns=lambda partition: False)
    store = SimpleNamespace(list_instances=lambda query: [seen])
    others = AutoConfirm(ledger, store, HOUR_S, CellSettings(), lambda each: confirmed.append(each.uuid))
    assert others.look() == 0
    assert sweep(world, [msgspec.structs.replace(seen, task_id="parked")]).look() == 0
    assert (confirmed, world.instance(moved)) == ([], seen)


def test_looks_go_round_all_that_wait(world: CellWorld, moved: str) -> None:
    row = world.instance(moved)
    asked: list = []
    looks = sweep(world, [row], [], [row], rows_max=1, asked=asked)
    for _ in range(3):
        looks.look()
    assert asked == [None, [row.created_at_us, row.uuid], None]
