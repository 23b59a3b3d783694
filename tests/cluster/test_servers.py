"""A region on SQLite, through its HTTP API and its command: what clients see."""

import json
import os
import signal
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.region import assert_all_active, assert_audit_holds, boot, command, delete_all, started, wait_until
from zcompute.cli import exits
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region

BODY = {"name": "one", "flavorRef": "1", "imageRef": "", "networks": "auto"}


def create(region: Region, key: str | None = None, **fields: object) -> tuple[int, dict[str, Any]]:
    client = region.client()
    headers = {"Idempotency-Key": key} if key else None
    try:
        return client.request("POST", "/v2.1/servers", {"server": {**BODY, **fields}}, headers)
    finally:
        client.close()


def show(region: Region, server_id: str) -> dict[str, Any]:
    client = region.client()
    try:
        status, answer = client.request("GET", f"/v2.1/servers/{server_id}")
    finally:
        client.close()
    assert status == 200, answer
    return answer["server"]


def test_the_first_burst_meets_both_cells_and_the_audit_holds(sqlite_region: Region) -> None:
    run = boot(sqlite_region, 40, in_flight=40)
    assert_all_active(run)
    cells = Counter(item.host[:2] for item in run.boots)
    assert sorted(cells) == ["c1", "c2"], cells
    assert_audit_holds(sqlite_region)


def test_a_server_that_fits_nowhere_ends_in_error_and_says_why(sqlite_region: Region) -> None:
    status, answer = create(sqlite_region, availability_zone="atlantis")
    assert status == 202, answer
    server_id = answer["server"]["id"]
    wait_until(lambda: show(sqlite_region, server_id)["status"] == "ERROR", "status ERROR")
    fault = show(sqlite_region, server_id)["fault"]
    assert fault["message"].startswith("No valid host was found.")
    assert len(fault["message"]) > len("No valid host was found. ")
    delete_all(sqlite_region, [server_id])
    assert_audit_holds(sqlite_region)


def test_a_repeated_post_returns_the_first_server(sqlite_region: Region) -> None:
    key = str(uuid.uuid4())
    first, again = create(sqlite_region, key), create(sqlite_region, key)
    assert (first[0], again[0]) == (202, 202)
    assert first[1]["server"]["id"] == again[1]["server"]["id"]
    status, answer = create(sqlite_region, key, name="another")
    assert status == 409, answer


def test_deleted_servers_are_gone_everywhere(sqlite_region: Region) -> None:
    run = boot(sqlite_region, 10)
    delete_all(sqlite_region, [item.uuid for item in run.boots])
    assert_audit_holds(sqlite_region)


def test_a_server_deleted_while_it_is_built_leaves_nothing(sqlite_region: Region) -> None:
    uuids = []
    for _ in range(10):
        status, answer = create(sqlite_region)
        assert status == 202, answer
        uuids.append(answer["server"]["id"])
        client = sqlite_region.client()
        assert client.request("DELETE", f"/v2.1/servers/{uuids[-1]}")[0] == 204
        client.close()
    delete_all(sqlite_region, uuids)
    assert_audit_holds(sqlite_region)


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"flavorRef": "nope"}, 400, "nope"),
        ({"colour": "red"}, 400, "colour"),
        ({"name": 7}, 400, "name"),
        ({"user_data": "A" * 200_000}, 413, ""),
    ],
)
def test_bad_input_is_refused_by_name_and_writes_nothing(
    sqlite_region: Region,
    fields: dict[str, Any],
    status: int,
    word: str,
) -> None:
    before = listed(sqlite_region)
    found, answer = create(sqlite_region, **fields)
    assert found == status, answer
    assert word in json.dumps(answer)
    assert listed(sqlite_region) == before


def listed(region: Region) -> set[str]:
    client = region.client()
    try:
        return {row["id"] for row in client.get("/v2.1/servers?limit=1000")["servers"]}
    finally:
        client.close()


def test_the_listings_show_what_is_there(sqlite_region: Region) -> None:
    state_dir = str(sqlite_region.paths.state_dir)
    servers = command("server", "list", "--state-dir", state_dir, "--format", "json")
    assert servers.returncode == 0, servers.stderr
    assert {row["id"] for row in json.loads(servers.stdout)} == listed(sqlite_region)
    services = command("service", "list", "--state-dir", state_dir, "--format", "json")
    assert services.returncode == 0, services.stderr
    rows = json.loads(services.stdout)
    assert sum(row["binary"] == "nova-compute" for row in rows) == 20
    assert all(row["state"] == "up" for row in rows)


def test_a_request_id_goes_from_the_header_to_the_last_log_line(sqlite_region: Region) -> None:
    request_id = f"req-{uuid.uuid4()}"
    client = sqlite_region.client()
    headers = {"X-Openstack-Request-Id": request_id}
    status, answer = client.request("POST", "/v2.1/servers", {"server": BODY}, headers)
    client.close()
    assert status == 202, answer
    wait_until(lambda: show(sqlite_region, answer["server"]["id"])["status"] == "ACTIVE", "ACTIVE")

    def kinds_that_logged_it() -> set[str]:
        return {
            plan.kind
            for plan in sqlite_region.plans.values()
            if request_id in sqlite_region.paths.log(plan.id).read_text()
        }

    wait_until(lambda: {"api", "conductor", "compute"} <= kinds_that_logged_it(), "a line in every service's log")


def test_a_service_that_ends_by_itself_is_told_at_once(sqlite_region: Region) -> None:
    told: list[str] = []
    sqlite_region.on_unexpected_end = told.append
    os.kill(sqlite_region.processes["c2-scheduler-1"].pid, signal.SIGKILL)
    wait_until(lambda: told, "the end of c2-scheduler-1 is told", timeout_s=5)
    sqlite_region.restart("c2-scheduler-1")
    assert told[0].startswith("c2-scheduler-1 ended with code -9: ")
    assert "\n" not in told[0]
    assert_all_active(boot(sqlite_region, 10))


def test_a_conductor_refuses_to_start_beside_a_compute(sqlite_region: Region, tmp_path: Path) -> None:
    text = sqlite_region.paths.config("c1-conductor-1").read_text()
    config = tmp_path / "conductor.toml"
    config.write_text(text.replace("allow_beside_compute = true", "allow_beside_compute = false"))
    done = command("conductor", "--config", str(config), timeout_s=20)
    assert done.returncode == exits.USAGE
    assert "a compute runs on this host" in done.stderr


def test_a_region_of_small_hosts_refuses_what_is_too_large(tmp_path: Path) -> None:
    shape = Shape(cells=("c1",), computes=1, hosts_per_compute=2, host_memory_mb=4096, host_disk_gb=500)
    with started(tmp_path / "s", "sqlite", shape) as region:
        run = boot(region, 18, 6)
        statuses = sorted(item.status for item in run.boots)
        assert statuses == ["ACTIVE"] * 16 + ["ERROR"] * 2
        faults = [item.fault for item in run.boots if item.status == "ERROR"]
        assert all(fault.startswith("No valid host was found.") for fault in faults)
        assert_audit_holds(region)
