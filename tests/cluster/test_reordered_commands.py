"""Commands of one instance that the wire reorders: two conductors command one agent, and what the first has said is
held back on its way until the second has been obeyed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import pytest

from tests.cluster.agent_cell import Cell, Conductor, call, eventually, spawn_request
from tests.cluster.forwarder import Forwarder
from tests.orders import fresh, make_instance, make_order
from zcompute.bus import Link
from zcompute.objects.command import AdoptRequest, DestroyRequest, StepRequest
from zcompute.objects.errors import CommandRefused
from zcompute.objects.instance import POWER_RUNNING
from zcompute.objects.methods import ADOPT, DESTROY, SPAWN, STEP
from zcompute.objects.partition import PARTITIONS


@dataclass
class Wire:
    """An agent with two links, of which the first can be held back."""

    cell: Cell
    forwarder: Forwarder
    first: Link
    second: Link
    conductor: Conductor

    def late(self, method: Any, request: Any, meanwhile: Callable[[], None]) -> str:
        """Send over the first link, do something, let it come; why it was refused, "" when it was not."""
        self.forwarder.hold()
        waiter = gevent.spawn(call, self.first, method, request)
        gevent.sleep(0)
        try:
            meanwhile()
        finally:
            self.forwarder.release()
        try:
            waiter.get(timeout=5)
        except CommandRefused as error:
            return str(error.details["reason"])
        return ""

    def running(self) -> set[str]:
        return set(self.cell.domains("node1").running)

    def ended(self, uuid: str, step: str) -> None:
        results = [result for conductor in self.cell.conductors for result in conductor.results(uuid)]
        assert all(result.outcome == "done" for result in results)
        eventually(f"{step} ended", lambda: any(r.step == step for c in self.cell.conductors for r in c.results(uuid)))


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    directory: Path = tmp_path_factory.mktemp("w")
    cell = Cell(directory)
    try:
        first, second = cell.conductors
        forwarder = Forwarder(int(first.address.rpartition(":")[2]))
        first.address = f"tcp://127.0.0.1:{forwarder.port}"
        cell.publish(["k1", "k2"] * (PARTITIONS // 2), version=1)
        cell.start_agent()
        yield Wire(cell, forwarder, first.ready(), second.ready(), first)
    finally:
        cell.close()


def test_a_spawn_behind_the_destroy_that_followed_it_builds_nothing(wire: Wire) -> None:
    one = fresh()

    def destroyed() -> None:
        order = make_order(one, generation=2, task_id="t2", step="destroy", reporter_generation=0)
        call(wire.second, DESTROY, DestroyRequest(order=order))
        wire.ended(one, "destroy")

    assert wire.late(SPAWN, spawn_request(make_order(one)), destroyed) == "stale_generation"
    assert one not in wire.running()
    assert wire.cell.domains("node1").spawns.get(one, 0) == 0


def test_a_destroy_behind_the_spawn_that_followed_it_destroys_nothing(wire: Wire) -> None:
    """The way back of one move, and the next move to the same host."""
    one = fresh()
    undo = make_order(one, generation=1, task_id="t1", step="undo_prepare", reporter_generation=0)

    def spawned() -> None:
        call(wire.second, SPAWN, spawn_request(make_order(one, generation=2, task_id="t2")))
        wire.ended(one, "spawn")

    assert wire.late(DESTROY, DestroyRequest(order=undo), spawned) == "stale_generation"
    assert one in wire.running()


def test_a_former_owners_step_behind_the_adoption_by_the_next_does_nothing(wire: Wire) -> None:
    one = fresh()
    call(wire.second, SPAWN, spawn_request(make_order(one)))
    wire.ended(one, "spawn")
    stop = make_order(one, generation=2, task_id="t2", step="send", reporter_generation=0)
    request = StepRequest(order=stop, verb="stop", instance=make_instance(one))

    def adopted() -> None:
        order = make_order(one, owner_epoch=2, generation=3, task_id="t2", step="send", reporter_generation=0)
        assert call(wire.second, ADOPT, AdoptRequest(order=order)).running

    assert wire.late(STEP, request, adopted) == "stale_owner"
    reply = call(
        wire.second, ADOPT, AdoptRequest(order=make_order(one, owner_epoch=2, generation=4, reporter_generation=0))
    )
    assert (reply.running, reply.power_state) == (True, POWER_RUNNING)
