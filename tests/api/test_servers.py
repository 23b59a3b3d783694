"""Creating, showing, listing and deleting servers."""

import hashlib
import uuid
from urllib.parse import urlsplit

import pytest

from tests.api.conftest import Client
from zcompute.objects import methods as m
from zcompute.objects.build_request import BUILD_ERROR
from zcompute.objects.errors import InstanceBusy, InstanceNotFound
from zcompute.objects.instance import Fault

NOWHERE = "00000000-0000-4000-8000-000000000000"


def ids(answer) -> list[str]:
    return [server["id"] for server in answer.body["servers"]]


def called(conductor, method: m.Method) -> list:
    return [request for name, request, _ in conductor.seen if name == method.name]


def test_a_created_server_is_accepted_with_links_and_a_password(client):
    answer = client.create(security_groups=[{"name": "sg"}])
    server = answer.body["server"]
    host, port = client.address
    assert answer.status == 202
    assert set(server) == {"id", "links", "OS-DCF:diskConfig", "adminPass", "security_groups"}
    assert server["OS-DCF:diskConfig"] == "MANUAL"
    assert len(server["adminPass"]) == 12
    assert server["security_groups"] == [{"name": "sg"}]
    assert answer.headers["Location"] == f"http://{host}:{port}/v2.1/servers/{server['id']}"
    assert server["links"][0] == {"rel": "self", "href": answer.headers["Location"]}


def test_everything_asked_for_reaches_the_root(client, region):
    client.created(
        metadata={"a": "b"}, networks=[{"uuid": "n1", "fixed_ip": "10.0.0.1"}], availability_zone="az1",
        key_name="key", user_data="aGVsbG8=", config_drive="true", min_count="1", max_count=2,
        flavorRef="http://any/v2.1/flavors/1",
    )  # fmt: skip
    (request,) = called(region.root, m.SERVERS_CREATE)
    spec = request.spec
    assert (request.project_id, request.user_id, request.name, request.flavorid) == ("demo", "ann", "web", "1")
    assert (request.min_count, request.max_count) == (1, 2)
    assert (spec.image_ref, spec.metadata, spec.networks) == (
        "img",
        {"a": "b"},
        [{"uuid": "n1", "fixed_ip": "10.0.0.1"}],
    )
    assert (spec.availability_zone, spec.key_name, spec.user_data) == ("az1", "key", "aGVsbG8=")
    assert (spec.config_drive, spec.hostname) == (True, "web")


def test_several_servers_answer_with_a_reservation_when_asked(client):
    assert client.create(max_count=3, return_reservation_id=True).body == {"reservation_id": "r-12345678"}
    assert len(ids(client.get("/v2.1/servers"))) == 3


def test_a_repeat_with_the_same_key_returns_the_first_server(client, region):
    key = {"Idempotency-Key": "boot 1"}
    first = client.create(headers=key).body
    assert client.create(headers=key).body == first
    assert len(region.root.build_requests) == 1


def test_a_repeat_with_another_body_conflicts(client):
    key = {"Idempotency-Key": "boot 2"}
    client.create(headers=key)
    answer = client.create(headers=key, name="another")
    assert answer.fault == ("conflictingRequest", 409, "Idempotency-Key was used before for another request.")


def test_the_same_key_of_another_project_is_another_operation(client, other):
    key = {"Idempotency-Key": "boot 3"}
    assert client.create(headers=key).body["server"]["id"] != other.create(headers=key).body["server"]["id"]


def test_without_a_key_every_post_is_an_operation_of_its_own(client):
    assert client.created() != client.created()


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
def test_a_key_that_is_none_is_refused(client, region, key):
    answer = client.create(headers={"Idempotency-Key": key})
    assert answer.fault[:2] == ("badRequest", 400)
    assert "Idempotency-Key" in answer.fault[2]
    assert not region.root.seen


def test_a_pending_server_is_shown_as_building(client, region):
    server = client.created(metadata={"k": "v"})
    shown = client.get(f"/v2.1/servers/{server}").body["server"]
    assert (shown["status"], shown["OS-EXT-STS:vm_state"], shown["OS-EXT-STS:task_state"]) == (
        "BUILD", "building", "scheduling",
    )  # fmt: skip
    assert (shown["tenant_id"], shown["user_id"], shown["metadata"]) == ("demo", "ann", {"k": "v"})
    assert shown["flavor"]["id"] == "1"
    assert "OS-EXT-SRV-ATTR:host" not in shown


