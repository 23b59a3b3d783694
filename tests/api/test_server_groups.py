"""Server groups over HTTP: Nova 2.1's shape, codes and words."""

import uuid

import pytest

from tests.api.conftest import Client
from zcompute.objects import methods as m
from zcompute.objects.errors import QuotaExceeded

GROUPS = "/v2.1/os-server-groups"
STRANGE = "00000000-0000-4000-8000-000000000001"


@pytest.fixture(autouse=True)
def no_groups(region):
    region.root.groups.clear()


@pytest.fixture
def admin(service):
    client = Client(service.address, "admin-token")
    yield client
    client.close()


@pytest.fixture
def other(service):
    client = Client(service.address, "other-token")
    yield client
    client.close()


def post(client, name="web", policies=("anti-affinity",), **fields):
    return client.ask("POST", GROUPS, {"server_group": {"name": name, "policies": list(policies), **fields}})


@pytest.mark.parametrize("policy", ["affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity"])
def test_a_group_is_made_and_shown_as_nova_does(client, policy):
    made = post(client, policies=[policy])
    assert made.status == 200
    group = made.body["server_group"]
    assert str(uuid.UUID(group["id"])) == group["id"]
    assert group == {"id": group["id"], "name": "web", "policies": [policy], "members": [], "metadata": {}}
    assert client.get(f"{GROUPS}/{group['id']}").body == made.body
    assert client.get(GROUPS).body == {"server_groups": [group]}
    deleted = client.ask("DELETE", f"{GROUPS}/{group['id']}")
    assert (deleted.status, deleted.raw) == (204, b"")
    assert client.get(f"{GROUPS}/{group['id']}").fault[:2] == ("itemNotFound", 404)


def test_a_server_becomes_a_member_by_its_hint(client, region):
    group_id = post(client).body["server_group"]["id"]
    body = {"server": {"name": "vm", "flavorRef": "1"}, "os:scheduler_hints": {"group": group_id.upper()}}
    made = client.ask("POST", "/v2.1/servers", body)
    assert made.status == 202
    assert client.get(f"{GROUPS}/{group_id}").body["server_group"]["members"] == [made.body["server"]["id"]]
    asked = [request for name, request, _ in region.root.seen if name == "create" and hasattr(request, "digest")]
    assert asked[-1].group_uuid == group_id


def test_the_hint_is_taken_by_its_other_name_too(client):
    body = {"server": {"name": "vm", "flavorRef": "1"}, "OS-SCH-HNT:scheduler_hints": {"group": STRANGE}}
    assert client.ask("POST", "/v2.1/servers", body).fault[2] == f"Instance group {STRANGE} could not be found."


def test_a_repeat_for_another_group_is_another_request(client):
    one, two = (post(client).body["server_group"]["id"] for _ in range(2))
    codes = []
    for group_id in (one, one, two):
        body = {"server": {"name": "vm", "flavorRef": "1"}, "os:scheduler_hints": {"group": group_id}}
        codes.append(client.ask("POST", "/v2.1/servers", body, {"Idempotency-Key": "k"}).status)
    assert codes == [202, 202, 409]


def test_a_hint_of_no_group_is_refused_in_novas_words(client):
    body = {"server": {"name": "vm", "flavorRef": "1"}, "os:scheduler_hints": {"group": STRANGE}}
    fault = client.ask("POST", "/v2.1/servers", body).fault
    assert fault == ("badRequest", 400, f"Instance group {STRANGE} could not be found.")
    for bad in ("g", 7, None, [STRANGE]):
        body["os:scheduler_hints"] = {"group": bad}
        name, code, message = client.ask("POST", "/v2.1/servers", body).fault
        assert (name, code) == ("badRequest", 400)
        assert "is not a 'uuid'" in message


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"policies": []}, "policies"),
        ({"policies": ["affinity", "anti-affinity"]}, "policies"),
        ({"policies": ["near"]}, "'near' is not one of"),
        ({"policies": "affinity"}, "policies"),
        ({"name": ""}, "name"),
        ({"name": " a"}, "name"),
        ({"policy": "affinity"}, "policy"),
        ({"metadata": {}}, "metadata"),
    ],
)
def test_bad_groups_are_refused_and_the_field_is_named(client, fields, named):
    answer = client.ask("POST", GROUPS, {"server_group": {"name": "web", "policies": ["affinity"], **fields}})
    assert answer.fault[:2] == ("badRequest", 400)
    assert named in answer.fault[2]


def test_a_project_sees_and_deletes_its_own_groups_only(client, other, admin):
    group_id = post(client).body["server_group"]["id"]
    for method in ("GET", "DELETE"):
        fault = other.ask(method, f"{GROUPS}/{group_id}").fault
        assert fault == ("itemNotFound", 404, f"Instance group {group_id} could not be found.")
    assert other.get(GROUPS).body == {"server_groups": []}
    assert other.get(f"{GROUPS}?all_projects=1").body == {"server_groups": []}
    assert [one["id"] for one in admin.get(f"{GROUPS}?all_projects=1").body["server_groups"]] == [group_id]
    assert admin.get(GROUPS).body == {"server_groups": []}
    assert admin.ask("DELETE", f"{GROUPS}/{group_id}").status == 204


def test_a_list_is_paged_by_limit_and_offset(client):
    ids = sorted(post(client, name=str(number)).body["server_group"]["id"] for number in range(3))
    pages = [client.get(f"{GROUPS}?limit=2&offset={offset}").body["server_groups"] for offset in (0, 2, 4)]
    assert [[one["id"] for one in page] for page in pages] == [ids[:2], ids[2:], []]
    assert client.get(f"{GROUPS}?offset=x").fault[:2] == ("badRequest", 400)


def test_strange_ids_are_not_found(client):
    for strange in ("x", STRANGE, "%00", "a" * 500):
        assert client.get(f"{GROUPS}/{strange}").status == 404
        assert client.ask("DELETE", f"{GROUPS}/{strange}").status == 404


def test_over_the_quota_is_forbidden_as_in_nova(client, region):
    def refuse():
        raise QuotaExceeded("Quota exceeded, too many server groups.", resource="server_groups")

    region.root.before[m.GROUP_CREATE] = refuse
    assert post(client).fault == ("forbidden", 403, "Quota exceeded, too many server groups.")
