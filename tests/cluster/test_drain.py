"""A whole host is emptied by one command, which may die in the middle of it, as may a conductor."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.region import (
    assert_all_active,
    assert_audit_holds,
    boot,
    command,
    delete_all,
    popen,
    started,
    wait_until,
)
from tests.cluster.test_actions import Clients
from tests.cluster.test_moves import comes_to, host_of
from zcompute.cli import exits
from zcompute.cli.up.boots import BootRun
from zcompute.cli.up.databases import SQLITE
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region

SHAPE = Shape(cells=("c1",), conductors=2, schedulers=1, computes=1, hosts_per_compute=3, step_ms=20, host_vcpus=64)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    with started(tmp_path_factory.mktemp("r") / "s", SQLITE, SHAPE) as running:
        running.on_unexpected_end = lambda text: None
        yield running


def booted(region: Region, count: int) -> tuple[BootRun, str, list[Clients]]:
    """A run, the host that has most of it, and the servers there."""
    run = boot(region, count)
    assert_all_active(run)
    hosts = [item.host for item in run.boots]
    host = max(sorted(set(hosts)), key=hosts.count)
    return run, host, [Clients(region, item.uuid) for item in run.boots if item.host == host]


def drain(region: Region, host: str, *options: str, code: int = exits.OK, word: str = "drain") -> dict[str, Any]:
    done = command("host", word, host, *options, "--format", "json", "--state-dir", str(region.paths.state_dir))
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"error": done.stderr}
    return found


def cleared(region: Region, run: BootRun, host: str) -> None:
    enabled = command("host", "enable", host, "--state-dir", str(region.paths.state_dir))
    assert enabled.returncode == 0, enabled.stderr
    delete_all(region, [item.uuid for item in run.boots])
    assert_audit_holds(region)


def test_a_drain_that_is_killed_goes_on_where_it_was_when_it_is_begun_again(region: Region, tmp_path: Path) -> None:
    run, host, servers = booted(region, 24)
    assert servers[0].act({"os-stop": None})[0] == 202
    comes_to(servers[0], "SHUTOFF")
    planned = drain(region, host, "--dry-run")
    assert sorted(each["action"] for each in planned["asks"]) == ["migrate"] * len(servers)
    where = ("--parallel", "2", "--state-dir", str(region.paths.state_dir))
    first = popen("host", "drain", host, *where, log=tmp_path / "first")
    try:
        wait_until(lambda: any(host_of(server) != host for server in servers), "one has moved")
    finally:
        first.kill()
        first.wait(10)
    assert any(host_of(server) == host for server in servers), "it was killed before the end"
    region.kill("c1-conductor-1")
    region.restart("c1-conductor-1")
    done = drain(region, host)
    assert (done["left"], done["timed_out"]) == ([], False)
    assert [host_of(server) == host for server in servers] == [False] * len(servers)
    assert [server.shown()[0] for server in servers] == ["SHUTOFF"] + ["ACTIVE"] * (len(servers) - 1)
    again = drain(region, host)
    assert (again["moved"], again["left"]) == (0, [])
    cleared(region, run, host)


def test_what_cannot_be_moved_is_named_and_the_rest_goes_live(region: Region) -> None:
    run, host, servers = booted(region, 9)
    assert servers[0].act({"pause": None})[0] == 202
    comes_to(servers[0], "PAUSED")
    done = drain(region, host, "--live", code=exits.FAILED)
    assert [(each["uuid"], each["reason"]) for each in done["left"]] == [
        (servers[0].path.rpartition("/")[2], "a server in vm_state paused is not moved")
    ]
    assert done["moved"] == len(servers) - 1
    assert {host_of(server) == host for server in servers[1:]} == {False}
    assert "is not forced down" in drain(region, host, word="evacuate", code=exits.FAILED)["error"]
    forced = command("host", "force-down", host, "--state-dir", str(region.paths.state_dir))
    assert forced.returncode == 0
    assert "forced down" in drain(region, host, code=exits.FAILED)["error"]
    assert command("host", "force-down", host, "--off", "--state-dir", str(region.paths.state_dir)).returncode == 0
    assert servers[0].act({"unpause": None})[0] == 202
    comes_to(servers[0], "ACTIVE")
    cleared(region, run, host)


def test_a_host_that_is_off_is_evacuated_by_one_command(region: Region) -> None:
    run, host, servers = booted(region, 9)
    forced = command("host", "force-down", host, "--state-dir", str(region.paths.state_dir))
    assert forced.returncode == 0
    done = drain(region, host, word="evacuate")
    assert (done["moved"], done["left"]) == (len(servers), [])
    for server in servers:
        comes_to(server, "ACTIVE")
        assert host_of(server) != host
    where = ("--off", "--state-dir", str(region.paths.state_dir))
    wait_until(lambda: command("host", "force-down", host, *where).returncode == 0, "clean, and let work again")
    delete_all(region, [item.uuid for item in run.boots])
    assert_audit_holds(region)
