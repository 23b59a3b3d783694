"""Every move of a server group's member across the death of its owner at every step: its places are those of its
claims, at every end."""

import pytest

from tests.unit.conductor.cell.cell_world import CellWorld
from tests.unit.conductor.cell.test_group_tasks import active, member
from tests.unit.conductor.cell.test_moves import FINAL, WITHIN, die_at, force_down, held, make_ready, world_for
from zcompute.conductor.tasks.moves.plans import STEP_CLAIM, STEP_PREPARE, STEP_SCHEDULE, Plan
from zcompute.db.tables import GROUP_PLACEMENTS
from zcompute.objects.group import AFFINITY, ANTI_AFFINITY
from zcompute.objects.instance import VM_ACTIVE
from zcompute.objects.task import TASK_UNSHELVE


def _undos(plan: Plan) -> list[str]:
    return plan.undos(plan.steps[3])


BACK = [
    *((kind, step) for kind, plan in WITHIN.items() if STEP_PREPARE in plan.steps for step in _undos(plan)),
    *((kind, "rolled_back") for kind, plan in WITHIN.items() if STEP_CLAIM in plan.steps and kind != TASK_UNSHELVE),
]


def assert_places_are_of_claims(world: CellWorld) -> None:
    rows = [GROUP_PLACEMENTS.from_row(row) for row in world.database.tables[GROUP_PLACEMENTS.name].values()]
    found = {(row.instance_uuid, row.task_id, row.attempt): row.host for row in rows}
    assert found == world.claims
    assert len(rows) == len(found)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("kind", "step"), [(kind, step) for kind, plan in WITHIN.items() for step in plan.steps])
def test_the_owner_dies_at_a_step_of_a_members_move(kind: str, step: str, before: bool) -> None:
    """A neighbour is on the host that comes first in the scheduler's mind."""
    world = world_for(kind)
    try:
        uuid = active(world, ANTI_AFFINITY)
        world.hosts = ["h3", "h1", "h2"]
        neighbour = active(world, ANTI_AFFINITY)
        assert world.instance(neighbour).host == "h3"
        make_ready(world, uuid, kind)
        die_at(world, uuid, kind, step, before)
        vm_state, _, _, claims = FINAL[kind]
        assert world.instance(uuid).vm_state == vm_state
        assert held(world) == sorted([*claims, "h3"])
        assert_places_are_of_claims(world)
    finally:
        world.close()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("kind", "step"), BACK)
def test_the_owner_dies_on_the_way_back_of_a_members_move(kind: str, step: str, before: bool) -> None:
    world = CellWorld("h1", "h2", "h3")
    try:
        uuid = active(world, ANTI_AFFINITY)
        former = world.instance(uuid)
        world.agents["h1"].cannot |= {"send", "migrate"}
        if kind == "evacuate":
            force_down(world, "h1")
            world.full |= {"h2", "h3"}
        die_at(world, uuid, kind, step, before)
        row = world.instance(uuid)
        assert (row.host, row.claim, row.vm_state) == ("h1", former.claim, VM_ACTIVE)
        assert_places_are_of_claims(world)
    finally:
        world.close()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("kind", [kind for kind, plan in WITHIN.items() if plan.steps[0] == STEP_SCHEDULE])
def test_the_owner_dies_while_the_policy_keeps_a_member_where_it_is(kind: str, before: bool) -> None:
    world = CellWorld("h1", "h2", "h3")
    try:
        uuid, other = active(world, AFFINITY), active(world, AFFINITY)
        make_ready(world, uuid, kind)
        die_at(world, uuid, kind, STEP_SCHEDULE, before)
        assert [world.instance(one).host for one in (uuid, other)] == ["h1", "h1"]
        assert_places_are_of_claims(world)
    finally:
        world.close()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("step", ["schedule", "claim", "spawn"])
def test_the_owner_dies_at_a_step_of_a_members_build(step: str, before: bool) -> None:
    world = CellWorld("h1", "h2", "h3")
    try:
        active(world, ANTI_AFFINITY)
        world.full.add("h2")
        uuid = die_at(world, "", "build", step, before, begin=lambda: member(world, ANTI_AFFINITY))
        assert world.instance(uuid).host == "h3"
        assert_places_are_of_claims(world)
    finally:
        world.close()
