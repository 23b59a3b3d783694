"""Moves of a server through the whole region: API, owners of instance and hosts, both agents, and back."""

from typing import Any

from tests.cluster.region import assert_audit_holds, boot, command, delete_all, wait_until
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


def test_shelved_servers_are_on_no_host_come_back_on_another_and_are_deleted_with_their_images(
    sqlite_region: Region,
) -> None:
    where = ("--state-dir", str(sqlite_region.paths.state_dir))
    uuids = [each.uuid for each in boot(sqlite_region, 2).boots]
    back, gone = (Clients(sqlite_region, uuid) for uuid in uuids)
    former = host_of(back)

    def images(server: Clients) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = back.client.get("/v2.1/images/detail")["images"]
        return [image for image in found if image.get("server", {}).get("id") == server.path.rpartition("/")[2]]

    def statuses(server: Clients) -> list[str]:
        return [image["status"] for image in images(server)]

    assert back.act({"unshelve": None})[0] == 409
    for server in (back, gone):
        assert server.act({"shelve": None})[0] == 202
    for server in (back, gone):
        comes_to(server, "SHELVED_OFFLOADED")
        assert host_of(server) is None
        wait_until(lambda: statuses(server) == ["ACTIVE"], "its image", found=lambda: statuses(server))  # noqa: B023
    name = back.client.get(back.path)["server"]["name"]
    assert images(back)[0]["name"] == f"{name}-shelved"
    assert_audit_holds(sqlite_region)  # on no host, with its place in the quota
    assert back.act({"os-start": None})[0] == 409
    assert command("host", "disable", former, *where).returncode == 0
    assert back.act({"unshelve": None})[0] == 202
    comes_to(back, "ACTIVE")
    assert host_of(back) not in (None, former)
    assert command("host", "enable", former, *where).returncode == 0
    assert gone.client.request("DELETE", gone.path)[0] == 204
    for server in (back, gone):
        wait_until(lambda: images(server) == [], "its image is gone", found=lambda: images(server))  # noqa: B023
    delete_all(sqlite_region, uuids)
    assert_audit_holds(sqlite_region)