def test_a_server_without_any_cell_is_in_error_with_its_fault(client, region):
    server = client.created()
    pending = region.root.build_requests[server]
    pending.state, pending.fault = BUILD_ERROR, Fault(message="No valid host was found. ", created_at_us=10**15)
    region.root.mappings[server].cell = None
    shown = client.get(f"/v2.1/servers/{server}").body["server"]
    assert (shown["status"], shown["OS-EXT-STS:task_state"]) == ("ERROR", None)
    assert shown["fault"] == {"code": 500, "created": "2001-09-09T01:46:40Z", "message": "No valid host was found. "}


def test_a_cell_that_took_the_server_knows_better_than_the_build_request(client, region):
    server = client.created()
    pending = region.root.build_requests[server]
    region.hand_over(server, region.c1, vm_state="active", task_state=None, host="h1")
    region.root.build_requests[server] = pending
    assert client.get(f"/v2.1/servers/{server}").body["server"]["status"] == "ACTIVE"


def test_the_host_is_an_administrators_and_its_hash_everybodys(client, admin, region):
    server = client.created()
    region.hand_over(server, region.c1, vm_state="active", task_state=None, power_state=1, host="h1")
    plain = client.get(f"/v2.1/servers/{server}").body["server"]
    full = admin.get(f"/v2.1/servers/{server}").body["server"]
    assert "OS-EXT-SRV-ATTR:host" not in plain
    assert (full["OS-EXT-SRV-ATTR:host"], full["OS-EXT-SRV-ATTR:hypervisor_hostname"]) == ("h1", "h1")
    assert plain["hostId"] == full["hostId"] == hashlib.sha224(b"demoh1").hexdigest()
    assert plain["progress"] == 0


def test_the_place_of_a_server_is_asked_for_once(client, region):
    server = client.created()
    region.hand_over(server, region.c1)
    for _ in range(3):
        assert client.get(f"/v2.1/servers/{server}").status == 200
    assert len(called(region.root, m.SERVERS_LOCATE)) == 1


def test_a_server_that_changed_its_cell_is_found_again(client, region):
    server = client.created()
    instance = region.hand_over(server, region.c1)
    assert client.get(f"/v2.1/servers/{server}").status == 200
    del region.c1.instances[server]
    region.c2.instances[server] = instance
    region.root.mappings[server].cell, region.root.mappings[server].generation = "c2", 2
    assert client.get(f"/v2.1/servers/{server}").status == 200


def test_a_cached_place_serves_while_the_root_is_away(client, region):
    server = client.created()
    region.hand_over(server, region.c1)
    assert client.get(f"/v2.1/servers/{server}").status == 200

    def away():
        raise InstanceNotFound("the root must not be asked", uuid=server)

    region.root.before[m.SERVERS_LOCATE] = away
    assert client.get(f"/v2.1/servers/{server}").status == 200


def test_another_projects_server_is_not_found_even_when_its_place_is_known(client, other, admin, region):
    server = client.created()
    region.hand_over(server, region.c1)
    assert client.get(f"/v2.1/servers/{server}").status == 200
    assert other.get(f"/v2.1/servers/{server}").fault[:2] == ("itemNotFound", 404)
    assert other.ask("DELETE", f"/v2.1/servers/{server}").fault[:2] == ("itemNotFound", 404)
    assert admin.get(f"/v2.1/servers/{server}").status == 200


def test_a_server_that_is_nowhere_is_not_found(client):
    expected = ("itemNotFound", 404, f"Instance {NOWHERE} could not be found.")
    assert client.get(f"/v2.1/servers/{NOWHERE}").fault == expected
    assert client.ask("DELETE", f"/v2.1/servers/{NOWHERE}").fault == expected


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("bad", ["abc", "1", "zzzzzzzz-0000-4000-8000-000000000000", "0" * 100])
def test_an_id_that_is_no_uuid_is_not_found_and_asked_of_nobody(client, region, method, bad):
    answer = client.ask(method, f"/v2.1/servers/{bad}")
    assert answer.fault[:2] == ("itemNotFound", 404)
    assert "not a UUID" in answer.fault[2]
    assert not region.root.seen


