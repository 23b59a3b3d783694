"""Lists over cells that hang, are full of work, or hold what the others do not know."""

import time

import gevent
import msgspec
import pytest

from tests.api.conftest import Client, api_config, is_healthy, wait_until
from tests.api.fake_region import FakeCell, FakeConductor, FakeRegion
from zcompute.api.server import ApiService
from zcompute.metrics import measured
from zcompute.objects import methods as m

MISSING = "X-Zcompute-Missing-Cells"
DEADLINE_S = 3.0  # of a request here, and so of a list
AT_ONCE_S = DEADLINE_S / 2  # an answer that waited for nobody, on a machine that does other things too


@pytest.fixture
def own_region():
    region = FakeRegion()
    yield region
    region.close()


@pytest.fixture
def own_service(own_region, tmp_path):
    service = ApiService(api_config(tmp_path, own_region, deadline_ms=int(DEADLINE_S * 1000)))
    service.start()
    wait_until(lambda: is_healthy(service) and all(service._region.linked(cell) for cell in ("c1", "c2")), "a region")
    yield service
    service.stop()


def ids(answer) -> list[str]:
    assert answer.status == 200, answer.raw
    return [server["id"] for server in answer.body["servers"]]


def hang(conductor: FakeConductor, *methods: m.Method) -> gevent.event.Event:
    """These methods answer when the event is set, and not before."""
    goes_on = gevent.event.Event()
    for method in methods:
        conductor.before[method] = goes_on.wait
    return goes_on


def a_server_in(client: Client, region: FakeRegion, cell: FakeCell, **changes) -> str:
    server = client.created()
    region.hand_over(server, cell, vm_state="active", task_state=None, **changes)
    return server


def metric(service: ApiService, name: str, **labels: str) -> float:
    (found,) = [
        sample.value
        for family in measured("api-1", service.measures())
        for sample in family.samples
        if sample.name == f"zcompute_{name}" and labels.items() <= sample.labels.items()
    ]
    return found


def test_a_hung_cell_costs_one_deadline_then_nothing_and_comes_back_by_itself(own_region, own_service):
    client = Client(own_service.address)
    here, lost = a_server_in(client, own_region, own_region.c1), a_server_in(client, own_region, own_region.c2)
    assert ids(client.get("/v2.1/servers")) == [lost, here]
    goes_on = hang(own_region.c2, m.INSTANCE_LIST, m.INSTANCE_GET)
    began_s = time.monotonic()
    answer = client.get("/v2.1/servers")
    took_s = time.monotonic() - began_s
    assert DEADLINE_S - 0.3 < took_s < DEADLINE_S + AT_ONCE_S
    assert (ids(answer), answer.headers[MISSING]) == ([here], "c2")
    assert metric(own_service, "cell_unreachable", cell="c2") == 1
    assert metric(own_service, "cell_unreachable", cell="c1") == 0
    for _ in range(20):
        began_s = time.monotonic()
        answer = client.get("/v2.1/servers/detail")
        assert time.monotonic() - began_s < AT_ONCE_S
        assert (ids(answer), answer.headers[MISSING]) == ([here], "c2")
    assert client.get(f"/v2.1/servers/{lost}").fault[:2] == ("serviceUnavailable", 503)
    assert client.get(f"/v2.1/servers/{here}").status == 200
    assert metric(own_service, "cell_refused_total", cell="c2") >= 21
    assert metric(own_service, "cell_open", cell="c2") == 0
    goes_on.set()
    wait_until(lambda: metric(own_service, "cell_unreachable", cell="c2") == 0, "the probe has come back")
    answer = client.get("/v2.1/servers")
    assert (ids(answer), answer.headers[MISSING]) == ([lost, here], None)


def test_many_lists_at_a_hung_cell_leave_nothing_behind(own_region, own_service):
    token = Client(own_service.address)
    here = a_server_in(token, own_region, own_region.c1)
    goes_on = hang(own_region.c2, m.INSTANCE_LIST)
    gate = own_service._region._gates

    def one_list(delay_s: float) -> float:
        gevent.sleep(delay_s)
        client = Client(own_service.address)
        began_s = time.monotonic()
        assert ids(client.get("/v2.1/servers")) == [here]
        client.close()
        return time.monotonic() - began_s

    clients = [gevent.spawn(one_list, number * 0.03) for number in range(100)]
    gevent.sleep(2.9)
    assert gate["c2"].open <= 80  # those that came until the probe had no answer
    assert gate["c2"].silent
    gevent.joinall(clients, timeout=10, raise_error=True)
    took_s = [client.value for client in clients]
    assert max(took_s) < DEADLINE_S + AT_ONCE_S
    assert sum(took < AT_ONCE_S for took in took_s) >= 15  # they came later, and did not wait
    assert gate["c2"].open == 0
    assert metric(own_service, "lists_in_flight") == metric(own_service, "list_rows_in_flight") == 0
    goes_on.set()


def test_a_silent_root_is_named_and_lists_go_on(own_region, own_service):
    client = Client(own_service.address)
    here = a_server_in(client, own_region, own_region.c1)
    goes_on = hang(own_region.root, m.SERVERS_PENDING)
    answer = client.get("/v2.1/servers")
    assert (ids(answer), answer.headers[MISSING]) == ([here], "root")
    began_s = time.monotonic()
    answer = client.get("/v2.1/servers")
    assert time.monotonic() - began_s < AT_ONCE_S
    assert answer.headers[MISSING] == "root"
    assert metric(own_service, "cell_unreachable", cell="root") == 1
    goes_on.set()
    wait_until(lambda: MISSING not in client.get("/v2.1/servers").headers, "the root answers")


