"""An agent killed, stopped, started twice: nothing is lost, nothing is done twice."""

import random
import time
from typing import Any

import gevent
import msgspec
from gevent.pool import Pool

from tests.cluster.agent_cell import (
    HOSTS,
    WAIT_S,
    Cell,
    call,
    eventually,
    kill,
    spawn_request,
)
from tests.orders import fresh, make_order
from zcompute.bus import BusError
from zcompute.compute.virt.fake_log import DomainLine, domain_log_path
from zcompute.objects.command import DestroyRequest
from zcompute.objects.methods import DESTROY, SPAWN
from zcompute.objects.report import (
    OUTCOME_DONE,
    OUTCOME_FAILED,
    VERDICT_APPLIED,
    Observation,
)


def test_an_agent_killed_in_mid_build_spawns_once_when_the_command_comes_again(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent(build_ms=60_000)
    link = conductor.ready()
    one = fresh()
    request = spawn_request(make_order(one))
    call(link, SPAWN, request)
    kill(agent)
    assert cell.domains("node1").spawns == {}

    conductor.attached.clear()
    cell.start_agent()
    link = conductor.ready()
    assert conductor.epochs == {"node1": 2, "node2": 2}
    call(link, SPAWN, request)
    eventually("a result came", lambda: conductor.results(one))
    call(link, SPAWN, request)
    eventually("the result came again", lambda: len(conductor.results(one)) == 2)
    assert cell.domains("node1").spawns == {one: 1}


def test_an_agent_killed_after_the_domain_appeared_finds_it_done(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent(build_ms=60_000)
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    kill(agent)
    line = msgspec.json.encode(DomainLine(op="spawn", uuid=one)) + b"\n"
    with domain_log_path(cell.directory / "hosts", "node1").open("ab") as file:
        file.write(line)

    conductor.attached.clear()
    cell.start_agent()
    conductor.ready()
    eventually("the result came", lambda: conductor.results(one))
    eventually("an observation came", lambda: conductor.observations(one))
    assert conductor.results(one)[0].outcome == OUTCOME_DONE
    assert conductor.observations(one)[0].generation == 1
    assert cell.domains("node1").spawns == {one: 1}


def test_results_outlive_kill_nine_and_sequences_rise(cell: Cell) -> None:
    conductor = cell.conductors[0]
    conductor.verdict = lambda _: None
    agent = cell.start_agent()
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    eventually("the result came", lambda: conductor.results(one))
    before = max(got.seq for got in conductor.got)
    kill(agent)

    conductor.got.clear()
    conductor.attached.clear()
    conductor.verdict = lambda _: VERDICT_APPLIED
    cell.start_agent()
    eventually("the result came again", lambda: conductor.results(one))
    eventually("a full state came", lambda: conductor.observations(one))
    assert {got.epochs["node1"] for got in conductor.got} == {2}
    newest = max(got.seq for got in conductor.got if isinstance(got.body, Observation))
    assert newest > before


def test_what_happened_at_the_hypervisor_while_the_agent_was_dead_is_reported(cell: Cell) -> None:
    """A machine that is gone, one that nobody touched, and one that nobody here made."""
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    link = conductor.ready()
    gone, kept = fresh(), fresh()
    for one in (gone, kept):
        call(link, SPAWN, spawn_request(make_order(one)))
        eventually("an observation came", lambda one=one: conductor.observations(one))
    kill(agent)
    stranger = fresh()
    with domain_log_path(cell.directory / "hosts", "node1").open("ab") as file:
        file.write(msgspec.json.encode(DomainLine(op="destroy", uuid=gone)) + b"\n")
        file.write(msgspec.json.encode(DomainLine(op="spawn", uuid=stranger)) + b"\n")
    conductor.got.clear()
    conductor.attached.clear()
    cell.start_agent()
    conductor.ready()
    for one in (gone, kept):
        eventually("an observation came", lambda one=one: conductor.observations(one))
    assert [seen.gone for seen in conductor.observations(gone)] == [True]
    assert [seen.gone for seen in conductor.observations(kept)] == [False]
    eventually("the unknown is told of", lambda: "domains that no owner knows are left alone" in cell.log_text())
    assert not conductor.observations(stranger)
    assert cell.domains("node1").running == {kept, stranger}


def test_a_second_agent_on_the_state_directory_is_refused(cell: Cell) -> None:
    cell.start_agent()
    cell.conductors[0].ready()
    second = cell.start_agent()
    assert second.wait(WAIT_S) != 0
    assert "is in use by another agent" in cell.log_text()


def test_sigterm_ends_the_agent_and_the_next_one_carries_on(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent(build_ms=200)
    link = conductor.ready()
    one = fresh()
    call(link, SPAWN, spawn_request(make_order(one)))
    agent.terminate()
    assert agent.wait(WAIT_S) == 0
    conductor.attached.clear()
    cell.start_agent()
    conductor.ready()
    eventually("the result came", lambda: conductor.results(one))
    assert conductor.results(one)[0].outcome != OUTCOME_FAILED
    assert cell.domains("node1").spawns == {one: 1}


def test_an_agent_killed_again_and_again_loses_and_repeats_nothing(cell: Cell) -> None:
    """Builds and deletes, each commanded until its result comes, while the agent dies by SIGKILL six times."""
    conductor = cell.conductors[0]
    agent = cell.start_agent(build_ms=20)
    dice = random.Random(7)
    uuids = [fresh() for _ in range(60)]
    host_of = {one: dice.choice(HOSTS) for one in uuids}
    deleted = set(uuids[::2])

    def commanded(method: Any, request: Any) -> None:
        """Command until the result of this very order has come, as a task does."""
        order = request.order
        wanted = (order.generation, order.task_id, order.step, order.attempt)
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            for result in conductor.results(order.instance_uuid):
                if (result.generation, result.task_id, result.step, result.attempt) == wanted:
                    assert result.outcome == OUTCOME_DONE
                    return
            try:
                conductor.link().call(method, request, timeout_ms=300)
            except (BusError, LookupError):
                pass
            gevent.sleep(0.05)
        raise AssertionError(f"no result of {order}")

    def walk(one: str) -> None:
        commanded(SPAWN, spawn_request(make_order(one, host=host_of[one])))
        if one in deleted:
            order = make_order(one, host=host_of[one], generation=2, task_id="t2", step="d", reporter_generation=0)
            commanded(DESTROY, DestroyRequest(order=order))

    pool = Pool(8)
    walks = [pool.spawn(walk, one) for one in uuids]
    for _ in range(6):
        conductor.ready()
        gevent.sleep(dice.uniform(0.02, 0.15))
        kill(agent)
        conductor.attached.clear()
        agent = cell.start_agent(build_ms=20)
    gevent.joinall(walks, timeout=60, raise_error=True)
    assert all(walk.successful() for walk in walks)

    logs = [cell.domains(host) for host in HOSTS]
    assert {one: count for log in logs for one, count in log.spawns.items()} == dict.fromkeys(uuids, 1)
    assert {one: count for log in logs for one, count in log.destroys.items()} == dict.fromkeys(deleted, 1)
    assert frozenset().union(*(log.running for log in logs)) == set(uuids) - deleted
    eventually("what runs is reported", lambda: all(conductor.observations(one) for one in set(uuids) - deleted))
