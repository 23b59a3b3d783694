"""Quotas in a region of real processes: what clients and operators see, and what concurrent creators cannot do."""

import json
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent.pool import Pool

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import assert_audit_holds, command, delete_all, popen, started, wait_until
from tests.cluster.test_faults import owners, store_of
from zcompute.cli.client import ApiClient
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.cli.up.statedir import free_ports
from zcompute.db.native.connection import Connection
from zcompute.db.tables import BUILD_REQUESTS, MAPPINGS, USAGES
from zcompute.db.url import MariaDbTarget, parse_url
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.partition import partition_of

CREATORS = 50
LIMIT = 23
ROUNDS = 4
PROJECT = "demo"
BODY = {"name": "one", "flavorRef": "1", "imageRef": "", "networks": "auto"}


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    shape = Shape(cells=("c1",), computes=1, hosts_per_compute=4)
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, shape) as running:
        running.on_unexpected_end = lambda text: None
        yield running


def quota(region: Region, *arguments: str, code: int = 0) -> Any:
    """``zcompute quota``'s JSON."""
    done = command("quota", *arguments, "--state-dir", str(region.paths.state_dir), "--format", "json")
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout)


def create(client: ApiClient, deadline: float, **fields: object) -> tuple[int, Any]:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    return client.repeated("POST", "/v2.1/servers", {"server": {**BODY, **fields}}, deadline=deadline, headers=headers)


def project_of(region: Region) -> str:
    with store_of(region, ROOT_CELL) as store:
        return store.project_usages("", 10)[0].project_id


def counted(region: Region) -> int:
    with store_of(region, ROOT_CELL) as store:
        return len(store.scan(USAGES, limit=10_000))


@contextmanager
def more_apis(region: Region, count: int, tmp_path: Path) -> Iterator[list[str]]:
    """Further API processes beside the region's own; the URLs of all."""
    text = region.paths.config("api-1").read_text(encoding="utf-8")
    port = region.api_url.rsplit(":", 1)[1]
    urls, running = [region.api_url], []
    try:
        for number in range(2, count + 1):
            own = free_ports(["api"], {})["api"]
            config = tmp_path / f"api-{number}.toml"
            config.write_text(text.replace('"api-1"', f'"api-{number}"').replace(f"port = {port}", f"port = {own}"))
            running.append(popen("api", "--config", str(config), log=tmp_path / f"api-{number}.log"))
            urls.append(region.api_url.replace(f":{port}", f":{own}"))
        for url in urls:
            wait_until(lambda url=url: ready(url, region.token), f"{url} serves")
        yield urls
    finally:
        for process in running:
            end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(10)


def ready(url: str, token: str) -> bool:
    client = ApiClient(url, token)
    try:
        return client.request("GET", "/healthz")[0] == 200
    except OSError:
        return False
    finally:
        client.close()


def test_fifty_creators_over_three_apis_never_pass_the_limit_while_conductors_die(
    region: Region, tmp_path: Path
) -> None:
    """In each round a conductor of the root dies under fifty creators; the limit is reached, never passed."""
    seen_max = 0
    client = region.client()
    project = demo_project(region)
    quota(region, "set", project, "--instances", str(LIMIT))
    over = []

    def watch() -> None:
        nonlocal seen_max
        with store_of(region, ROOT_CELL) as store:
            while True:
                seen_max = max(seen_max, len(store.scan(USAGES, limit=10_000)))
                gevent.sleep(0.02)

    watcher = gevent.spawn(watch)
    try:
        with more_apis(region, 3, tmp_path) as urls:
            for number in range(ROUNDS):
                victim = f"root-conductor-{1 + number % 2}"
                with store_of(region, ROOT_CELL) as store:
                    wait_until(
                        lambda store=store: len(owners(store)) == 2, "both conductors of the root own partitions"
                    )
                servers = burst(region, urls, victim, over)
                assert len(servers) == LIMIT
                assert counted(region) == LIMIT
                assert quota(region, "show", project)["used"]["instances"] == LIMIT
                region.restart(victim)
                delete_all(region, servers)
                wait_until(lambda: counted(region) == 0, "nothing is charged any more", found=lambda: counted(region))
    finally:
        watcher.kill()
        client.close()
    assert seen_max == LIMIT
    assert len(over) == ROUNDS * (CREATORS - LIMIT)
    assert over[0] == f"Quota exceeded for instances: Requested 1, but already used {LIMIT} of {LIMIT} instances"
    assert len(set(over)) == 1
    with store_of(region, ROOT_CELL) as store:
        wait_until(lambda: not store.scan(MAPPINGS, limit=5), "no mapping is left")
        assert not store.scan(BUILD_REQUESTS, limit=5)
    wait_owners(region)
    assert quota(region, "reconcile")["found"] == []
    assert_audit_holds(region)
    quota(region, "set", project, "--unset", "instances")


