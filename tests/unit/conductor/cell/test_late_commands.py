"""A command of a step that comes behind that of a later step of the same move is stale: every step raises the command
generation. Without that the same interleaving leaves a half-made copy behind."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.unit.conductor.cell.cell_world import CellWorld
from tests.unit.conductor.ledger_world import wait_for
from zcompute.bus.errors import LinkDown
from zcompute.conductor.tasks.moves import walk
from zcompute.objects.errors import CommandRefused
from zcompute.objects.instance import VM_ACTIVE
from zcompute.objects.methods import STEP


@pytest.fixture
def world() -> Iterator[CellWorld]:
    world = CellWorld("h1", "h2", "h3")
    yield world
    world.close()


def unraised(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps of a move are told under one generation."""
    go_to = walk.go_to

    def kept(instance: Any, *arguments: Any) -> Any:
        decision = go_to(instance, *arguments)
        former = msgspec.structs.replace(decision.instance, command_generation=instance.command_generation)
        return msgspec.structs.replace(decision, instance=former)

    monkeypatch.setattr(walk, "go_to", kept)


def late_prepare(world: CellWorld) -> tuple[Any, str]:
    """The link to h2 breaks behind a prepare that is still on its way; the move is rolled back for another reason, and
    h2 destroys what it may have. Then the prepare comes."""
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    agent = world.agents["h2"]
    call, held = agent.call, []

    def breaks(method: Any, request: Any, *, timeout_ms: int) -> Any:
        if method is STEP and not held:
            held.append(request)
            raise LinkDown("it broke behind this")
        return call(method, request, timeout_ms=timeout_ms)

    agent.call = breaks  # type: ignore[method-assign]
    agent.cannot.add("prepare")
    world.full.add("h3")
    world.act(uuid, "migrate", administrator=True)
    wait_for(lambda: world.instance(uuid).task_id is None)
    assert len(agent.named("destroy")) == 1
    agent.cannot.clear()
    try:
        call(STEP, held[0], timeout_ms=1000)
    except CommandRefused as error:
        return agent, str(error.details["reason"])
    return agent, ""


def test_a_prepare_behind_the_destroy_that_undid_it_is_refused(world: CellWorld) -> None:
    agent, refused = late_prepare(world)
    assert (refused, agent.awaited) == ("stale_generation", set())


def test_without_a_generation_for_each_step_it_would_be_obeyed(
    world: CellWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraised(monkeypatch)
    agent, refused = late_prepare(world)
    assert (refused, len(agent.awaited)) == ("", 1)
