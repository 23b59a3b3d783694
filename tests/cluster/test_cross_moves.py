"""Servers that go from one cell to another in a region that runs: shown once all the time, and back again."""

import json
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from tests.cluster.region import assert_audit_holds, boot, command, delete_all, started, wait_until
from zcompute.cli.up.databases import SQLITE
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region

pytestmark = pytest.mark.timeout(180)
MOVED_S_MAX = 60


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    shape = Shape(cells=("c1", "c2"), computes=1, hosts_per_compute=2)
    with started(tmp_path_factory.mktemp("r") / "s", SQLITE, shape) as made:
        yield made


def cli(region: Region, *arguments: str, code: int = 0) -> Any:
    """A command's answer; its words where it has ended otherwise."""
    done = command(*arguments, "--state-dir", str(region.paths.state_dir), "--format", "json")
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout and not code else done.stdout + done.stderr


def listed(region: Region) -> list[dict[str, Any]]:
    client = region.client()
    try:
        found: list[dict[str, Any]] = client.get("/v2.1/servers/detail?all_tenants=1")["servers"]
        return found
    finally:
        client.close()


def cell_of(row: dict[str, Any]) -> str:
    return str(row["OS-EXT-SRV-ATTR:host"] or "").split("-")[0]


class Watcher:
    """Lists all servers as fast as it can; keeps what differed from one row for each server."""

    def __init__(self, region: Region, uuids: set[str]) -> None:
        self.wrong: list[list[str]] = []
        self.looks = 0
        self._region, self._uuids = region, uuids
        self._greenlet = gevent.spawn(self._look)

    def _look(self) -> None:
        while True:
            ids = sorted(row["id"] for row in listed(self._region))
            self.looks += 1
            if ids != sorted(self._uuids):
                self.wrong.append(ids)
            gevent.sleep(0.02)

    def stop(self) -> None:
        assert not self._greenlet.ready(), self._greenlet.exception
        self._greenlet.kill()


def test_a_server_goes_to_another_cell_and_back_and_is_listed_once_all_the_time(region: Region) -> None:
    boot(region, 3)
    uuids = {row["id"] for row in listed(region)}
    (row, *_) = listed(region)
    uuid, home = row["id"], cell_of(row)
    other = {"c1": "c2", "c2": "c1"}[home]
    watcher = Watcher(region, uuids)
    for target in (other, home):
        began = time.monotonic()
        done = cli(region, "server", "migrate", uuid, "--to-cell", target, "--wait", str(MOVED_S_MAX))
        assert (done["state"], done["result"]) == ("ended", "done"), done
        assert time.monotonic() - began < MOVED_S_MAX
        (now,) = [row for row in listed(region) if row["id"] == uuid]
        assert (cell_of(now), now["status"], now["created"]) == (target, "ACTIVE", row["created"])
    watcher.stop()
    assert watcher.looks > 20
    assert watcher.wrong == []
    client = region.client()
    actions = client.get(f"/v2.1/servers/{uuid}/os-instance-actions")["instanceActions"]
    client.close()
    assert [found["action"] for found in actions].count("migrate") == 2
    assert_audit_holds(region)


def test_refusals_are_sentences(region: Region) -> None:
    (row, *_) = listed(region)
    uuid, home = row["id"], cell_of(row)
    assert f"is in cell {home}" in cli(region, "server", "migrate", uuid, "--to-cell", home, code=1)
    assert "c9" in cli(region, "server", "migrate", uuid, "--to-cell", "c9", code=1)
    assert "expected a server's id" in cli(region, "server", "migrate", "x", "--to-cell", home, code=1)


def test_a_delete_is_refused_meanwhile_and_an_aborted_move_leaves_the_server_where_it_was(region: Region) -> None:
    (row, *_) = listed(region)
    uuid, home = row["id"], cell_of(row)
    other = {"c1": "c2", "c2": "c1"}[home]
    cli(region, "server", "migrate", uuid, "--to-cell", other)
    wait_until(lambda: cli(region, "task", "list", "--kind", "cross_move")["tasks"], "the move is among the tasks")
    client = region.client()
    status, _ = client.request("POST", f"/v2.1/servers/{uuid}/action", {"os-stop": None})[:2]
    assert status == 409
    cli(region, "task", "abort", uuid)

    def ended() -> bool:
        return not cli(region, "task", "list", "--instance", uuid)["tasks"]

    wait_until(ended, "the move has been taken back")
    (now,) = [row for row in listed(region) if row["id"] == uuid]
    assert (cell_of(now), now["status"]) == (home, "ACTIVE")
    client.close()
    delete_all(region, [row["id"] for row in listed(region)])
    assert_audit_holds(region)
