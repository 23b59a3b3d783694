"""Actions of one server through the whole region: API, owner, agent, hypervisor, and back."""

import uuid
from typing import Any

from tests.cluster.region import assert_audit_holds, boot, delete_all, wait_until
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
