"""Lists over three cells: one is stopped under traffic and comes back, conductors hang, servers move and go.

A second API process is played by this one, so that what it holds can be counted.
"""

import gc
import http.client
import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import gevent
import msgspec
import psutil
import pytest

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import assert_all_active, assert_audit_holds, boot, delete_all, started, wait_until
from zcompute.api.server import ApiService
from zcompute.api.settings import LIMITS
from zcompute.cli.client import ApiClient
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region
from zcompute.config import load

CELLS = ("c1", "c2", "c3")
SHAPE = Shape(cells=CELLS, conductors=2, schedulers=1, computes=1, hosts_per_compute=2)
SERVERS = 15
LISTERS = 10
STOPPED_S = 9.0
LATE_MS_MAX = LIMITS.list_ms_max + 100
LISTER_LATE_MS_MAX = 1_000
MISSING = "X-Zcompute-Missing-Cells"


class Answer:
    """One list, as its client saw it."""

    def __init__(self, status: int, missing: set[str], uuids: list[str], took_ms: float) -> None:
        self.status = status
        self.missing = missing
        self.uuids = uuids
        self.took_ms = took_ms


class Lister:
    """A client with a connection of its own."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)
        self._headers = {"X-Auth-Token": token}

    def page(self, query: str = "") -> Answer:
        began_s = time.monotonic()
        self._connection.request("GET", f"/v2.1/servers?all_tenants=1{query}", headers=self._headers)
        response = self._connection.getresponse()
        body = json.loads(response.read())
        took_ms = (time.monotonic() - began_s) * 1000
        named = response.headers.get(MISSING, "")
        uuids = [each["id"] for each in body.get("servers", ())]
        return Answer(response.status, set(named.split(",")) - {""}, uuids, took_ms)

    def walk(self, limit: int) -> list[str]:
        """All pages."""
        seen: list[str] = []
        while True:
            answer = self.page(f"&limit={limit}" + (f"&marker={seen[-1]}" if seen else ""))
            assert answer.status == 200
            assert not answer.missing
            seen += answer.uuids
            if len(answer.uuids) < limit:
                return seen

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, SHAPE) as made:
        yield made


@pytest.fixture(scope="module")
def api(region: Region) -> Iterator[ApiService]:
    config = load(str(region.paths.config("api-1")))
    service = ApiService(
        msgspec.structs.replace(
            config,
            service=msgspec.structs.replace(config.service, id="api-in-test"),
            api=msgspec.structs.replace(config.api, port=0),
        )
    )
    service.start()
    client = Lister(url_of(service), region.token)
    wait_until(lambda: (found := client.page()).status == 200 and not found.missing, "every cell answers")
    client.close()
    yield service
    service.stop()


def url_of(service: ApiService) -> str:
    return "http://{}:{}".format(*service.address)


@pytest.fixture(scope="module")
def servers(region: Region) -> dict[str, str]:
    """Active servers, and the cell of each."""
    run = boot(region, SERVERS)
    assert_all_active(run)
    client = region.client()
    details = client.get("/v2.1/servers/detail")["servers"]
    found = {each["id"]: each["OS-EXT-SRV-ATTR:host"].split("-")[0] for each in details}
    client.close()
    assert set(found.values()) == set(CELLS)
    return found


@contextmanager
def stopped(region: Region, *names: str) -> Iterator[None]:
    """Conductors that run no more, and do again at the end."""
    for name in names:
        region.processes[name].send(signal.SIGSTOP)
    try:
        yield
    finally:
        for name in names:
            region.processes[name].send(signal.SIGCONT)


@contextmanager
def listing(url: str, token: str, count: int) -> Iterator[list[Answer]]:
    """So many clients list as fast as they can; what they saw."""
    seen: list[Answer] = []
    clients = [Lister(url, token) for _ in range(count)]

    def go_on(client: Lister) -> None:
        while True:
            seen.append(client.page())

    greenlets = [gevent.spawn(go_on, client) for client in clients]
    try:
        yield seen
    finally:
        gevent.killall(greenlets)
        for client in clients:
            client.close()


def greenlets() -> int:
    return sum(isinstance(each, gevent.Greenlet) and not each.dead for each in gc.get_objects())


def test_a_stopped_cell_is_named_costs_its_own_rows_only_and_comes_back(
    region: Region, api: ApiService, servers: dict[str, str]
) -> None:
    mine = {uuid for uuid, cell in servers.items() if cell == "c2"}
    gate = api._region._gates["c2"]
    process = psutil.Process()
    with listing(url_of(api), region.token, LISTERS) as seen:
        wait_until(lambda: len(seen) > 200, "traffic")
        greenlets_before, memory_before = greenlets(), process.memory_info().rss
        assert all(set(answer.uuids) == set(servers) and not answer.missing for answer in seen)
        seen.clear()
        with stopped(region, "c2-conductor-1", "c2-conductor-2"):
            ends_at_s = time.monotonic() + STOPPED_S
            open_max = greenlets_max = 0
            while time.monotonic() < ends_at_s:
                gevent.sleep(1.5)  # a look at all objects holds everybody up
                open_max, greenlets_max = max(open_max, gate.open), max(greenlets_max, greenlets())
            during = list(seen)
            assert gate.silent
            assert gate.open <= 1  # nobody waits any more, but our probe
            assert open_max <= LISTERS
            assert greenlets_max <= greenlets_before + 3 * LISTERS
            assert process.memory_info().rss <= memory_before + 64 * 2**20
            late = [answer for answer in during if answer.took_ms > 1_000]
            assert len(late) <= 2 * LISTERS
            assert sum("c2" in answer.missing for answer in during) > 200  # and quick ones, meanwhile
            lost = next(iter(mine))
            client = ApiClient(url_of(api), region.token)
            began_s = time.monotonic()
            assert client.request("GET", f"/v2.1/servers/{lost}")[0] == 503
            assert time.monotonic() - began_s < 3
            client.close()
        wait_until(lambda: not gate.silent, "the cell answers")
        seen.clear()
        wait_until(lambda: len(seen) > 100, "traffic")
    # Their listers are here too, and wait for a processor: the first says by when the API answers, the last that nobody
    # waited for the cell twice.
    assert min(answer.took_ms for answer in late) <= LATE_MS_MAX
    assert max(answer.took_ms for answer in during) <= LATE_MS_MAX + LISTER_LATE_MS_MAX
    for answer in during:
        assert answer.status == 200
        assert answer.missing <= {"c2"}
        assert set(answer.uuids) == (set(servers) - mine if answer.missing else set(servers))
    after = Lister(url_of(api), region.token)
    wait_until(lambda: not (found := after.page()).missing and set(found.uuids) == set(servers), "all rows again")
    after.close()


def test_one_conductor_that_hangs_costs_no_rows_and_little_time(
    region: Region, api: ApiService, servers: dict[str, str]
) -> None:
    with listing(url_of(api), region.token, 4) as seen:
        with stopped(region, "c1-conductor-1"):
            gevent.sleep(6)
            during = list(seen)
    for answer in during:
        assert answer.status == 200
        assert not answer.missing
        assert set(answer.uuids) == set(servers)
    late = [answer.took_ms for answer in during if answer.took_ms > 500]
    assert max(late, default=0) <= LIMITS.list_ms_max / 2 + 600
    assert len(late) <= 3 * 4
    wait_until(lambda: len(region.conductors("c1")) == 2, "both conductors")


def test_servers_that_move_and_go_are_in_every_list_once(
    region: Region, api: ApiService, servers: dict[str, str]
) -> None:
    """What was accepted before a list began, and was not asked to go before it ended, is in it, once."""
    accepted: set[str] = set()
    leaving: set[str] = set()
    ended = False
    draw = random.Random(5)

    def create(url: str) -> None:
        client = ApiClient(url, region.token)
        for number in range(12):
            body = {"server": {"name": f"moving-{number}", "flavorRef": "1", "imageRef": "i", "networks": "auto",
                               "min_count": 2, "max_count": 2}}  # fmt: skip
            status, answer = client.repeated("POST", "/v2.1/servers", body, deadline=time.monotonic() + 30)
            assert status == 202, answer
            accepted.add(answer["server"]["id"])
            if number % 3 == 0:
                gone = draw.choice(sorted(accepted - leaving))
                leaving.add(gone)
                assert client.repeated("DELETE", f"/v2.1/servers/{gone}", deadline=time.monotonic() + 30)[0] in (
                    204,
                    404,
                )
        client.close()

    def watch(url: str, query: str, limit: int) -> int:
        client = Lister(url, region.token)
        lists = 0
        while not ended:
            before = accepted | set(servers)
            found = client.walk(limit) if limit else client.page(query).uuids
            assert len(found) == len(set(found)), "doubled"
            assert not (before - leaving) - set(found), "missing"
            lists += 1
        client.close()
        return lists

    watching = [
        gevent.spawn(watch, url, query, limit)
        for url in (url_of(api), region.api_url)
        for query, limit in (("", 0), ("&sort_key=display_name&sort_dir=asc", 0), ("", 7))
    ]
    creating = [gevent.spawn(create, url) for url in (url_of(api), region.api_url) for _ in range(2)]
    gevent.joinall(creating, timeout=90, raise_error=True)
    gevent.sleep(1)
    ended = True
    gevent.joinall(watching, timeout=30, raise_error=True)
    assert min(each.value for each in watching) >= 3
    client = region.client()
    left = [each["id"] for each in client.get("/v2.1/servers")["servers"]]
    client.close()
    delete_all(region, left)
    assert_audit_holds(region)


def test_the_logs_of_the_api_say_it_once(region: Region) -> None:
    text = Path(region.paths.log("api-1")).read_text(encoding="utf-8")
    assert text.count("cell does not answer cell=c2") <= 3
    assert "Traceback" not in text
