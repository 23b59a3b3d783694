"""A delete in the middle of a move: at every step of every kind, nothing of the server is left."""

import pytest

from tests.unit.conductor.cell.cell_world import CellWorld
from tests.unit.conductor.cell.test_moves import WITHIN, Death, held, move, ready_for, where
from tests.unit.conductor.ledger_world import wait_for
from zcompute.conductor.tasks.moves.plans import STEP_PREPARE
from zcompute.objects.instance import VM_DELETED
from zcompute.objects.partition import partition_of

STEPS = [(kind, step) for kind, plan in WITHIN.items() for step in plan.steps]
UNDOS = [
    (kind, step) for kind, plan in WITHIN.items() if STEP_PREPARE in plan.steps for step in plan.undos(plan.steps[3])
]


def stopped_at(world: CellWorld, uuid: str, kind: str, step: str, before: bool) -> None:
    """The move's owner dies there, before that step's commit or after it; the next one finds it so."""
    death = Death(world, kind, step, before)
    move(world, uuid, kind)
    wait_for(lambda: death.came)
    death.over()
    world.engine.lose([partition_of(uuid)])


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("kind", "step"), STEPS + UNDOS)
def test_a_delete_at_any_step_of_a_move_leaves_no_copy_and_no_claim(kind: str, step: str, before: bool) -> None:
    world, uuid = ready_for(kind)
    try:
        if (kind, step) in UNDOS:
            world.agents["h1"].cannot |= {"send", "migrate"}
        stopped_at(world, uuid, kind, step, before)
        task = world.task(uuid)
        if task is not None:
            world.engine.gained([(world.instance(uuid), task)])
        world.delete(uuid)
        world.wait_state(uuid, VM_DELETED)
        assert [host for host in where(world, uuid)[0] if host not in world.forced] == []
        assert {host: agent.awaited for host, agent in world.agents.items() if agent.awaited} == {}
        assert held(world) == []
        assert world.task(uuid) is None
    finally:
        world.close()
