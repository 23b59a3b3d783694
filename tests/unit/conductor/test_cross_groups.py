"""Members of server groups between cells: each cell sees to its own hosts; those that are to be together stay."""

from collections.abc import Iterator

import pytest

from tests.unit.conductor.cross_world import CrossWorld
from zcompute.db.tables import GROUP_PLACEMENTS
from zcompute.objects.group import AFFINITY, ANTI_AFFINITY, SOFT_AFFINITY, GroupPlacement, GroupRule
from zcompute.objects.instance import VM_ACTIVE, ServerSpec

GROUP = "6f70656e-7374-4163-8b00-0000000000aa"
OTHER = "00000000-0000-4000-8000-0000000000ff"


@pytest.fixture
def world() -> Iterator[CrossWorld]:
    world = CrossWorld()
    yield world
    world.close()


def place(member: str, host: str, claim: str) -> GroupPlacement:
    task_id, _, attempt = claim.rpartition("/")
    return GroupPlacement(group_uuid=GROUP, instance_uuid=member, task_id=task_id, attempt=int(attempt), host=host)


def join(world: CrossWorld, policy: str) -> None:
    """The server is a member, with its place in c1."""
    world.mapping.group_uuid = GROUP
    world.c1.world.put(world.uuid, spec=ServerSpec(group=GroupRule(uuid=GROUP, policy=policy)))
    row = world.row("c1")
    world.c1.world.database.seed(GROUP_PLACEMENTS, place(world.uuid, row.host, row.claim))


def places(world: CrossWorld, cell: str) -> list[tuple[str, str]]:
    rows = world.side(cell).world.database.tables[GROUP_PLACEMENTS.name].values()
    return sorted((row.instance_uuid, row.host) for row in map(GROUP_PLACEMENTS.from_row, rows))


def test_a_member_takes_a_place_in_the_other_cell_beside_those_that_are_there_and_leaves_its_own(
    world: CrossWorld,
) -> None:
    join(world, ANTI_AFFINITY)
    world.c2.world.database.seed(GROUP_PLACEMENTS, place(OTHER, "k1", "t/1"))
    world.ask()
    assert not world.ended().body.result
    assert (world.mapping.cell, world.mapping.group_uuid) == ("c2", GROUP)
    assert world.row("c2").host == "k2"
    assert (places(world, "c1"), places(world, "c2")) == ([], [(OTHER, "k1"), (world.uuid, "k2")])


@pytest.mark.parametrize("policy", [AFFINITY, SOFT_AFFINITY])
def test_a_member_that_is_to_be_with_the_others_stays(world: CrossWorld, policy: str) -> None:
    join(world, policy)
    world.ask()
    assert "stay in one cell" in world.ended().body.result
    assert (world.mapping.cell, world.row("c1").vm_state) == ("c1", VM_ACTIVE)
    assert (places(world, "c1"), places(world, "c2")) == ([(world.uuid, "h1")], [])
