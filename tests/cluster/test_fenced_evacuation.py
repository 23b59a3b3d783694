"""A host behind a cut link, alive: it is fenced by the program of its operator, its servers are evacuated, and when it
is back what it still has is destroyed before it works again."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.forwarder import detoured
from tests.cluster.region import assert_audit_holds, boot, command, delete_all, wait_until
from tests.cluster.test_actions import Clients
from tests.cluster.test_force_down import agent_of, force_down
from tests.cluster.test_moves import comes_to, host_of
from zcompute.cli import exits
from zcompute.cli.up import region as regions
from zcompute.cli.up.databases import SQLITE
from zcompute.cli.up.layout import CONDUCTOR, Shape, config_document
from zcompute.cli.up.region import Region
from zcompute.compute.virt.fake_log import domain_log_path, read_domain_log

FENCE = """#!/bin/sh
[ -e "$(dirname "$0")/power" ] || { echo "$1 does not answer its power controller"; exit 3; }
echo "$1 $ZCOMPUTE_HOST $ZCOMPUTE_CELL" >> "$(dirname "$0")/fenced"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fence program is: it succeeds once there is a file ``power``, and writes ``fenced``."""
    directory = tmp_path_factory.mktemp("f")
    program = directory / "fence"
    program.write_text(FENCE)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return directory


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Iterator[Region]:
    """One cell, two agents of one host each, conductors with the fence program."""

    def with_fence(plan, *rest, **more):
        document = config_document(plan, *rest, **more)
        if plan.kind == CONDUCTOR and plan.cell == "c1":
            document["fencing"] = {"command": [str(place / "fence"), "{host}"], "timeout_s": 5.0}
        return document

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "config_document", with_fence)
        shape = Shape(cells=("c1",), computes=2, hosts_per_compute=1)
        made = Region.create(tmp_path_factory.mktemp("r") / "s", SQLITE, api_port=0, shape=shape)
        try:
            made.start()
            yield made
        finally:
            made.stop()


def test_a_living_host_behind_a_cut_link_is_fenced_evacuated_and_cleaned_when_it_is_back(
    region: Region, place: Path
) -> None:
    where = ("--state-dir", str(region.paths.state_dir))
    uuids = [each.uuid for each in boot(region, 2).boots]
    server = Clients(region, uuids[0])
    host = host_of(server)
    agent = agent_of(region, host)

    def runs_there() -> bool:
        return uuids[0] in read_domain_log(domain_log_path(region.paths.hosts, host)).running

    with detoured(region, agent, region.conductors("c1")) as wires:
        region.wait_ready()
        for wire in wires.values():
            wire.cut()
        failed = command("host", "force-down", host, "--fence", *where)
        assert failed.returncode == exits.FAILED
        assert f"the fence command ended with 3, it wrote: {host} does not answer its power" in failed.stderr
        refused = server.act({"evacuate": {"onSharedStorage": False}})
        assert (refused[0], host_of(server)) == (400, host)
        (place / "power").touch()
        assert force_down(region, host, "--fence")["changed"]
        assert (place / "fenced").read_text() == f"{host} {host} c1\n"
        assert server.act({"evacuate": {"onSharedStorage": False}})[0] == 200
        wait_until(lambda: host_of(server) != host, "it is elsewhere", found=lambda: host_of(server))
        comes_to(server, "ACTIVE")
        elsewhere = host_of(server)
        assert runs_there()  # the program has lied, and nobody could know: it was its word that counted
        assert region.processes[agent].alive
        refused = command("host", "force-down", host, "--off", *where)
        assert refused.returncode == exits.FAILED
        assert "is not linked" in refused.stderr
    wait_until(lambda: not runs_there(), "it is destroyed there")

    def let_in() -> bool:
        done = command("host", "force-down", host, "--off", *where)
        assert done.returncode == 0 or "still has" in done.stderr or "not linked" in done.stderr, done.stderr
        return done.returncode == 0

    wait_until(let_in, "the host works again")
    region.wait_ready()
    assert (host_of(server), server.shown()[0]) == (elsewhere, "ACTIVE")
    assert_audit_holds(region)
    delete_all(region, uuids)
    assert_audit_holds(region)
