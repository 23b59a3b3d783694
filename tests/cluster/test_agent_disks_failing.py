"""An agent whose disk fails, is full or read-only at its start, or takes not even one byte later; whose journals are
harmed while it runs. Real processes, and a real full disk where the right to mount one is there."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.cluster.agent_cell import Cell, Conductor, call, eventually, kill, spawn_request
from tests.cluster.test_agent_disks import obeyed, spawned
from tests.orders import fresh, make_order
from zcompute.bus import Busy, Link
from zcompute.objects.command import AdoptRequest, DestroyRequest
from zcompute.objects.messages.hosts import Grant
from zcompute.objects.methods import ADOPT, DESTROY, SPAWN
from zcompute.objects.report import OUTCOME_DONE, VERDICT_APPLIED

NO_BYTE = (0, resource.RLIM_INFINITY)
ANY = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
DISK_BYTES = 1 << 20
INODES = 20
TAKEN_MAX = 40
SERVERS = 5
ASKED = 3


def harm(state: Path, how: str) -> None:
    """What a careless hand, or a tool that tidies up, does to the files of a running agent."""
    if how == "with the directory":
        shutil.rmtree(state)
        return
    for path in state.glob("*.journal"):
        if how == "deleted":
            path.unlink()
        elif how == "replaced":
            shutil.copy(path, path.with_suffix(".old"))
            path.with_suffix(".old").rename(path)
        else:
            os.truncate(path, path.stat().st_size // 2 if how == "cut in half" else 0)


def restarted(cell: Cell, agent: subprocess.Popen[bytes], **how: int) -> Link:
    kill(agent)
    conductor = cell.conductors[0]
    conductor.got.clear()
    conductor.attached.clear()
    cell.start_agent(**how)
    return conductor.ready()


def granted_as(conductor: Conductor, uuids: list[str]) -> None:
    """What the owners answer an agent that begins."""
    conductor.granted["node1"] = [Grant(instance_uuid=uuid, generation=1, reporter_generation=1) for uuid in uuids]


def settled(cell: Cell) -> bool:
    complete: Path = cell.directory / "state" / "complete"
    return complete.exists() and b"incomplete" not in complete.read_bytes()


@pytest.mark.parametrize("how", ["deleted", "truncated", "replaced", "with the directory"])
def test_journals_harmed_under_a_running_agent_are_written_anew(cell: Cell, how: str) -> None:
    agent = cell.start_agent()
    conductor = cell.conductors[0]
    uuids = [spawned(cell) for _ in range(SERVERS)]
    granted_as(conductor, uuids)
    eventually("its records are complete", lambda: settled(cell))
    state = cell.directory / "state"
    harm(state, how)
    eventually("it has seen that", lambda: cell.log_text().count("written anew") == 2)
    eventually(
        "both are there", lambda: all((state / f"{name}.journal").exists() for name in ("outbox", "generations"))
    )
    again = fresh()
    call(conductor.ready(), SPAWN, spawn_request(make_order(again)))
    eventually("the result came", lambda: conductor.results(again))
    conductor.granted["node1"].append(Grant(instance_uuid=again, generation=1, reporter_generation=1))
    link = restarted(cell, agent)
    for uuid in [*uuids, again]:
        eventually("what runs is reported", lambda uuid=uuid: conductor.observations(uuid))
    if how != "with the directory":
        assert [request.in_doubt for request in conductor.begins[2:]] == [False, False], "nothing was lost"
        assert call(link, SPAWN, spawn_request(make_order(again))).last_outcome == OUTCOME_DONE, "it knows the command"
    assert cell.domains("node1").spawns == dict.fromkeys([*uuids, again], 1)


@pytest.mark.parametrize("how", ["deleted", "truncated", "cut in half"])
def test_an_agent_that_dies_before_it_sees_the_harm_knows_that_records_are_lost(cell: Cell, how: str) -> None:
    agent = cell.start_agent(beat_ms=60_000)
    conductor = cell.conductors[0]
    uuids = [spawned(cell) for _ in range(SERVERS)]
    granted_as(conductor, uuids)
    eventually("its records are complete", lambda: settled(cell))
    harm(cell.directory / "state", how)
    last = fresh()
    call(conductor.ready(), SPAWN, spawn_request(make_order(last)))
    eventually("the result came", lambda: conductor.results(last))
    conductor.granted["node1"].append(Grant(instance_uuid=last, generation=1, reporter_generation=1))
    link = restarted(cell, agent)
    for uuid in [*uuids, last]:
        eventually("what runs is reported", lambda uuid=uuid: conductor.observations(uuid))
    assert [request.in_doubt for request in conductor.begins[2:]] == [True, True]
    with pytest.raises(Busy, match="has lost records"):
        call(link, SPAWN, spawn_request(make_order(fresh())))
    obeyed(link, uuids[0], generation=2)
    eventually("the result came", lambda: [r for r in conductor.results(uuids[0]) if r.generation == 2])
    assert cell.domains("node1").spawns == dict.fromkeys([*uuids, last], 1)


@pytest.mark.parametrize("how", ["deleted", "truncated", "cut in half"])
def test_a_lost_outbox_costs_no_result_whose_command_comes_again(cell: Cell, how: str) -> None:
    conductor = cell.conductors[0]
    agent = cell.start_agent()
    done = [spawned(cell) for _ in range(SERVERS)]
    eventually("its records are complete", lambda: settled(cell))
    conductor.verdict = lambda _: None
    one = fresh()
    order = spawn_request(make_order(one))
    call(conductor.ready(), SPAWN, order)
    eventually("the result came, and is owed", lambda: conductor.results(one))
    kill(agent)
    for path in (cell.directory / "state").glob("generations.journal"):
        path.rename(path.with_suffix(".kept"))
    harm(cell.directory / "state", how)
    for path in (cell.directory / "state").glob("generations.kept"):
        path.rename(path.with_suffix(".journal"))
    conductor.got.clear()
    conductor.attached.clear()
    conductor.verdict = lambda _: VERDICT_APPLIED
    cell.start_agent()
    link = conductor.ready()
    assert [request.in_doubt for request in conductor.begins[2:]] == [False, False], "no command is forgotten"
    for uuid in [*done, one]:
        eventually("what runs is reported", lambda uuid=uuid: conductor.observations(uuid))
    assert call(link, SPAWN, order).last_outcome == OUTCOME_DONE
    eventually("the result came again", lambda: conductor.results(one))
    assert cell.domains("node1").spawns == dict.fromkeys([*done, one], 1)


def test_where_not_one_byte_can_be_written_nothing_is_begun_that_could_not_be_recorded(cell: Cell) -> None:
    """RLIMIT_FSIZE at 0: not even the mark that records are missing can be written in its place."""
    agent = cell.start_agent()
    conductor = cell.conductors[0]
    one, two = spawned(cell), spawned(cell)
    link = conductor.ready()
    eventually("its records are complete", lambda: settled(cell))
    process = psutil.Process(agent.pid)
    process.rlimit(resource.RLIMIT_FSIZE, NO_BYTE)
    destroy = make_order(one, generation=2, task_id="t2", step="d", reporter_generation=0)
    new = fresh()
    for _ in range(ASKED):
        with pytest.raises(Busy):
            call(link, DESTROY, DestroyRequest(order=destroy))
        with pytest.raises(Busy):
            call(link, ADOPT, AdoptRequest(order=make_order(two, generation=2)))
        with pytest.raises(Busy):
            call(link, SPAWN, spawn_request(make_order(new)))
    beats = len(conductor.beats)
    eventually("it goes on beating", lambda: len(conductor.beats) > beats + 2)
    assert cell.domains("node1").running == {one, two}
    assert cell.domains("node1").destroys == {}
    process.rlimit(resource.RLIMIT_FSIZE, ANY)
    obeyed(link, new)

    def destroyed() -> bool:
        try:
            call(link, DESTROY, DestroyRequest(order=destroy))
        except Busy:
            return False
        return cell.domains("node1").destroys == {one: 1}

    eventually("the same order is obeyed when it is recorded", destroyed)
    link = restarted(cell, agent)
    eventually("what runs is reported", lambda: conductor.observations(two) and conductor.observations(new))
    assert cell.domains("node1").running == {two, new}


@pytest.mark.parametrize("earlier", [True, False], ids=["its directory is there", "a new directory"])
def test_a_disk_that_takes_no_byte_at_the_start_costs_builds_and_nothing_else(cell: Cell, earlier: bool) -> None:
    conductor = cell.conductors[0]
    runs = []
    if earlier:
        first = cell.start_agent()
        runs = [spawned(cell) for _ in range(SERVERS)]
        granted_as(conductor, runs)
        eventually("its records are complete", lambda: settled(cell))
        kill(first)
        conductor.got.clear()
        conductor.attached.clear()
    agent = cell.start_agent(prepared=partial(resource.setrlimit, resource.RLIMIT_FSIZE, NO_BYTE))
    link = conductor.ready()
    for uuid in runs:
        eventually("what runs is reported", lambda uuid=uuid: conductor.observations(uuid))
    new = fresh()
    for _ in range(ASKED):
        with pytest.raises(Busy):
            call(link, SPAWN, spawn_request(make_order(new)))
    assert cell.domains("node1").running == set(runs)
    assert agent.poll() is None
    psutil.Process(agent.pid).rlimit(resource.RLIMIT_FSIZE, ANY)
    obeyed(link, new)
    eventually("the result came", lambda: conductor.results(new))
    assert cell.domains("node1").running == {*runs, new}


@pytest.fixture
def disk(cell: Cell) -> Iterator[Path]:
    """A small disk of its own, where the agent's state directory lies."""
    place = cell.directory / "state"
    place.mkdir()
    options = f"size={DISK_BYTES},nr_inodes={INODES}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting needs a right that is missing: {mounted.stderr.decode().strip()}")
    yield place
    for process in cell.processes:
        if process.poll() is None:
            kill(process)
    subprocess.run(["umount", str(place)], check=True)


