"""An agent whose state directory is lost, damaged or cannot be written: real processes."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.agent_cell import Cell, call, eventually, kill, spawn_request
from tests.orders import fresh, make_order
from zcompute.bus import Busy
from zcompute.objects.command import AdoptRequest, DestroyRequest
from zcompute.objects.errors import CommandRefused
from zcompute.objects.instance import POWER_NOSTATE, POWER_RUNNING
from zcompute.objects.messages.hosts import Grant
from zcompute.objects.methods import ADOPT, DESTROY, SPAWN
from zcompute.objects.partition import PARTITIONS


def _spawned(cell: Cell, count: int) -> list[str]:
    conductor = cell.conductors[0]
    link = conductor.ready()
    uuids = sorted(fresh() for _ in range(count))
    for uuid in uuids:
        call(link, SPAWN, spawn_request(make_order(uuid)))
    for uuid in uuids:
        eventually("it was observed", lambda uuid=uuid: conductor.observations(uuid))
    return uuids


def _restarted(cell: Cell, agent: subprocess.Popen[bytes], what: Callable[[Path], object]) -> None:
    """Kill -9, do something to the state directory, start again."""
    kill(agent)
    what(cell.directory / "state")
    conductor = cell.conductors[0]
    conductor.got.clear()
    conductor.asked.clear()
    conductor.attached.clear()
    cell.start_agent()
    conductor.ready()


def test_an_agent_without_its_state_reports_what_its_owners_grant_anew(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    uuids = _spawned(cell, 5)
    gone = fresh()
    conductor.granted["node1"] = [
        Grant(instance_uuid=uuid, generation=3, reporter_generation=2) for uuid in [*uuids[:4], gone]
    ]
    _restarted(cell, agent, shutil.rmtree)
    for uuid in uuids[:4]:
        eventually("it is observed anew", lambda uuid=uuid: conductor.observations(uuid))
        (seen,) = conductor.observations(uuid)
        assert (seen.generation, seen.power_state, seen.gone) == (2, POWER_RUNNING, False)
    eventually("what is not there is reported gone", lambda: conductor.observations(gone))
    assert (conductor.observations(gone)[0].gone, conductor.observations(gone)[0].power_state) == (True, POWER_NOSTATE)
    pages = [request for request in conductor.asked if request.host == "node1"]
    assert len(pages) == 3
    assert [bool(request.after) for request in pages] == [False, True, True]
    eventually("the unknown is told of", lambda: "domains that no owner knows are left alone" in cell.log_text())
    assert f"host=node1 count=1 first={uuids[4]}" in cell.log_text()
    assert not conductor.observations(uuids[4])
    assert cell.domains("node1").running == set(uuids)


def test_a_command_of_before_the_loss_is_refused(cell: Cell) -> None:
    """The fences are lost with the directory; the begin's answer brings what any former agent can have heard of."""
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    (one,) = _spawned(cell, 1)
    conductor.primary_epochs = [9] * PARTITIONS  # the map that is pushed still says 1
    _restarted(cell, agent, shutil.rmtree)
    assert [request.in_doubt for request in conductor.begins] == [True, True, True, True]
    link = conductor.ready()
    for method, request in (
        (SPAWN, spawn_request(make_order(fresh(), owner_epoch=8))),
        (DESTROY, DestroyRequest(order=make_order(one, owner_epoch=8))),
        (ADOPT, AdoptRequest(order=make_order(one, owner_epoch=8))),
    ):
        with pytest.raises(CommandRefused, match="has an owner since 9"):
            call(link, method, request)
    with pytest.raises(Busy, match="has lost records"):
        call(link, SPAWN, spawn_request(make_order(fresh(), owner_epoch=9)))


def test_without_loss_nothing_is_in_doubt_and_commands_are_obeyed_at_once(cell: Cell) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    _spawned(cell, 1)
    eventually("the records are known to be complete", lambda: b"incomplete" not in _complete(cell))
    _restarted(cell, agent, lambda _: None)
    assert [request.in_doubt for request in conductor.begins[2:]] == [False, False]
    two = fresh()
    call(conductor.ready(), SPAWN, spawn_request(make_order(two)))
    eventually("the result came", lambda: conductor.results(two))


@pytest.mark.parametrize("damage", ["tail", "middle", "no journal", "no fences"])
def test_damage_to_the_records_puts_the_agent_in_doubt(cell: Cell, damage: str) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    uuids = _spawned(cell, 3)
    eventually("the records are known to be complete", lambda: b"incomplete" not in _complete(cell))
    conductor.granted["node1"] = [Grant(instance_uuid=uuid, generation=1, reporter_generation=1) for uuid in uuids]

    def harm(state: Path) -> None:
        journal = state / "generations.journal"
        data = bytearray(journal.read_bytes())
        if damage == "tail":
            journal.write_bytes(data[:-5])
        elif damage == "middle":
            data[len(data) // 2] ^= 0xFF
            journal.write_bytes(data)
        else:
            (journal if damage == "no journal" else state / "fences").unlink()

    _restarted(cell, agent, harm)
    assert [request.in_doubt for request in conductor.begins[2:]] == [True, True]
    for uuid in uuids:
        eventually("it is observed anew", lambda uuid=uuid: conductor.observations(uuid))
    eventually("the doubt is over", lambda: b"incomplete" not in _complete(cell))


def _complete(cell: Cell) -> bytes:
    return (cell.directory / "state" / "complete").read_bytes()
