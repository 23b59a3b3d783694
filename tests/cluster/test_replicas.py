"""A region whose databases have replicas: unmodified HTTP clients see what they made, and replicas serve them."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from loadtest.late_replica import late
from tests.cluster.conftest import require_mariadb
from tests.cluster.region import assert_all_active, assert_audit_holds, boot, command, started, wait_until
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.objects.conductor_stat import ConductorReadStat, ConductorStat
from zcompute.objects.conductor_stat import ConductorStatRequest as StatRequest

LAG_S = 0.5
ROUNDS = 12
SHAPE = Shape(cells=("c1",), conductors=2, computes=1, hosts_per_compute=2, replicas=2)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, SHAPE) as made:
        wait_until(lambda: all_serve(made), "every replica takes reads")
        yield made


def stats(region: Region) -> list[ConductorStat]:
    from zcompute.cli.operator import Operator, conductors_of, operator_config
    from zcompute.objects.methods import CONDUCTOR_STAT

    config = operator_config(None, str(region.paths.state_dir))
    with Operator(config, 5000) as operator:
        operator.wait_links(2000)
        found, missing = operator.ask_each([peer.id for peer in conductors_of(config)], CONDUCTOR_STAT, StatRequest())
    assert not missing
    return list(found)


def all_serve(region: Region) -> bool:
    return all(
        len(stat.reads.replicas) == 2 and all(one.state == "serving" for one in stat.reads.replicas)
        for stat in stats(region)
    )


def total(reads: list[ConductorReadStat]) -> tuple[int, int]:
    """Reads of clients, and those that read rows at the primary."""
    return sum(sum(one.by_need.values()) for one in reads), sum(sum(one.at_primary.values()) for one in reads)


def test_clients_see_their_own_writes_with_all_replicas_500_ms_behind(region: Region) -> None:
    before = total([stat.reads for stat in stats(region)])
    cells = [region.database_servers(cell) for cell in region.cells]
    misses = []
    client = region.client()
    with ExitStack() as held:
        held.callback(client.close)
        for servers in cells:
            held.enter_context(late(servers, servers.replicas, LAG_S))
        for number in range(ROUNDS):
            body = {"server": {"name": f"own-{number}", "flavorRef": "1", "imageRef": "i", "networks": "auto"}}
            status, answer = client.repeated("POST", "/v2.1/servers", body, deadline=time.monotonic() + 30)
            assert status == 202, answer
            uuid = answer["server"]["id"]
            status, _ = client.repeated("GET", f"/v2.1/servers/{uuid}", deadline=time.monotonic() + 30)
            listed = client.get("/v2.1/servers")["servers"]
            if status != 200 or uuid not in {each["id"] for each in listed}:
                misses.append(uuid)
    assert not misses
    after = total([stat.reads for stat in stats(region)])
    reads, at_primary = after[0] - before[0], after[1] - before[1]
    assert reads >= 3 * ROUNDS
    assert at_primary <= 0.05 * reads


def test_a_killed_replica_is_shown_with_its_reason_and_comes_back(region: Region) -> None:
    replica = region.database_servers("c1").replicas[0]
    replica.kill()
    arguments = ("db", "replicas", "--cell", "c1", "--state-dir", str(region.paths.state_dir))
    wait_until(lambda: command(*arguments).returncode == 1, "the command says that one takes no reads")
    shown = command(*arguments)
    assert f"127.0.0.1:{replica.port} at c1-conductor-1 takes no reads: cannot connect" in shown.stdout
    assert f"take no reads: 127.0.0.1:{replica.port}" in shown.stderr
    assert_all_active(boot(region, 10))
    replica.start()
    wait_until(lambda: all_serve(region), "it takes reads again")
    shown = command(*arguments)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "takes no reads" not in shown.stdout


def test_a_region_with_replicas_passes_its_audit(region: Region) -> None:
    assert_all_active(boot(region, 20))
    assert_audit_holds(region)