def no_room(file: Path) -> bool:
    """Whether the disk takes no more of this file, of which a page is written."""
    try:
        with file.open("ab", buffering=0) as opened:
            opened.write(b"\0" * 4096)
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


def fill(disk: Path) -> Callable[[], None]:
    """Leave no room for a page or a file; answers how to make room again."""
    ballast = [disk / f"ballast{number}" for number in range(INODES)]
    while not no_room(ballast[0]):
        pass
    for file in ballast[1:]:
        assert no_room(file)

    def empty() -> None:
        for file in ballast:
            file.unlink(missing_ok=True)

    return empty


def refused(link: Link) -> list[str]:
    """Order spawns until they are refused, each time; those that were taken: what was written of a page has room."""
    taken: list[str] = []
    refusals = 0
    while refusals < ASKED:
        assert len(taken) < TAKEN_MAX
        uuid = fresh()
        try:
            call(link, SPAWN, spawn_request(make_order(uuid)))
        except Busy:
            refusals += 1
        else:
            assert not refusals
            taken.append(uuid)
    return taken


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


@pytest.mark.parametrize("state", ["empty", "kept"])
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_an_agent_starts_on_a_disk_that_is_full_or_read_only_and_recovers(
    cell: Cell, disk: Path, fault: str, state: str
) -> None:
    conductor = cell.conductors[0]
    runs = []
    if state == "kept":
        first = cell.start_agent()
        runs = [spawned(cell) for _ in range(SERVERS)]
        granted_as(conductor, runs)
        eventually("its records are complete", lambda: settled(cell))
        kill(first)
        conductor.got.clear()
        conductor.attached.clear()
    if fault == "full":
        repair = fill(disk)
    else:
        remount(disk, "ro")
        repair = partial(remount, disk, "rw")
    agent = cell.start_agent()
    link = conductor.ready()
    for uuid in runs:
        eventually("what runs is reported", lambda uuid=uuid: conductor.observations(uuid))
    taken = refused(link)
    for uuid in taken:
        eventually("the result came", lambda uuid=uuid: conductor.results(uuid))
    runs += taken
    assert cell.domains("node1").running == set(runs)
    new = fresh()
    repair()
    obeyed(link, new)
    eventually("the result came", lambda: conductor.results(new))
    conductor.granted["node1"] = [
        Grant(instance_uuid=uuid, generation=1, reporter_generation=1) for uuid in [*runs, new]
    ]
    eventually("its records are complete again", lambda: settled(cell))
    restarted(cell, agent)
    for uuid in [*runs, new]:
        eventually("what runs is reported", lambda uuid=uuid: conductor.observations(uuid))
    assert cell.domains("node1").spawns == dict.fromkeys([*runs, new], 1)