def test_an_upper_case_uuid_is_the_same_server(client):
    server = client.created()
    assert client.get(f"/v2.1/servers/{server.upper()}").status == 200


# -- delete -----------------------------------------------------------------------------------------------------


def test_a_pending_server_is_deleted_at_the_root(client, region):
    server = client.created()
    answer = client.ask("DELETE", f"/v2.1/servers/{server}")
    assert (answer.status, answer.raw) == (204, b"")
    assert not region.root.mappings
    assert client.get(f"/v2.1/servers/{server}").status == 404


def test_a_server_in_a_cell_is_deleted_there(client, region):
    server = client.created()
    region.hand_over(server, region.c2)
    assert client.ask("DELETE", f"/v2.1/servers/{server}").status == 204
    (request,) = called(region.c2, m.INSTANCE_DELETE)
    assert (request.uuid, request.project_id) == (server, "demo")


def test_an_administrator_deletes_in_the_servers_own_project(client, admin, region):
    for server in (client.created(), client.created()):
        if len(region.root.build_requests) == 1:
            region.hand_over(server, region.c1)
        assert admin.ask("DELETE", f"/v2.1/servers/{server}").status == 204


def test_a_delete_follows_a_server_that_was_just_handed_over(client, region):
    server = client.created()
    region.root.before[m.SERVERS_DELETE] = lambda: region.hand_over(server, region.c2)
    assert client.ask("DELETE", f"/v2.1/servers/{server}").status == 204
    assert not region.c2.instances


def test_a_delete_waits_out_a_busy_server(client, region):
    server = client.created()
    region.hand_over(server, region.c1)
    busy = [True, True]

    def while_busy():
        if busy:
            busy.pop()
            raise InstanceBusy("Cannot 'delete' now", uuid=server)

    region.c1.before[m.INSTANCE_DELETE] = while_busy
    assert client.ask("DELETE", f"/v2.1/servers/{server}").status == 204


def test_a_server_that_stays_busy_is_a_conflict_at_the_deadline(client, region):
    server = client.created()
    region.hand_over(server, region.c1)

    def busy():
        raise InstanceBusy(f"Cannot 'delete' instance {server}", uuid=server)

    region.c1.before[m.INSTANCE_DELETE] = busy
    answer = client.ask("DELETE", f"/v2.1/servers/{server}")
    assert answer.fault == ("conflictingRequest", 409, f"Cannot 'delete' instance {server}")


def test_a_server_deleted_in_its_cell_but_still_mapped_is_not_found(client, region):
    server = client.created()
    region.hand_over(server, region.c1)
    del region.c1.instances[server]
    assert client.ask("DELETE", f"/v2.1/servers/{server}").status == 404
    assert client.get(f"/v2.1/servers/{server}").status == 404


# -- lists ------------------------------------------------------------------------------------------------------


def test_a_list_merges_the_cells_and_the_root_newest_first(client, region):
    first, second, third, fourth = (client.created(name=f"s{n}") for n in range(4))
    region.hand_over(first, region.c2)
    region.hand_over(third, region.c1)
    answer = client.get("/v2.1/servers")
    assert ids(answer) == [fourth, third, second, first]
    assert set(answer.body["servers"][0]) == {"id", "name", "links"}
    assert "X-Zcompute-Missing-Cells" not in answer.headers


def test_a_list_goes_on_page_by_page(client, region):
    servers = [client.created() for _ in range(7)]
    for server, cell in zip(servers, [region.c1, region.c2] * 3, strict=False):
        region.hand_over(server, cell)
    seen = []
    path = "/v2.1/servers?limit=3&name=web"
    while path:
        answer = client.get(path)
        seen += ids(answer)
        links = answer.body.get("servers_links", [])
        parts = urlsplit(links[0]["href"]) if links else None
        path = f"{parts.path}?{parts.query}" if parts else ""
    assert seen == servers[::-1]


def test_details_are_whole_servers(client, region):
    server = client.created()
    region.hand_over(server, region.c1, vm_state="active", task_state=None)
    (detail,) = client.get("/v2.1/servers/detail").body["servers"]
    assert detail == client.get(f"/v2.1/servers/{server}").body["server"]


