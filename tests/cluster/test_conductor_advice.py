"""What `zcompute conductor advise` says of a real cell: idle, driven to overload, and with a slow database."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import command, started, wait_until
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region

SPARE = Shape(cells=("c1",), conductors=3, schedulers=1, computes=1, hosts_per_compute=1)
SMALL = Shape(cells=("c1",), conductors=1, schedulers=1, computes=1, hosts_per_compute=3)
LOADERS = 2
WINDOW_S = "5"
ADVICE_S = 40.0
STOPPED_S, RUNNING_S = 0.35, 0.03


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    with started(tmp_path_factory.mktemp("spare") / "s", MARIADB, SPARE) as running:
        yield running


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Region]:
    require_mariadb()
    with started(tmp_path / "s", MARIADB, SMALL) as running:
        yield running


def advice(region: Region) -> dict[str, Any]:
    """The advice for cell c1."""
    done = command(
        "conductor", "advise", "--cell", "c1", "--window", WINDOW_S, "--format", "json",
        "--state-dir", str(region.paths.state_dir),
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)["advice"][0]
    return found


def await_advice(region: Region, verdict: str) -> str:
    """The sentence, once this is the advice."""
    found: list[dict[str, Any]] = []

    def said() -> bool:
        found.append(advice(region))
        return found[-1]["verdict"] == verdict

    wait_until(said, f"the advice is {verdict}", ADVICE_S, found=lambda: [one["sentence"] for one in found[-5:]])
    print(found[-1]["sentence"])
    return str(found[-1]["sentence"])


@contextmanager
def load(region: Region, *, in_flight: int, pause_s: float) -> Iterator[None]:
    """Claims on the one conductor of c1, which owns every host."""
    order = {
        "port": region.file.bus_ports["c1-conductor-1"],
        "key": str(region.paths.key("c1-conductor-1")),
        "hosts": list(region.hosts),
        "in_flight": in_flight,
        "pause_s": pause_s,
    }
    command_line = [sys.executable, "-m", "tests.cluster.conductor_load", json.dumps(order)]
    processes = [subprocess.Popen(command_line) for _ in range(LOADERS)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def stuttering(pid: int) -> Iterator[None]:
    """A process that is stopped most of the time."""

    def stutter() -> None:
        while True:
            os.kill(pid, signal.SIGSTOP)
            gevent.sleep(STOPPED_S)
            os.kill(pid, signal.SIGCONT)
            gevent.sleep(RUNNING_S)

    stuttered = gevent.spawn(stutter)
    try:
        yield
    finally:
        stuttered.kill()
        os.kill(pid, signal.SIGCONT)


def test_an_idle_cell_is_told_to_remove_one(region: Region) -> None:
    sentence = await_advice(region, "remove")
    assert sentence.startswith("cell c1: remove a conductor, 2 conductors would have hubs busy for ")


def test_list_and_show_tell_what_each_conductor_does(region: Region) -> None:
    state_dir = str(region.paths.state_dir)
    listed = command("conductor", "list", "--state-dir", state_dir, "--format", "json")
    assert listed.returncode == 0, listed.stderr
    rows = json.loads(listed.stdout)["conductors"]
    assert len(rows) == 6
    own = [row for row in rows if row["cell"] == "c1"]
    assert sum(row["partitions"] for row in own) == 256
    assert {row["state"] for row in rows} == {"ready"}
    assert all(sum(lane["partitions"] for lane in row["lanes"]) == row["partitions"] for row in own)
    assert all(lane["batches"] == sum(lane["commits_by_ms"]) for row in own for lane in row["lanes"])
    assert "c1-conductor-1" in command("conductor", "list", "--state-dir", state_dir).stdout
    shown = command("conductor", "show", "c1-conductor-1", "--state-dir", state_dir)
    assert "commit_p50_ms" in shown.stdout
    refused = command("conductor", "show", "c9-conductor-1", "--state-dir", state_dir)
    assert (refused.returncode, "expected one of" in refused.stderr) == (2, True)


def test_a_busy_conductor_is_told_from_a_slow_database(small: Region) -> None:
    pid = small._databases.pids()["c1"]
    with load(small, in_flight=10, pause_s=0.05):
        with stuttering(pid):
            assert "another conductor would wait with the others" in await_advice(small, "database")
    with load(small, in_flight=400, pause_s=0.0):
        assert "add a conductor" in await_advice(small, "add")
    assert "nobody takes over from it" in await_advice(small, "keep")


def test_a_conductor_that_is_gone_is_missing_and_none_is_removed(region: Region) -> None:
    await_advice(region, "remove")
    region.kill("c1-conductor-3")
    try:
        found = advice(region)
        assert found["verdict"] in ("keep", "unknown")
        done = command("conductor", "list", "--state-dir", str(region.paths.state_dir))
        assert done.returncode == 1
        assert "missing: c1-conductor-3" in done.stderr
    finally:
        region.restart("c1-conductor-3")
        region.wait_ready()
