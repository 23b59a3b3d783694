"""Keys of a whole region of real processes: revoked, rotated, server keys included, under live links."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from tests.cluster.region import assert_all_active, boot, command, started, wait_until
from zcompute.bus import Endpoint, Identity
from zcompute.bus.errors import BusError
from zcompute.cli.up.databases import SQLITE
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.cli.up.statedir import free_ports
from zcompute.keys import read_keys
from zcompute.objects.messages.cluster import Empty, MapReply
from zcompute.objects.methods import MAP_GET
from zcompute.objects.partition import PartitionMap

REVOKED_S_MAX = 5.0
CONDUCTOR = "c1-conductor-1"
COMPUTE = "c1-compute-1"


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    shape = Shape(cells=("c1",), computes=2, hosts_per_compute=2)
    with started(tmp_path_factory.mktemp("r") / "s", SQLITE, shape) as made:
        yield made


def keys(*arguments: str) -> dict[str, object]:
    done = command("keys", *arguments, "--format", "json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def client(region: Region, service_id: str, role: str, key_file: Path, hosts: tuple[str, ...] = ()) -> Endpoint:
    pair = read_keys(str(key_file))
    cell = "root" if role == "api" else "c1"
    return Endpoint(Identity(role, cell, service_id, "1", frozenset(hosts), pair.public_key, pair.secret_key))


def place(region: Region, service_id: str) -> tuple[str, str]:
    public_key = read_keys(str(region.paths.key(service_id))).public_key
    return f"tcp://127.0.0.1:{region.file.bus_ports[service_id]}", public_key


def cell_map(region: Region, endpoint: Endpoint) -> PartitionMap:
    link = endpoint.dial(*place(region, "c1-conductor-2"))
    assert link.wait_up(5000)
    reply: MapReply = link.call(MAP_GET, Empty(), timeout_ms=5000)
    endpoint.hang_up(link)
    return reply.map


def hosts_up(region: Region) -> set[str]:
    api = region.client()
    services = api.get("/v2.1/os-services")["services"]
    api.close()
    return {row["host"] for row in services if row["binary"] == "nova-compute" and row["state"] == "up"}


def test_a_revoked_keys_live_link_ends_within_five_seconds_and_stays_out(region: Region, tmp_path: Path) -> None:
    keyring, key_file = str(region.paths.keyring("c1")), tmp_path / "k" / "guest.toml"
    keys("create", "guest", "--role", "api", "--cell", "root", "--key-file", str(key_file), "--keyring", keyring)
    guest = client(region, "guest-1", "api", key_file)
    kept = client(region, "api-9", "api", region.paths.key("api-1"))
    try:
        link = guest.dial(*place(region, CONDUCTOR))
        neighbour = kept.dial(*place(region, CONDUCTOR))
        assert link.wait_up(10_000), "a key that was created is let in without a restart"
        assert neighbour.wait_up(5000)
        assert link.call(MAP_GET, Empty(), timeout_ms=5000).map.cell == "c1"
        keys("revoke", "guest", "--keyring", keyring)
        begun = time.monotonic()
        wait_until(lambda: not link.up, "the revoked key's link down", timeout_s=REVOKED_S_MAX)
        while time.monotonic() - begun < REVOKED_S_MAX:
            with pytest.raises(BusError):
                link.call(MAP_GET, Empty(), timeout_ms=200)
            gevent.sleep(0.01)  # a hub that is held up for seconds would lose the neighbour's link too
        assert neighbour.up
        assert neighbour.call(MAP_GET, Empty(), timeout_ms=5000).map.cell == "c1"
        assert neighbour.core.link_number == 1
    finally:
        guest.close()
        kept.close()


def test_a_computes_key_is_rotated_with_overlap_by_a_restart_of_it_alone(region: Region) -> None:
    keyring, key_file = str(region.paths.keyring("c1")), str(region.paths.key(COMPUTE))
    keys("rotate", COMPUTE, "--keyring", keyring, "--key-file", key_file)
    time_of_restart = time.monotonic()
    assert set(region.hosts) <= hosts_up(region), "the running agent's key still counts"
    region.kill(COMPUTE)
    region.restart(COMPUTE)
    keys("rotate", COMPUTE, "--keyring", keyring, "--finish")
    wait_until(lambda: set(region.hosts) <= hosts_up(region), "all hosts up under the new key")
    assert_all_active(boot(region, 8))
    assert time.monotonic() - time_of_restart < 60


def test_a_server_key_is_rotated_by_a_second_port_without_touching_a_host(region: Region) -> None:
    keyrings = [word for cell in ("c1", "root") for word in ("--keyring", str(region.paths.keyring(cell)))]
    key_file = region.paths.key(CONDUCTOR)
    old = place(region, CONDUCTOR)
    port = free_ports(["second"], {})["second"]
    second = f"tcp://127.0.0.1:{port}"
    computes = {plan.id: region.processes[plan.id].pid for plan in region.plans.values() if plan.kind == "compute"}
    watcher = client(region, "api-8", "api", region.paths.key("api-1"))
    try:
        keys("rotate", CONDUCTOR, *keyrings, "--key-file", str(key_file), "--listen", second)
        wait_until(
            lambda: cell_map(region, watcher).conductors[CONDUCTOR].address == second, "the map names the second port"
        )
        told = cell_map(region, watcher).conductors[CONDUCTOR]
        assert told.public_key != old[1]
        overlap = watcher.dial(*old)
        assert overlap.wait_up(5000), "the first port still works"
        watcher.hang_up(overlap)
        assert_all_active(boot(region, 8))
        keys("rotate", CONDUCTOR, *keyrings, "--key-file", str(key_file), "--finish")
        wait_until(lambda: not answers(watcher, *old), "the first port closed", timeout_s=15)
        assert_all_active(boot(region, 8))
        assert set(region.hosts) <= hosts_up(region)
        assert computes == {name: region.processes[name].pid for name in computes}
        for name in computes:
            assert f"{second}" in (region.paths.service(name) / "conductors.json").read_text()
        log = region.paths.log(COMPUTE).read_text()
        assert f"link up peer=conductor/{CONDUCTOR}@c1" in log
        assert f"address={second}" in log
        region.kill(COMPUTE)
        region.restart(COMPUTE)
        wait_until(
            lambda: region.paths.log(COMPUTE).read_text().count(f"address={second}") > log.count(f"address={second}"),
            "the restarted agent linked to the second port although its configuration names the first",
        )
        wait_until(lambda: set(region.hosts) <= hosts_up(region), "all hosts up")
    finally:
        watcher.close()


def answers(endpoint: Endpoint, address: str, public_key: str) -> bool:
    """Whether a link comes up there."""
    link = endpoint.dial(address, public_key)
    came_up = link.wait_up(500)
    endpoint.hang_up(link)
    return came_up
