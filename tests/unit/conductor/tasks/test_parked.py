"""Parked tasks whose hosts never attach again: looked at by time."""

from dataclasses import replace

import pytest

from tests.unit.conductor.cell.cell_world import QUICK, CellWorld
from tests.unit.conductor.ledger_world import wait_for
from zcompute.objects.instance import VM_ACTIVE, VM_DELETED, VM_ERROR

SWEPT = replace(QUICK, build_deadline_s=1, delete_deadline_s=1, parked_look_s=0.05)
BY_HAND = replace(SWEPT, parked_look_s=60.0)


@pytest.fixture
def make():
    worlds = []

    def build(*hosts, settings=SWEPT):
        worlds.append(CellWorld(*hosts, settings=settings))
        worlds[-1].engine.start()
        return worlds[-1]

    yield build
    for world in worlds:
        world.close()


def parked(world, *, delete=False):
    """A task that has parked, its host away without a word."""
    agent = world.agents["h1"]
    agent.silent = not delete
    uuid = world.build()
    if delete:
        world.wait_state(uuid, VM_ACTIVE)
        agent.silent = agent.mute = True
        world.delete(uuid)
    else:
        wait_for(lambda: agent.named("spawn"))
    agent.up = False
    world.wait_state(uuid, VM_ERROR)
    wait_for(lambda: world.engine.counts()[1] == 0)
    return uuid


def test_a_delete_whose_host_is_forced_down_without_a_word_ends(make):
    world = make("h1")
    uuid = parked(world, delete=True)
    world.forced = {"h1"}
    world.wait_state(uuid, VM_DELETED)
    assert world.claims == {}


def test_a_build_whose_host_is_forced_down_ends_in_error_and_keeps_its_host(make):
    world = make("h1", "h2")
    uuid = parked(world)
    world.forced = {"h1"}
    wait_for(lambda: world.instance(uuid).task_id is None)
    row = world.instance(uuid)
    assert (row.vm_state, row.host, world.claims) == (VM_ERROR, "h1", {(uuid, *_claim(row)): "h1"})
    assert "was forced down" in row.fault.message
    assert not world.agents["h2"].commands
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)
    assert world.claims == {}


def _claim(row):
    task_id, _, attempt = row.claim.rpartition("/")
    return task_id, int(attempt)


def test_a_build_on_a_forced_down_host_that_was_told_nothing_goes_elsewhere(make):
    world = make("h1", "h2")
    world.agents["h1"].up = False
    world.forced = {"h1"}
    uuid = world.build()
    assert world.wait_state(uuid, VM_ACTIVE).host == "h2"


def test_an_answer_that_no_attach_announced_is_found_by_the_sweep(make):
    world = make("h1")
    uuid = parked(world)
    agent = world.agents["h1"]
    agent.silent, agent.up = False, True  # linked again, and the conductor that heard it has died since
    world.wait_state(uuid, VM_ACTIVE)


def test_the_sweep_goes_round_in_bounded_rounds(make):
    world = make("h1", settings=replace(BY_HAND, parked_looks_max=2))
    agent = world.agents["h1"]
    agent.silent = True
    uuids = [world.build(uuid=f"{number:08d}-0000-4000-8000-000000000001") for number in range(3)]
    wait_for(lambda: len(agent.named("spawn")) >= 3)
    agent.up = False
    for uuid in uuids:
        world.wait_state(uuid, VM_ERROR)
    wait_for(lambda: world.engine.counts()[1] == 0)
    sweep = world.engine._parked
    assert sweep.sweep() == 0
    sweep._after = ""
    world.forced = {"h1"}
    assert [sweep.sweep(), sweep.sweep()] == [2, 1]
    wait_for(lambda: all(world.instance(uuid).task_id is None for uuid in uuids))
