"""A peer that shares no code with zcompute completes every dialog of docs/protocol.md with a real conductor."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.event import Event

from tests.cluster.region import started, wait_until
from zcompute.cli.up.databases import SQLITE
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region

PROGRAM = Path(__file__).with_name("independent_peer.py")
LINES_MAX = 300
SHAPE = Shape(cells=("c1",), conductors=1, schedulers=1, computes=1, hosts_per_compute=1)
CONDUCTOR, COMPUTE, HOST = "c1-conductor-1", "c1-compute-1", "c1-host-01"
WAIT_S = 40.0
BODY = {"name": "one", "flavorRef": "1", "imageRef": "", "networks": "auto"}


class Running:
    """The program, and what it has said so far."""

    def __init__(self, region: Region) -> None:
        keys = tomllib.loads(region.paths.key(COMPUTE).read_text())
        config = tomllib.loads(region.paths.config(COMPUTE).read_text())
        target = next(item for item in config["bus"]["conductors"] if item["id"] == CONDUCTOR)
        setting = {
            "address": target["address"],
            "server_key": target["public_key"],
            "service_id": COMPUTE,
            "cell": "c1",
            "host": HOST,
            **keys,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(PROGRAM), json.dumps(setting)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[dict[str, Any]] = []
        self.ended = Event()
        self._reader = gevent.spawn(self._read)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))
        self.ended.set()

    def find(self, what: str) -> dict[str, Any] | None:
        return next((line for line in self.said if line["what"] == what), None)

    def wait(self, what: str) -> dict[str, Any]:
        """The first line of this sort; fails when the program ends without it."""
        wait_until(lambda: self.find(what) or self.ended.is_set(), what, WAIT_S, found=lambda: self.said[-1:])
        found = self.find(what)
        assert found is not None, (what, self.said[-2:], self.errors())
        return found

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read() if self.process.poll() is not None else ""

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(5)
        self._reader.join(5)


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    with started(tmp_path / "s", SQLITE, SHAPE) as running:
        running.kill(COMPUTE)
        yield running


def status_of(region: Region, server_id: str) -> str:
    client = region.client()
    try:
        status, answer = client.request("GET", f"/v2.1/servers/{server_id}")
    finally:
        client.close()
    return answer["server"]["status"] if status == 200 else str(status)


def request(region: Region, verb: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    client = region.client()
    try:
        return client.request(verb, path, body)
    finally:
        client.close()


def test_the_program_is_short_and_knows_pyzmq_and_msgpack_only() -> None:
    text = PROGRAM.read_text()
    assert len(text.splitlines()) < LINES_MAX
    imported = {
        name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"zmq", "msgpack"}


def test_a_peer_written_from_the_document_completes_every_dialog(region: Region) -> None:
    peer = Running(region)
    try:
        peer.wait("ready")
        refused = {what: peer.wait(what)["error"] for what in REFUSED}
        assert refused == REFUSED
        assert peer.wait("event")["mine"] == CONDUCTOR
        assert peer.wait("foreign_major")["details"]["server"] == [[1, 0], [1, 0]]
        assert peer.wait("invalid")["details"]["field"] == "epochs"

        status, answer = request(region, "POST", "/v2.1/servers", {"server": BODY})
        assert status == 202, answer
        server_id = answer["server"]["id"]
        wait_until(lambda: status_of(region, server_id) == "ACTIVE", "ACTIVE", WAIT_S, found=lambda: peer.said[-2:])
        built = peer.wait("built")
        assert set(built["verdicts"]) == {"applied"}
        assert peer.wait("welcome")["lane"] > 0
        assert all(lane > 0 for lane in built["lanes"])
        assert built["limit"] == peer.wait("welcome")["credit"] + built["acks"]

        nak, credit = peer.wait("nak"), peer.wait("credit")
        assert nak["expected"] == nak["awaited"]
        assert credit["told"] == credit["sent"]
        assert peer.wait("observed")["verdict"] == "applied"
        assert peer.wait("probe")["required"] is False
        assert peer.wait("refused")["error"] == "FrameRefused"
        assert peer.wait("expired")["answered"] is False
        assert peer.wait("resent")["verdict"] in ("applied", "already_there")
        assert peer.wait("again")["link_number"] > 1

        for verb, status in (("stop", "SHUTOFF"), ("start", "ACTIVE")):
            assert request(region, "POST", f"/v2.1/servers/{server_id}/action", {f"os-{verb}": None})[0] == 202
            wait_until(lambda status=status: status_of(region, server_id) == status, status, WAIT_S)
        called = [(line["method"], line["did"]) for line in peer.said if line["what"] == "called"]
        assert [did for method, did in called if method == "compute.step"] == ["stop", "start"]

        assert request(region, "DELETE", f"/v2.1/servers/{server_id}")[0] == 204
        peer.wait("destroyed")
        wait_until(lambda: status_of(region, server_id) == "404", "gone", WAIT_S)
        assert peer.wait("bye")["reason"]
        assert peer.ended.wait(WAIT_S)
        assert peer.process.wait(5) == 0, peer.errors()
    finally:
        peer.close()


REFUSED = {
    "foreign_protocol": "UnsupportedVersion",
    "foreign_role": "Forbidden",
    "foreign_cell": "Forbidden",
    "foreign_host": "Forbidden",
    "unknown_method": "UnknownMethod",
    "unknown_interface": "UnknownMethod",
    "foreign_major": "UnsupportedVersion",
    "newer_minor": "UnsupportedVersion",
    "forbidden": "Forbidden",
    "invalid": "InvalidRequest",
}