def wait_owners(region: Region) -> None:
    with store_of(region, ROOT_CELL) as store:
        wait_until(lambda: len(owners(store)) == 2, "both conductors of the root own partitions")


def demo_project(region: Region) -> str:
    """The project of the region's token: what a server of it is charged to."""
    with_server = region.client()
    status, answer = create(with_server, time.monotonic() + 30)
    assert status == 202, answer
    project = project_of(region)
    delete_all(region, [answer["server"]["id"]])
    with_server.close()
    wait_until(lambda: counted(region) == 0, "the server is not charged any more")
    return project


def burst(region: Region, urls: list[str], victim: str, over: list[str]) -> list[str]:
    """Fifty creators at once; the victim dies when the first servers are counted. The servers that were created."""
    deadline = time.monotonic() + 60
    created: list[str] = []

    def one(number: int) -> None:
        client = ApiClient(urls[number % len(urls)], region.token)
        try:
            status, answer = create(client, deadline)
        finally:
            client.close()
        if status == 202:
            created.append(answer["server"]["id"])
        else:
            assert status == 403, (status, answer)
            over.append(answer["forbidden"]["message"])

    pool = Pool(CREATORS)
    creators = [pool.spawn(one, number) for number in range(CREATORS)]
    wait_until(lambda: created, "the first server")
    region.kill(victim)
    gevent.joinall(creators, timeout=90, raise_error=True)
    return created


def test_limits_and_usage_as_nova_shows_them(region: Region) -> None:
    project = demo_project(region)
    client = region.client()
    deadline = time.monotonic() + 60
    path = f"/v2.1/os-quota-sets/{project}"
    put = {"quota_set": {"instances": 4, "cores": "7", "ram": 51200}}
    assert client.request("PUT", path, put)[0] == 200
    shown = client.get(path)["quota_set"]
    assert (shown["id"], shown["instances"], shown["cores"], shown["ram"]) == (project, 4, 7, 51200)
    assert shown["key_pairs"] == 100
    status, answer = create(client, deadline, min_count=2, max_count=3, return_reservation_id=True)
    assert status == 202, answer
    assert client.get("/v2.1/limits")["limits"]["absolute"]["totalInstancesUsed"] == 3
    status, answer = create(client, deadline, min_count=2, max_count=2)
    assert status == 403
    assert answer["forbidden"]["message"] == (
        "Quota exceeded for instances: Requested 2, but already used 3 of 4 instances"
    )
    status, answer = create(client, deadline, min_count=1, max_count=3, return_reservation_id=True)
    assert status == 202
    detail = client.get(f"{path}/detail")["quota_set"]
    assert detail["instances"] == {"in_use": 4, "limit": 4, "reserved": 0}
    status, answer = client.request("PUT", path, {"quota_set": {"instances": 2}})
    assert status == 400
    assert answer["badRequest"]["message"] == (
        "Quota limit 2 for instances must be greater than or equal to already used and reserved 4."
    )
    assert client.request("PUT", path, {"quota_set": {"instances": 2, "force": True}})[0] == 200
    assert client.request("DELETE", path)[0] == 202
    assert client.get(path)["quota_set"]["instances"] == -1
    assert client.get(f"{path}/defaults")["quota_set"]["cores"] == -1
    quota(region, "set", "--default", "--cores", "9")
    wait_until(lambda: client.get(path)["quota_set"]["cores"] == 9, "the default holds everywhere")
    quota(region, "set", "--default", "--unset", "cores")
    uuids = [row["id"] for row in client.get("/v2.1/servers")["servers"]]
    assert quota(region, "usage")["projects"] == [{"project": project, "cores": 4, "instances": 4, "ram": 2048}]
    delete_all(region, uuids)
    wait_until(lambda: counted(region) == 0, "nothing is charged any more")
    client.close()


