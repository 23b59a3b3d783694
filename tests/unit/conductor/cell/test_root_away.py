"""What a cell refuses while it owes the root all that it may: before any effect."""

from collections.abc import Iterator

import pytest

from tests.unit.conductor.cell.cell_world import QUICK, CellWorld
from zcompute.bus.errors import Busy
from zcompute.objects.instance import VM_ACTIVE, VM_DELETED


@pytest.fixture
def world() -> Iterator[CellWorld]:
    made = CellWorld("h1", settings=QUICK)
    yield made
    made.close()


def full(_: int) -> None:
    raise Busy("outbox_rows_max", retry_after_ms=1000)


def test_builds_and_deletes_are_refused_before_any_effect_while_the_outbox_is_full(world: CellWorld) -> None:
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    room, commits = world.outbox.check_room, len(world.ledger_world.database.commits)
    world.outbox.check_room = full
    with pytest.raises(Busy):
        world.delete(uuid)
    with pytest.raises(Busy):
        world.build(uuid="11111111-1111-4111-8111-111111111111")
    assert len(world.ledger_world.database.commits) == commits
    assert world.instance(uuid).task_state is None
    world.outbox.check_room = room
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)


def test_what_is_under_way_counts_as_if_it_owed_its_word_already(world: CellWorld) -> None:
    counted: list[int] = []
    world.outbox.check_room = counted.append
    uuid = world.build()
    world.delete(uuid)
    assert counted[0] == 0
    assert counted[1] in (0, 1), "the build, unless it has ended by then"