def test_filters_choose(client, admin, other, region):
    building, active = client.created(name="alpha"), client.created(name="beta")
    foreign = other.created()
    region.hand_over(active, region.c1, vm_state="active", task_state=None, host="h1")
    assert ids(client.get("/v2.1/servers?status=active")) == [active]
    assert ids(client.get("/v2.1/servers?status=BUILD")) == [building]
    assert set(ids(client.get("/v2.1/servers?status=BUILD&status=ACTIVE"))) == {building, active}
    assert ids(client.get("/v2.1/servers?status=PAUSED")) == []
    assert ids(client.get("/v2.1/servers?name=lph")) == [building]
    assert ids(admin.get("/v2.1/servers")) == []
    assert ids(admin.get("/v2.1/servers?all_tenants=1")) == [foreign, active, building]
    assert ids(admin.get("/v2.1/servers?all_tenants&project_id=other")) == [foreign]
    assert ids(admin.get("/v2.1/servers?all_tenants=1&host=h1")) == [active]
    assert ids(client.get("/v2.1/servers?host=h1")) == [active, building]


@pytest.mark.parametrize(
    ("query", "name", "code", "part"),
    [
        ("limit=-1", "badRequest", 400, "limit"),
        ("limit=many", "badRequest", 400, "limit"),
        (f"marker={NOWHERE}", "badRequest", 400, f"marker [{NOWHERE}] not found"),
        ("marker=abc", "badRequest", 400, "marker [abc] not found"),
        ("all_tenants=1", "forbidden", 403, "all_tenants"),
        ("all_tenants=perhaps", "badRequest", 400, "all_tenants"),
        ("status=DELETED", "forbidden", 403, "deleted"),
        ("sort_key=name", "badRequest", 400, "sort_key"),
        ("ip=10.0.0.1", "badRequest", 400, "ip"),
        ("name=" + "x" * 256, "badRequest", 400, "name"),
        ("name=web[12]", "badRequest", 400, "name"),
        ("name=a%7Cb", "badRequest", 400, "name"),
        ("changes-since=yesterday", "badRequest", 400, "'yesterday' is not a 'date-time'"),
        ("changes-since=2026-13-01T00:00:00Z", "badRequest", 400, "changes-since"),
        ("changes-since=2026-02-01&changes-before=2026-01-01", "badRequest", 400, "less than or equal to"),
        ("sort_key=host", "forbidden", 403, "Only administrators can sort servers by host"),
        ("sort_key=uuid&sort_dir=up", "badRequest", 400, "Unknown sort direction"),
        ("sort_key=uuid&sort_dir=asc&sort_dir=asc", "badRequest", 400, "Sort direction size exceeds sort key size"),
        ("limit=1.5", "badRequest", 400, "limit"),
    ],
)
def test_a_bad_query_is_refused_by_parameter(client, query, name, code, part):
    fault = client.get(f"/v2.1/servers?{query}").fault
    assert fault[:2] == (name, code)
    assert part in fault[2]


def test_parameters_that_nobody_knows_are_ignored_as_in_nova(client):
    server = client.created()
    assert ids(client.get("/v2.1/servers?whatever=1&deleted=False&deleted=true&host=h9&uuid=x")) == [server]
    assert ids(client.get("/v2.1/servers?sort_key=metadata&availability_zone=nova&_x=1")) == [server]
    assert ids(client.get("/v2.1/servers?limit=0")) == []


def test_administrators_learn_which_filters_are_not_served(admin):
    assert admin.get("/v2.1/servers?availability_zone=nova").fault[1:] == (
        400, "Invalid input for query parameters availability_zone. It is not supported by this release.",
    )  # fmt: skip
    assert admin.get("/v2.1/servers?_x=1").fault[2] == "Invalid filter field: _x."
    assert admin.get("/v2.1/servers?metadata=1").fault[1] == 400
    assert admin.get("/v2.1/servers?power_state=many").fault[1] == 400


