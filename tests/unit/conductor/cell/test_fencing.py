"""A fence command: only its success forces a host down."""

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from tests.unit.conductor.cell.test_hosts import Link, begin, context, world
from tests.unit.conductor.ledger_world import wait_for
from zcompute.bus.errors import Busy, InvalidRequest
from zcompute.conductor.cell.fencing import AT_ONCE_MAX, OUTPUT_BYTES_MAX, Fencing, run_fence
from zcompute.config import FencingConfig
from zcompute.db.tables import HOSTS
from zcompute.objects.errors import FenceFailed, HostNotFound
from zcompute.objects.messages.hosts import HostForceDownRequest

assert world  # a fixture


def shell(text: str) -> list[str]:
    return ["/bin/sh", "-c", text, "fence", "{host}"]


def fence(text: str, timeout_s: float = 5.0) -> Fencing:
    return Fencing(FencingConfig(command=shell(text), timeout_s=timeout_s), "c1")


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_command_that_ends_with_0_is_told_the_host_and_the_cell(tmp_path) -> None:
    told = tmp_path / "told"
    fence(f'echo "$1 $ZCOMPUTE_HOST $ZCOMPUTE_CELL" > {told}').fence("h1")
    assert told.read_text() == "h1 h1 c1\n"


def test_a_host_name_is_an_argument_whatever_it_holds(tmp_path) -> None:
    told = tmp_path / "told"
    name = f"h1; touch {tmp_path}/harm"
    fence(f'printf %s "$1" > {told}').fence(name)
    assert told.read_text() == name
    assert not (tmp_path / "harm").exists()


def test_a_command_that_fails_says_how_and_what_it_wrote() -> None:
    with pytest.raises(FenceFailed, match="h1 is not fenced: the fence command ended with 3, it wrote: no power") as it:
        fence("echo no power >&2; exit 3").fence("h1")
    assert it.value.details["host"] == "h1"


def test_a_command_that_cannot_be_started_or_is_not_configured_is_a_failure() -> None:
    with pytest.raises(FenceFailed, match="cannot be started"):
        Fencing(FencingConfig(command=["/nowhere/fence"]), "c1").fence("h1")
    with pytest.raises(FenceFailed, match="no fence command is configured"):
        Fencing(FencingConfig(), "c1").fence("h1")


def test_a_command_that_hangs_is_killed_at_its_deadline_with_all_it_began(tmp_path) -> None:
    pids = tmp_path / "pids"
    begun = time.monotonic()
    failure = run_fence(shell(f"sleep 60 & echo $! $$ > {pids}; echo waiting; wait"), "h1", "c1", 0.5)
    assert failure == "the fence command did not end within 0.5 s, it wrote: waiting"
    assert time.monotonic() - begun < 5
    for pid in map(int, pids.read_text().split()):
        wait_for(lambda pid=pid: not runs(pid))


def test_what_a_command_leaves_running_ends_with_it(tmp_path) -> None:
    pids = tmp_path / "pids"
    assert run_fence(shell(f"sleep 60 & echo $! > {pids}; exit 0"), "h1", "c1", 5.0) == ""
    wait_for(lambda: not runs(int(pids.read_text())))


def test_endless_output_is_read_on_and_cut() -> None:
    failure = run_fence(shell("head -c 300000 /dev/zero | tr '\\0' x; exit 1"), "h1", "c1", 5.0)
    assert failure.endswith("it wrote: " + "x" * OUTPUT_BYTES_MAX)


def test_the_hub_goes_on_while_a_command_runs_and_a_second_caller_gets_the_same_outcome(tmp_path) -> None:
    count, go = tmp_path / "count", tmp_path / "go"
    fences = fence(f"echo x >> {count}; while [ ! -e {go} ]; do sleep 0.05; done")
    callers = [gevent.spawn(fences.fence, "h1") for _ in range(2)]
    wait_for(count.exists)
    go.touch()
    gevent.joinall(callers, timeout=5, raise_error=True)
    assert count.read_text() == "x\n"


def test_only_so_many_hosts_are_fenced_at_once(tmp_path) -> None:
    go = tmp_path / "go"
    fences = fence(f"while [ ! -e {go} ]; do sleep 0.05; done")
    callers = [gevent.spawn(fences.fence, f"h{number}") for number in range(AT_ONCE_MAX)]
    wait_for(lambda: len(fences._under_way) == AT_ONCE_MAX)
    with pytest.raises(Busy):
        fences.fence("another")
    go.touch()
    gevent.joinall(callers, timeout=10, raise_error=True)
    assert fences._under_way == {}


def force_down(world: Any, **fields: Any) -> Any:
    return world.hosts.force_down(HostForceDownRequest(host="h1", **fields), context(Link(role="operator")))


def test_a_host_is_forced_down_by_the_success_of_its_fence_only(world, caplog) -> None:
    caplog.set_level(logging.WARNING)
    begin(world, Link())
    world.hosts._fencing = fence("echo no power; exit 1")
    with pytest.raises(FenceFailed, match="no power"):
        force_down(world, fence=True)
    assert not world.database.row(HOSTS, ("h1",)).forced_down
    assert force_down(world, fence=True, dry_run=True).changed
    world.hosts._fencing = fence("exit 0")
    assert force_down(world, fence=True).changed
    assert world.database.row(HOSTS, ("h1",)).forced_down
    assert "fenced=True" in caplog.text
    world.hosts._fencing = fence("exit 1")  # it is known to be off: nothing is run again
    assert not force_down(world, fence=True).changed
    with pytest.raises(InvalidRequest):
        force_down(world, fence=True, forced_down=False)


def test_nothing_is_run_for_a_host_that_nobody_knows(world) -> None:
    world.hosts._fencing = SimpleNamespace(fence=lambda host: pytest.fail(host))
    with pytest.raises(HostNotFound):
        force_down(world, fence=True)


def test_an_operator_that_goes_away_leaves_no_process(tmp_path) -> None:
    pids = tmp_path / "pids"
    fences = fence(f"echo $$ > {pids}; sleep 60", timeout_s=0.5)
    caller = gevent.spawn(fences.fence, "h1")
    wait_for(pids.exists)
    caller.kill()
    wait_for(lambda: fences._under_way == {})
    wait_for(lambda: not runs(int(pids.read_text())))