def test_lists_that_find_no_room_are_told_when_to_come_again(client, service, region, monkeypatch):
    room = service._room
    monkeypatch.setattr(room, "_rows_max", 50)
    monkeypatch.setattr(room, "_wait_ms_max", 100)
    goes_on = hang(region.c1, m.INSTANCE_LIST)
    others = [Client(service.address) for _ in range(2)]
    waiting = [gevent.spawn(other.get, "/v2.1/servers?limit=20") for other in others]
    wait_until(lambda: room.lists == 2, "two lists under way")
    refused = client.get("/v2.1/servers")
    assert refused.fault == ("serviceUnavailable", 503, "The service is busy. Please try again.")
    assert refused.headers["Retry-After"] == "1"
    goes_on.set()
    gevent.joinall(waiting, timeout=10, raise_error=True)
    assert client.get("/v2.1/servers").status == 200
    assert (room.lists, room.rows) == (0, 0)
    for other in others:
        other.close()


def test_a_count_has_every_server_once_however_far_it_has_come(client, admin, other, region):
    servers = [client.created() for _ in range(6)]
    other.created()
    region.hand_over(servers[0], region.c1, vm_state="active", task_state=None)
    region.hand_over(servers[1], region.c2, vm_state="active", task_state=None)
    both = region.root.build_requests[servers[2]]
    region.hand_over(servers[2], region.c2)
    region.root.build_requests[servers[2]] = both  # the cell has it, and the root has not heard yet

    def count(who: Client, query: str) -> int:
        return who.get(f"/v2.1/servers?with_count=true&limit=2{query}").body["count"]

    assert count(client, "") == 6
    assert count(client, f"&marker={servers[3]}") == 6
    assert count(client, "&status=active") == 2
    assert count(client, "&status=shutoff") == 0
    assert count(admin, "&all_tenants=1") == 7
    assert "count" not in client.get("/v2.1/servers").body
    assert client.get("/v2.1/servers?with_count=perhaps").fault[1] == 400


def test_a_count_goes_through_all_pages_of_the_root(service, client, region, monkeypatch):
    monkeypatch.setattr("zcompute.api.listing.PENDING_PAGE", 2)
    for _ in range(4):
        client.created()
    assert client.get("/v2.1/servers?with_count=1").body["count"] == 4
    client.created()
    assert client.get("/v2.1/servers?with_count=1").body["count"] == 5


def test_a_page_of_a_cell_that_has_most_servers_is_filled_by_asking_it_again(client, region):
    servers = []
    for _ in range(5):
        client.created(max_count=10)
    for number, server in enumerate(list(region.root.build_requests)):
        region.hand_over(server, region.c2 if number == 3 else region.c1, vm_state="active", task_state=None)
        servers.append(server)
    region.c1.seen.clear()
    assert ids(client.get("/v2.1/servers?limit=40")) == servers[::-1][:40]
    asked = [request.limit for name, request, _ in region.c1.seen if name in ("list", "briefs")]
    assert len(asked) == 2
    assert sum(asked) < 80


def test_servers_with_much_metadata_come_in_shorter_pages_that_go_on(client, region, monkeypatch):
    large = {f"key-{number}": "x" * 255 for number in range(128)}
    for _ in range(4):
        client.created(max_count=10, metadata=large)
    expected = list(region.root.build_requests)[::-1]
    for number, server in enumerate(expected):
        if number % 3:
            region.hand_over(server, region.c1 if number % 2 else region.c2, vm_state="active", task_state=None)
    monkeypatch.setattr("tests.api.fake_region.PAGE_BYTES", 3 * 35_000)
    seen: list[str] = []
    path = "/v2.1/servers?limit=30"
    pages = 0
    while path:
        answer = client.get(path)
        seen += ids(answer)
        pages += 1
        links = answer.body.get("servers_links", [])
        path = links[0]["href"].partition("//")[2].partition("/")[2] if links else ""
        path = f"/{path}" if path else ""
    assert seen == expected
    assert pages > 2


def test_a_cell_that_falls_silent_between_two_pages_is_named(own_region, own_service):
    client = Client(own_service.address)
    for _ in range(3):
        client.created(max_count=10)
    for server in list(own_region.root.build_requests):
        own_region.hand_over(server, own_region.c1, vm_state="active", task_state=None)
    goes_on = gevent.event.Event()
    asked = []

    def second_time() -> None:
        asked.append(1)
        if len(asked) > 1:
            goes_on.wait()

    own_region.c1.before[m.INSTANCE_LIST] = second_time
    answer = client.get("/v2.1/servers?limit=29")
    found = ids(answer)
    assert answer.headers[MISSING] == "c1"
    assert 0 < len(found) < 29
    goes_on.set()


def test_the_marker_in_a_hung_cell_is_unavailable_not_unknown(own_region, own_service):
    client = Client(own_service.address)
    marker = a_server_in(client, own_region, own_region.c2)
    goes_on = hang(own_region.c2, m.INSTANCE_LIST, m.INSTANCE_GET)
    assert client.get("/v2.1/servers").headers[MISSING] == "c2"
    assert client.get(f"/v2.1/servers?marker={marker}").fault[:2] == ("serviceUnavailable", 503)
    gone = msgspec.structs.replace(own_region.root.mappings[marker])
    del own_region.root.mappings[marker]
    fault = client.get(f"/v2.1/servers?marker={gone.uuid}").fault
    assert fault[:2] == ("serviceUnavailable", 503)
    goes_on.set()