def test_orders_and_filters_go_to_every_cell(client, admin, other, region):
    servers = [client.created(name=name, flavorRef=flavor) for name, flavor in
               (("web-b", "1"), ("web-a", "2"), ("db-c", "1"), ("web-d", "1"))]  # fmt: skip
    b, a, c, d = servers
    region.hand_over(b, region.c1, vm_state="active", task_state=None, host="h2", power_state=1)
    region.hand_over(a, region.c2, vm_state="error", task_state=None, host="h1")
    region.hand_over(c, region.c1, vm_state="deleted", task_state=None, updated_at_us=1_800_000_000_000_000)
    assert ids(client.get("/v2.1/servers?sort_key=display_name&sort_dir=asc")) == [a, b, d]
    assert ids(client.get("/v2.1/servers?sort_key=vm_state&sort_key=display_name&sort_dir=asc&sort_dir=desc")) == [
        b, d, a,
    ]  # fmt: skip
    assert ids(client.get("/v2.1/servers?flavor=2")) == [a]
    assert ids(client.get("/v2.1/servers?flavor=77")) == []
    assert ids(client.get("/v2.1/servers?name=%5Eweb-.%24&status=active")) == [b]
    assert ids(client.get("/v2.1/servers?changes-since=2026-11-01T00:00:00Z")) == [c]
    assert ids(client.get("/v2.1/servers?changes-since=2026-11-01T02:00:00%2B02:00&changes-before=2027-01-01")) == []
    assert ids(client.get("/v2.1/servers?tags=x")) == ids(client.get("/v2.1/servers?tags-any=x")) == []
    assert ids(client.get("/v2.1/servers?not-tags=x&image=img")) == [d, a, b]
    every = "/v2.1/servers?all_tenants=1"
    assert ids(admin.get(f"{every}&sort_key=host&sort_dir=desc")) == [b, a, d]
    assert ids(admin.get(f"{every}&deleted=true")) == ids(admin.get(f"{every}&status=deleted")) == [c]
    assert ids(admin.get(f"{every}&vm_state=error&user_id=ann")) == [a]
    assert ids(admin.get(f"{every}&uuid={b}&uuid={a}&uuid=x")) == [a, b]
    assert ids(admin.get(f"{every}&power_state=1&node=h2")) == [b]
    assert ids(admin.get(f"{every}&host=h1&node=h2")) == []


def test_a_server_that_was_deleted_still_marks_its_place(client, other, region):
    first, marker, _last = (client.created() for _ in range(3))
    region.hand_over(marker, region.c2, vm_state="deleted")
    del region.root.mappings[marker]
    assert ids(client.get(f"/v2.1/servers?marker={marker}")) == [first]
    assert other.get(f"/v2.1/servers?marker={marker}").fault == ("badRequest", 400, f"marker [{marker}] not found")


def test_a_page_is_never_longer_than_the_limit_configured(client, region):
    for _ in range(6):
        client.created(max_count=10)
    answer = client.get("/v2.1/servers?limit=1000")
    assert len(ids(answer)) == 50
    assert "limit=1000&marker=" in answer.body["servers_links"][0]["href"]


def test_a_cell_that_fails_is_named_and_costs_only_its_own_rows(client, region):
    first, second = client.created(), client.created()
    region.hand_over(first, region.c1)
    region.hand_over(second, region.c2)

    def fail():
        raise RuntimeError("broken")

    region.c1.before[m.INSTANCE_LIST] = fail
    answer = client.get("/v2.1/servers")
    assert answer.headers["X-Zcompute-Missing-Cells"] == "c1"
    assert ids(answer) == [second]


def test_a_list_without_the_root_names_it(client, region):
    server = client.created()
    region.hand_over(server, region.c1)

    def fail():
        raise RuntimeError("broken")

    region.root.before[m.SERVERS_PENDING] = fail
    answer = client.get("/v2.1/servers")
    assert answer.headers["X-Zcompute-Missing-Cells"] == "root"
    assert ids(answer) == [server]


def test_when_no_cell_answers_there_is_no_list(client, region):
    def fail():
        raise RuntimeError("broken")

    region.c1.before[m.INSTANCE_LIST] = region.c2.before[m.INSTANCE_LIST] = fail
    answer = client.get("/v2.1/servers")
    assert answer.fault[:2] == ("serviceUnavailable", 503)
    assert answer.headers["Retry-After"] == "1"


def test_an_unexpected_error_tells_no_details(client, region):
    def fail():
        raise RuntimeError("secret path /etc/zcompute")

    region.root.before[m.SERVERS_LOCATE] = fail
    fault = client.get(f"/v2.1/servers/{uuid.uuid4()}").fault
    assert fault == ("computeFault", 500, "Unexpected API Error. [RemoteError]")


def test_a_random_token_sees_nothing_of_what_exists(client, region):
    server = client.created()
    assert Client(client.address, "guess").get(f"/v2.1/servers/{server}").status == 401
