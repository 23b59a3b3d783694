"""An agent whose journal is gone, cut off, or cannot be written; and two agents that hold one key."""

import resource
import shutil
from pathlib import Path

import psutil
import pytest

from tests.cluster.agent_cell import Cell, call, eventually, kill, spawn_request
from tests.orders import fresh, make_order
from zcompute.bus import Link
from zcompute.bus.errors import Busy
from zcompute.cli.exits import HOSTS_TAKEN
from zcompute.compute.virt.fake_log import domain_log_path
from zcompute.objects.command import AdoptRequest, DestroyRequest
from zcompute.objects.methods import ADOPT, DESTROY, SPAWN
from zcompute.objects.report import OUTCOME_DONE

SERVERS = 20


def spawned(cell: Cell, host: str = "node1") -> str:
    """A server that runs, whose result and observation have been answered."""
    conductor = cell.conductors[0]
    one = fresh()
    call(conductor.ready(), SPAWN, spawn_request(make_order(one, host=host)))
    eventually("the result came", lambda: conductor.results(one))
    eventually("an observation came", lambda: conductor.observations(one))
    return one


def obeyed(link: Link, one: str, **order: int) -> None:
    """Order a spawn until it is taken: an agent that lost its records first waits for old commands to be over."""

    def taken() -> bool:
        try:
            call(link, SPAWN, spawn_request(make_order(one, **order)))
        except Busy:
            return False
        return True

    eventually(f"the spawn of {one} is taken", taken)


def journals(cell: Cell) -> list[Path]:
    return [path for path in (cell.directory / "state").rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("harm", ["deleted", "empty", "cut in half"])
def test_an_agent_that_lost_its_journal_goes_on_and_repeats_nothing(cell: Cell, harm: str) -> None:
    agent = cell.start_agent()
    one = spawned(cell)
    kill(agent)
    conductor = cell.conductors[0]
    conductor.got.clear()
    conductor.attached.clear()
    if harm == "deleted":
        shutil.rmtree(cell.directory / "state")
    else:
        for path in journals(cell):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if harm == "cut in half" else 0])

    cell.start_agent()
    link = conductor.ready()
    assert conductor.epochs["node1"] == 2
    adopt = make_order(one, generation=2, owner_epoch=2)
    assert call(link, ADOPT, AdoptRequest(order=adopt)).running, "what runs is found at the hypervisor"
    eventually("what runs is reported under the new grant", lambda: conductor.observations(one))
    assert {got.epochs["node1"] for got in conductor.got} == {2}
    obeyed(link, one, generation=3, owner_epoch=2)
    eventually("the result came", lambda: [r for r in conductor.results(one) if r.generation == 3])
    assert cell.domains("node1").spawns == {one: 1}


def test_a_full_disk_degrades_the_agent_and_never_stops_it(cell: Cell) -> None:
    """RLIMIT_FSIZE at the size of its journal: the kernel refuses every further byte of it, not of a smaller file."""
    process = cell.start_agent()
    gone = spawned(cell, "node2")
    servers = [spawned(cell) for _ in range(SERVERS)]
    conductor = cell.conductors[0]
    link = conductor.ready()
    smallest = min(path.stat().st_size for path in journals(cell) if path.suffix == ".journal")
    assert smallest > 4 * domain_log_path(cell.directory / "hosts", "node2").stat().st_size
    agent = psutil.Process(process.pid)
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    agent.rlimit(resource.RLIMIT_FSIZE, (smallest, resource.RLIM_INFINITY))
    order = make_order(gone, host="node2", generation=2, task_id="t2", step="d", reporter_generation=0)
    call(link, DESTROY, DestroyRequest(order=order))
    eventually("the delete's result came", lambda: [r for r in conductor.results(gone) if r.task_id == "t2"])
    assert cell.domains("node2").destroys == {gone: 1}
    with pytest.raises(Busy, match="journal cannot be written"):
        call(link, SPAWN, spawn_request(make_order(fresh(), host="node2")))
    assert process.poll() is None
    beats = len(conductor.beats)
    eventually("it goes on beating", lambda: len(conductor.beats) > beats + 2)

    agent.rlimit(resource.RLIMIT_FSIZE, unlimited)
    again = fresh()
    obeyed(link, again)  # once there is room
    eventually("the result came", lambda: conductor.results(again))
    kill(process)
    conductor.attached.clear()
    conductor.got.clear()
    cell.start_agent()
    conductor.ready()
    eventually(
        "all that runs is reported, from the journal's grants",
        lambda: all(conductor.observations(one) for one in [*servers, again]),
    )
    assert not conductor.observations(gone)
    assert cell.domains("node1").spawns == dict.fromkeys([*servers, again], 1)


def test_of_two_agents_with_one_key_the_later_wins_and_the_earlier_says_so(cell: Cell) -> None:
    """A cloned machine: the same key, the same name, a state directory of its own."""
    conductor = cell.conductors[0]
    first = cell.start_agent()
    one = spawned(cell)
    assert conductor.epochs["node1"] == 1
    shutil.move(cell.directory / "state", cell.directory / "state-of-first")
    cell.start_agent()
    eventually("the second has begun", lambda: conductor.epochs["node1"] == 2)
    eventually("the earlier one raises an alarm for each host", lambda: cell.log_text().count("ALARM") == 2)

    def later() -> Link | None:
        up = [link for link in conductor.endpoint.links(role="compute") if link.up]
        return next((link for link in up if conductor.attached.get(link) == {"node1": 2, "node2": 2}), None)

    link: Link = eventually("the later one is attached", later)
    two = fresh()
    obeyed(link, two)
    eventually("the later one works", lambda: conductor.results(two))
    assert [got for got in conductor.got if got.epochs.get("node1") == 1 and got.body.instance_uuid == two] == []
    assert conductor.epochs["node1"] == 2, "they do not take it from one another for ever"
    eventually("the earlier one has ended and says why", lambda: first.poll() == HOSTS_TAKEN)
    assert link.up, "the earlier one does not take the route from it again and again"
    assert cell.domains("node1").spawns == {one: 1, two: 1}
    assert {result.outcome for result in conductor.results(two)} == {OUTCOME_DONE}
