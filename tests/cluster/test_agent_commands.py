"""What an agent makes of commands: once, in order, of the present owner only."""

import pytest

from tests.cluster.agent_cell import Cell, call, eventually, kill, spawn_request
from tests.orders import fresh, make_order
from zcompute.objects.command import AdoptRequest, CommandReply, DestroyRequest, ForgetRequest
from zcompute.objects.errors import CommandRefused, HostNotFound
from zcompute.objects.instance import POWER_RUNNING
from zcompute.objects.methods import ADOPT, DESTROY, FORGET, SPAWN
from zcompute.objects.partition import PARTITIONS
from zcompute.objects.report import (
    OUTCOME_DONE,
)


def test_a_spawn_and_a_destroy_come_back_as_results_and_observations(cell: Cell) -> None:
    conductor = cell.conductors[0]
    cell.start_agent()
    link = conductor.ready()
    one = fresh()

    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("an observation came", lambda: conductor.observations(one))
    (result,) = conductor.results(one)
    assert (result.outcome, result.power_state, result.host) == (OUTCOME_DONE, POWER_RUNNING, "node1")
    (seen,) = conductor.observations(one)
    assert (seen.generation, seen.power_state, seen.gone) == (1, POWER_RUNNING, False)
    assert cell.domains("node1").running == {one}

    order = make_order(one, generation=2, task_id="t2", step="destroy", reporter_generation=0)
    call(link, DESTROY, DestroyRequest(order=order))
    eventually("the destroy's result came", lambda: len(conductor.results(one)) == 2)
    assert conductor.results(one)[1].task_id == "t2"
    assert cell.domains("node1").running == frozenset()
    call(link, FORGET, ForgetRequest(order=order))


def test_a_spawn_that_comes_twice_spawns_once_and_answers_twice(cell: Cell) -> None:
    conductor = cell.conductors[0]
    cell.start_agent(build_ms=100)
    link = conductor.ready()
    one = fresh()
    request = spawn_request(make_order(one))

    for _ in range(3):
        call(link, SPAWN, request)
    eventually("a result came", lambda: conductor.results(one))
    call(link, SPAWN, request)
    eventually("the result came again", lambda: len(conductor.results(one)) == 2)
    assert {result.outcome for result in conductor.results(one)} == {OUTCOME_DONE}
    assert cell.domains("node1").spawns == {one: 1}


def test_orders_of_an_older_owner_or_generation_are_refused(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    link = conductor.ready()
    one, two = fresh(), fresh()
    call(link, SPAWN, spawn_request(make_order(one, generation=5, owner_epoch=7)))

    with pytest.raises(CommandRefused) as refused:
        call(link, DESTROY, DestroyRequest(order=make_order(one, generation=6, owner_epoch=6)))
    assert refused.value.details["reason"] == "stale_owner"
    with pytest.raises(CommandRefused) as refused:
        call(link, DESTROY, DestroyRequest(order=make_order(one, generation=4, owner_epoch=7)))
    assert refused.value.details["reason"] == "stale_generation"
    with pytest.raises(HostNotFound):
        call(link, SPAWN, spawn_request(make_order(two, host="elsewhere")))

    cell.publish(["k1"] * PARTITIONS, version=9)
    eventually("the agent has the new map", lambda: "version=9" in cell.log_text())
    with pytest.raises(CommandRefused) as refused:
        call(link, SPAWN, spawn_request(make_order(two, owner_epoch=8)))
    assert refused.value.details["reason"] == "stale_owner"

    eventually("the first is done", lambda: conductor.results(one))
    kill(agent)
    conductor.attached.clear()
    cell.start_agent()
    link = conductor.ready()
    with pytest.raises(CommandRefused) as refused:
        call(link, DESTROY, DestroyRequest(order=make_order(one, generation=4, owner_epoch=9)))
    assert refused.value.details["reason"] == "stale_generation"
    assert cell.domains("node1").running == {one}


def test_an_adopter_learns_what_is_here_and_takes_command(cell: Cell) -> None:
    conductor = cell.conductors[0]
    cell.start_agent()
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the result came", lambda: conductor.results(one))

    reply = call(link, ADOPT, AdoptRequest(order=make_order(one, generation=2, step="adopt")))
    assert (reply.running, reply.power_state) == (True, POWER_RUNNING)
    assert (reply.last_task_id, reply.last_step, reply.last_attempt) == ("t1", "spawn", 1)
    assert reply.last_outcome == OUTCOME_DONE
    with pytest.raises(CommandRefused):
        call(link, SPAWN, spawn_request(make_order(one)))
    call(link, SPAWN, spawn_request(make_order(one, generation=2)))
    eventually("done again, without a spawn", lambda: len(conductor.results(one)) == 2)
    assert conductor.results(one)[1].generation == 2
    assert cell.domains("node1").spawns == {one: 1}
    nothing = call(link, ADOPT, AdoptRequest(order=make_order(fresh())))
    assert nothing == CommandReply()


def test_a_build_asks_conductors_nothing(cell: Cell) -> None:
    conductor = cell.conductors[0]
    cell.start_agent(build_ms=300)
    link = conductor.ready()
    cell.conductors[1].ready()
    asked = [list(c.calls) for c in cell.conductors]
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the result came", lambda: conductor.results(one))
    assert [list(c.calls) for c in cell.conductors] == asked
