"""Moves of a server through the whole region: API, owners of instance and hosts, both agents, and back."""

from tests.cluster.region import assert_audit_holds, boot, delete_all, wait_until
from tests.cluster.test_actions import Clients
from zcompute.cli.up.region import Region


def host_of(server: Clients) -> str:
    host: str = server.client.request("GET", server.path)[1]["server"]["OS-EXT-SRV-ATTR:host"]
    return host


def flavor_of(server: Clients) -> str:
    flavor: str = server.client.request("GET", server.path)[1]["server"]["flavor"]["id"]
    return flavor


def comes_to(server: Clients, status: str) -> None:
    wait_until(lambda: server.shown()[:2] == (status, None), status, found=server.shown)


def test_servers_move_cold_and_live_are_confirmed_reverted_and_deleted_and_nothing_leaks(
    sqlite_region: Region,
) -> None:
    uuids = [each.uuid for each in boot(sqlite_region, 4).boots]
    cold, reverted, live, resized = (Clients(sqlite_region, uuid) for uuid in uuids)
    before = [host_of(server) for server in (cold, reverted, live)]
    assert resized.act({"resize": {"flavorRef": flavor_of(resized)}})[0] == 400
    assert resized.act({"resize": {"flavorRef": "no such"}})[0] == 400
    assert resized.act({"resize": {"flavorRef": "3"}})[0] == 202
    for server in (cold, reverted):
        assert server.act({"migrate": None})[0] == 202
    assert live.act({"os-migrateLive": {"host": None, "block_migration": True, "disk_over_commit": False}})[0] == 202
    for server in (cold, reverted, resized):
        comes_to(server, "VERIFY_RESIZE")
    assert flavor_of(resized) == "3"
    assert resized.act({"revertResize": None})[0] == 202
    comes_to(live, "ACTIVE")
    assert all(host_of(server) != former for server, former in zip((cold, reverted, live), before, strict=True))
    assert_audit_holds(sqlite_region)  # a copy that waits to be confirmed is nothing wrong
    assert cold.act({"os-stop": None})[0] == 409
    assert cold.act({"confirmResize": None})[0] == 204
    assert reverted.act({"revertResize": None})[0] == 202
    for server in (cold, reverted, resized):
        comes_to(server, "ACTIVE")
    assert flavor_of(resized) == "1"
    assert host_of(reverted) == before[1]
    assert cold.act({"confirmResize": None})[0] == 409
    here = {"host": host_of(live), "block_migration": True, "disk_over_commit": False}
    assert live.act({"os-migrateLive": here})[0] == 400
    assert live.act({"evacuate": {"onSharedStorage": False}})[0] == 400
    assert live.act({"migrate": None})[0] == 202  # deleted on its way, or with its copy
    delete_all(sqlite_region, uuids)
    assert_audit_holds(sqlite_region)