def statements(region: Region, *texts: str) -> None:
    """Run in the root's database, by a hand that no conductor knows of."""
    target = parse_url(region.database_url(ROOT_CELL))
    assert isinstance(target, MariaDbTarget)
    connection = Connection(target, autocommit=True)
    try:
        for text in texts:
            connection.query(text.encode())
    finally:
        connection.cut()


def usage_row(server: str, project: str) -> str:
    home = partition_of(project)
    columns = "uuid, partition_id, project_id, cores, ram_mb, revision"
    return f"INSERT INTO usages ({columns}) VALUES ('{server}', {home}, '{project}', 1, 512, 1)"  # noqa: S608


def mapping_row(server: str, project: str) -> str:
    home = partition_of(project)
    columns = "uuid, partition_id, project_id, cell, generation, tried_cells, revision"
    row = f"('{server}', {home}, '{project}', 'c1', 1, X'90', 1)"
    return f"INSERT INTO instance_mappings ({columns}) VALUES {row}"  # noqa: S608  # the test's own words


def test_the_reconciler_finds_what_a_restored_or_broken_root_has_wrong_and_repairs_what_is_proven(
    region: Region,
) -> None:
    """All kinds at once; what is left to the operator stays until it is asked for."""
    project = demo_project(region)
    client = region.client()
    deadline = time.monotonic() + 120
    unpaid, wrong, gone = [create(client, deadline)[1]["server"]["id"] for _ in range(3)]
    wait_until(lambda: not pending(region), "the cell has them all")
    delete_all(region, [gone])
    wait_until(lambda: counted(region) == 2, "it is not charged any more")
    left, absent = str(uuid.uuid4()), str(uuid.uuid4())
    for number in (1, 2):
        region.kill(f"root-conductor-{number}")
    statements(
        region,
        f"DELETE FROM usages WHERE uuid = '{unpaid}'",  # noqa: S608  # the test's own words
        f"UPDATE usages SET cores = 7 WHERE uuid = '{wrong}'",  # noqa: S608  # the test's own words
        usage_row(gone, project),
        mapping_row(gone, project),
        usage_row(left, project),
        usage_row(absent, project),
        mapping_row(absent, project),
    )
    for number in (1, 2):
        region.restart(f"root-conductor-{number}")
    region.wait_ready()
    wait_owners(region)
    expected = {
        ("server_without_usage", unpaid),
        ("usage_wrong", wrong),
        ("server_gone", gone),
        ("usage_without_server", left),
        ("server_absent", absent),
    }
    report = quota(region, "reconcile", "--dry-run", code=1)
    assert {(one["kind"], one["subject"]) for one in report["found"]} == expected
    assert not any(one["repaired"] for one in report["found"])
    report = quota(region, "reconcile", code=1)
    assert {(one["kind"], one["subject"]) for one in report["found"]} == expected
    assert [one["subject"] for one in report["found"] if not one["repaired"]] == [absent]
    report = quota(region, "reconcile", "--absent")
    assert [(one["subject"], one["repaired"]) for one in report["found"]] == [(absent, True)]
    assert quota(region, "show", project)["used"] == {"cores": 2, "instances": 2, "ram": 1024}
    assert quota(region, "reconcile")["found"] == []
    assert_audit_holds(region)
    delete_all(region, [unpaid, wrong])
    wait_until(lambda: counted(region) == 0, "nothing is charged any more")
    client.close()


def test_a_cell_that_does_not_answer_is_said_and_nothing_of_it_is_touched(region: Region) -> None:
    client = region.client()
    server = create(client, time.monotonic() + 60)[1]["server"]["id"]
    wait_until(lambda: not pending(region), "the cell has it")
    for number in (1, 2):
        region.kill(f"c1-conductor-{number}")
    report = quota(region, "reconcile", code=1)
    assert (report["silent_cells"], report["found"]) == (["c1"], [])
    assert counted(region) == 1
    for number in (1, 2):
        region.restart(f"c1-conductor-{number}")
    region.wait_ready()
    delete_all(region, [server])
    wait_until(lambda: counted(region) == 0, "nothing is charged any more")
    client.close()


def pending(region: Region) -> bool:
    with store_of(region, ROOT_CELL) as store:
        return bool(store.scan(BUILD_REQUESTS, limit=1))
