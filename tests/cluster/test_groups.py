"""Server groups through the whole region: API, root, owners of groups and hosts, scheduler and agents."""

import time
import uuid
from typing import Any

from tests.cluster.region import assert_audit_holds, delete_all
from tests.cluster.test_actions import Clients
from tests.cluster.test_faults import store_of
from tests.cluster.test_moves import comes_to, host_of
from zcompute.cli.up.region import Region
from zcompute.db.tables import GROUP_PLACEMENTS

GROUPS = "/v2.1/os-server-groups"
BODY = {"name": "member", "flavorRef": "1", "imageRef": "", "networks": "auto"}


def make_group(region: Region, policy: str) -> str:
    client = region.client()
    status, answer = client.request("POST", GROUPS, {"server_group": {"name": "g", "policies": [policy]}})
    client.close()
    assert status == 200, answer
    made: str = answer["server_group"]["id"]
    return made


def members_of(region: Region, group: str) -> list[str]:
    client = region.client()
    status, answer = client.repeated("GET", f"{GROUPS}/{group}", deadline=time.monotonic() + 30)
    client.close()
    assert status == 200, answer
    members: list[str] = answer["server_group"]["members"]
    return members


def create_members(region: Region, group: str, count: int = 1) -> list[Clients]:
    """So many in one request."""
    client = region.client()
    before = set(members_of(region, group))
    body: dict[str, Any] = {"server": {**BODY, "min_count": count}, "os:scheduler_hints": {"group": group}}
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    status, answer = client.repeated("POST", "/v2.1/servers", body, deadline=time.monotonic() + 60, headers=headers)
    client.close()
    assert status == 202, answer
    created = set(members_of(region, group)) - before
    assert len(created) == count
    return [Clients(region, one) for one in sorted(created)]


def places(region: Region) -> int:
    """In all cells."""
    found = 0
    for cell in region.cells[1:]:  # the first is the root
        with store_of(region, cell) as store:
            found += len(store.scan(GROUP_PLACEMENTS, limit=1000))
    return found


def uuids_of(members: list[Clients]) -> list[str]:
    return [member.path.rpartition("/")[2] for member in members]


def test_members_apart_and_together_move_by_their_policy_and_leave_nothing(sqlite_region: Region) -> None:
    region = sqlite_region
    hosts = len(region.hosts)
    apart, together = make_group(region, "anti-affinity"), make_group(region, "affinity")
    single = create_members(region, apart, hosts)
    for member in single:
        comes_to(member, "ACTIVE")
    assert len({host_of(member) for member in single}) == hosts
    (too_many,) = create_members(region, apart)
    comes_to(too_many, "ERROR")
    fault = too_many.client.request("GET", too_many.path)[1]["server"]["fault"]["message"]
    assert fault.startswith("No valid host was found.")
    pair = create_members(region, together, 2)
    for member in pair:
        comes_to(member, "ACTIVE")
    assert len({host_of(member) for member in pair}) == 1
    assert_audit_holds(region)
    there = [host_of(member) for member in (single[0], pair[0])]
    for member in (single[0], pair[0]):
        assert member.act({"migrate": None})[0] == 202
        comes_to(member, "ACTIVE")  # rolled back: neither policy leaves a host
    assert [host_of(member) for member in (single[0], pair[0])] == there
    cell = there[0].partition("-")[0]
    neighbour = next(member for member in single[1:] if host_of(member).startswith(f"{cell}-"))
    single.remove(neighbour)
    delete_all(region, uuids_of([too_many, neighbour]))
    assert single[0].act({"migrate": None})[0] == 202
    comes_to(single[0], "VERIFY_RESIZE")
    assert places(region) == len(single) + 1 + len(pair)
    assert_audit_holds(region)
    assert single[0].act({"confirmResize": None})[0] == 204
    comes_to(single[0], "ACTIVE")
    assert host_of(single[0]) != there[0]
    delete_all(region, uuids_of([*single, *pair]))
    assert (places(region), members_of(region, apart)) == (0, [])
    assert_audit_holds(region)
