"""Actions of one server through the whole region: API, owner, agent, hypervisor, and back."""

import json
import time
import uuid
from typing import Any

from tests.cluster.region import assert_audit_holds, boot, command, delete_all, wait_until
from zcompute.cli.up.region import Region

# What is asked for in turn, and the status and power state that it leads to.
WALK = [
    ({"os-stop": None}, "SHUTOFF", 4),
    ({"os-start": None}, "ACTIVE", 1),
    ({"reboot": {"type": "SOFT"}}, "ACTIVE", 1),
    ({"pause": None}, "PAUSED", 3),
    ({"unpause": None}, "ACTIVE", 1),
    ({"suspend": None}, "SUSPENDED", 7),
    ({"resume": None}, "ACTIVE", 1),
    ({"rescue": None}, "RESCUE", 1),
    ({"unrescue": None}, "ACTIVE", 1),
    ({"pause": None}, "PAUSED", 3),
    ({"reboot": {"type": "HARD"}}, "ACTIVE", 1),
    ({"os-stop": None}, "SHUTOFF", 4),
    ({"rebuild": {"imageRef": "another"}}, "SHUTOFF", 4),
    ({"createImage": {"name": "stopped"}}, "SHUTOFF", 4),
]


class Clients:
    """One server, over HTTP."""

    def __init__(self, region: Region, server_id: str) -> None:
        self.client = region.client()
        self.path = f"/v2.1/servers/{server_id}"

    def act(self, body: dict[str, Any], key: str | None = None) -> tuple[int, dict[str, Any]]:
        headers = {"Idempotency-Key": key} if key else None
        return self.client.request("POST", f"{self.path}/action", body, headers)

    def shown(self) -> tuple[str, str | None, int]:
        server = self.client.request("GET", self.path)[1]["server"]
        return server["status"], server["OS-EXT-STS:task_state"], server["OS-EXT-STS:power_state"]


def test_every_action_comes_to_the_hypervisor_and_its_state_back_and_is_done_once(sqlite_region: Region) -> None:
    server_id = boot(sqlite_region, 1).boots[0].uuid
    server = Clients(sqlite_region, server_id)
    for body, status, power in WALK:
        key = str(uuid.uuid4())
        assert server.act(body, key)[0] in (200, 202)
        wait_until(lambda: server.shown() == (status, None, power), f"{body}: {status}", found=server.shown)  # noqa: B023
        assert server.act(body, key)[0] in (200, 202)  # over, and allowed no more: a repeat is accepted all the same
    assert server.act({"os-stop": None})[0] == 409
    assert server.act({"lock": None})[0] == 202
    done = server.client.request("GET", f"{server.path}/os-instance-actions")[1]["instanceActions"]
    expected = ["create", *(next(iter(body)).removeprefix("os-") for body, *_ in WALK), "lock"]
    assert [(each["action"], each["message"]) for each in reversed(done)] == [(name, None) for name in expected]
    assert_audit_holds(sqlite_region)
    delete_all(sqlite_region, [server_id])
    assert_audit_holds(sqlite_region)


def test_an_image_is_made_though_its_servers_owner_dies_meanwhile_and_is_what_a_server_is_made_of(
    sqlite_region: Region,
) -> None:
    server_id = boot(sqlite_region, 1).boots[0].uuid
    server = Clients(sqlite_region, server_id)
    body, key = {"createImage": {"name": "one"}}, {"Idempotency-Key": str(uuid.uuid4())}
    assert server.client.request("POST", f"{server.path}/action", body, key)[0] == 202
    owners = [name for name in sqlite_region.processes if name.startswith("c1-conductor")]
    for owner in owners:
        sqlite_region.kill(owner)
        sqlite_region.restart(owner)
    server.client.repeated("POST", f"{server.path}/action", body, deadline=time.monotonic() + 60, headers=key)

    def made() -> list[dict[str, Any]]:
        found = server.client.get(f"/v2.1/images/detail?server={server_id}")["images"]
        return [image for image in found if image["status"] == "ACTIVE"]

    wait_until(lambda: len(made()) == 1, "the image is active", found=made)
    (image,) = made()
    assert (image["server"]["id"], image["OS-EXT-IMG-SIZE:size"]) == (server_id, image["minDisk"] << 30)
    wait_until(lambda: server.shown()[:2] == ("ACTIVE", None), "the server is as before", found=server.shown)
    listed = json.loads(
        command("image", "list", "--state-dir", str(sqlite_region.paths.state_dir), "--format", "json").stdout
    )
    assert {"zcompute-default", "one"} <= {each["name"] for each in listed}
    assert server.act({"rebuild": {"imageRef": image["id"]}})[0] == 202
    wait_until(lambda: server.shown()[:2] == ("ACTIVE", None), "rebuilt of it", found=server.shown)
    assert server.client.request("DELETE", f"/v2.1/images/{image['id']}")[0] == 204
    assert server.client.request("GET", f"/v2.1/images/{image['id']}")[0] == 404
    delete_all(sqlite_region, [server_id])
    assert_audit_holds(sqlite_region)
