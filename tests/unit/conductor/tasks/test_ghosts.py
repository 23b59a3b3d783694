"""A host that was forced down is back, with domains of instances that were deleted meanwhile."""

import pytest

from tests.unit.conductor.cell.cell_world import CellWorld
from tests.unit.conductor.ledger_world import wait_for
from zcompute.objects.instance import VM_ACTIVE, VM_DELETED
from zcompute.objects.report import VERDICT_SUPERSEDED, Observation


@pytest.fixture
def world():
    made = CellWorld("h1")
    yield made
    made.close()


def deleted_while_down(world):
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    agent = world.agents["h1"]
    agent.up = False
    world.forced = {"h1"}
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)
    world.commands.force_down("h1", True)
    world.attach(agent)
    return uuid, agent


def seen(uuid, **fields):
    return Observation(instance_uuid=uuid, host="h1", generation=1, power_state=1, **fields)


def test_what_the_host_reports_is_destroyed_in_quarantine(world):
    uuid, agent = deleted_while_down(world)
    assert uuid in agent.domains
    agent.report(seen(uuid))
    wait_for(lambda: uuid not in agent.domains)
    (order,) = agent.named("destroy")
    assert order.generation == world.instance(uuid).command_generation
    wait_for(lambda: agent.verdicts.count(VERDICT_SUPERSEDED) == 2)  # the observation, and the result of the destroy
    agent.report(seen(uuid, gone=True))
    wait_for(lambda: agent.verdicts.count(VERDICT_SUPERSEDED) == 3)
    assert len(agent.named("destroy")) == 1


def test_a_host_that_is_gone_again_is_asked_at_its_next_report(world):
    uuid, agent = deleted_while_down(world)
    agent.mute = True
    agent.report(seen(uuid))
    wait_for(lambda: not world.engine.ghosts._known and agent.verdicts.count(VERDICT_SUPERSEDED) == 1)
    agent.mute = False
    agent.report(seen(uuid))
    wait_for(lambda: uuid not in agent.domains)


def test_forcing_a_host_down_wakes_what_waits_for_it(world):
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.agents["h1"].up = False
    world.delete(uuid)
    wait_for(lambda: world.engine.counts()[1] == 1)
    world.forced = {"h1"}
    world.commands.force_down("h1", True)
    world.wait_state(uuid, VM_DELETED)
