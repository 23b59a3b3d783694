"""Quotas and limits over HTTP: Nova's names, codes and words."""

import msgspec
import pytest

from tests.api.conftest import Client
from zcompute.bus.errors import InvalidRequest
from zcompute.objects import methods as m
from zcompute.objects.errors import QuotaExceeded
from zcompute.objects.quota import GroupLimits

NOVAS = {
    "cores": 20, "fixed_ips": -1, "floating_ips": -1, "injected_file_content_bytes": 10240,
    "injected_file_path_bytes": 255, "injected_files": 5, "instances": 10, "key_pairs": 100, "metadata_items": 128,
    "ram": 51200, "security_group_rules": -1, "security_groups": -1, "server_group_members": 10, "server_groups": 10,
}  # fmt: skip
DEMO = "/v2.1/os-quota-sets/demo"


@pytest.fixture
def admin(service):
    client = Client(service.address, "admin-token")
    yield client
    client.close()


def put(client, path=DEMO, **fields):
    return client.ask("PUT", path, {"quota_set": fields})


def raising(error):
    def act():
        raise error

    return act


def test_a_project_sees_its_own_limits_as_nova_shows_them(client):
    assert client.get(DEMO).body == {"quota_set": {"id": "demo", **NOVAS}}
    assert client.get(f"{DEMO}/defaults").body == {"quota_set": {"id": "demo", **NOVAS}}
    client.created()
    detail = client.get(f"{DEMO}/detail").body["quota_set"]
    assert detail["id"] == "demo"
    assert detail["instances"] == {"in_use": 1, "limit": 10, "reserved": 0}
    assert detail["ram"] == {"in_use": 512, "limit": 51200, "reserved": 0}
    assert detail["key_pairs"] == {"in_use": 0, "limit": 100, "reserved": 0}


def test_an_administrator_sets_limits_and_gives_them_back(admin):
    answer = put(admin, cores=-1, ram="1024", force="true", tenant_id="demo")
    assert answer.status == 200
    assert answer.body == {"quota_set": {**NOVAS, "cores": -1, "ram": 1024}}
    assert admin.get(DEMO).body["quota_set"]["ram"] == 1024
    deleted = admin.ask("DELETE", DEMO)
    assert (deleted.status, deleted.raw) == (202, b"")
    assert admin.get(DEMO).body == {"quota_set": {"id": "demo", **NOVAS}}


def test_server_groups_are_shown_as_the_root_is_configured(client, region):
    answered = region.root.quota

    def reply(request):
        return msgspec.structs.replace(answered(request), groups=GroupLimits(groups=-1, members=30, used=2))

    region.root.answers[m.QUOTA_GET] = reply
    try:
        shown = client.get(DEMO).body["quota_set"]
        assert (shown["server_groups"], shown["server_group_members"]) == (-1, 30)
        assert client.get(f"{DEMO}/detail").body["quota_set"]["server_groups"]["in_use"] == 2
        absolute = client.get("/v2.1/limits").body["limits"]["absolute"]
        names = ("maxServerGroups", "maxServerGroupMembers", "totalServerGroupsUsed")
        assert [absolute[name] for name in names] == [-1, 30, 2]
    finally:
        del region.root.answers[m.QUOTA_GET]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_others_change_nothing(client, method):
    answer = client.ask(method, DEMO, {"quota_set": {"cores": 1}} if method == "PUT" else None)
    assert answer.fault[:2] == ("forbidden", 403)


@pytest.mark.parametrize("path", ["", "/detail", "/defaults"])
def test_others_do_not_see_another_projects(client, admin, path):
    fault = client.get(f"/v2.1/os-quota-sets/other{path}").fault
    assert fault[1] == 403
    assert fault[2].startswith("Policy doesn't allow os_compute_api:os-quota-sets:")
    assert admin.get(f"/v2.1/os-quota-sets/other{path}").status == 200


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"cores": -2}, "cores"),
        ({"cores": 2**31}, "cores"),
        ({"ram": "many"}, "ram"),
        ({"instances": True}, "instances"),
        ({"key_pairs": 3}, "key_pairs"),
        ({"colour": 3}, "colour"),
        ({"force": "perhaps"}, "force"),
    ],
)
def test_a_limit_that_cannot_be_is_refused_by_name(admin, region, fields, named):
    name, code, message = put(admin, **fields).fault
    assert (name, code) == ("badRequest", 400)
    assert named in message
    assert not [request for method, request, _ in region.root.seen if method == "set"]


def test_a_limit_below_what_is_used_is_refused_in_the_roots_words(admin, region):
    words = "Quota limit 1 for cores must be greater than or equal to already used and reserved 4."
    region.root.before[m.QUOTA_SET] = raising(InvalidRequest(words, field="cores"))
    assert put(admin, cores=1).fault == ("badRequest", 400, words)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"quota_set": 3}', b'{"quota_set": {}, "more": 1}'])
def test_a_body_that_is_none_is_refused(admin, body):
    assert admin.ask("PUT", DEMO, body.decode()).status == 400


def test_quotas_of_users_are_refused_rather_than_ignored(admin):
    assert admin.get(f"{DEMO}?user_id=ann").fault[1] == 400


def test_over_the_limit_the_answer_is_novas(client, region):
    words = "Quota exceeded for instances: Requested 1, but already used 10 of 10 instances"
    region.root.before[m.SERVERS_CREATE] = raising(QuotaExceeded(words, resource="instances"))
    answer = client.create()
    assert answer.fault == ("forbidden", 403, words)
    assert answer.headers["Retry-After"] == "0"


def test_limits_are_absolute_with_what_is_used(client, admin):
    client.created()
    limits = client.get("/v2.1/limits").body["limits"]
    assert limits["rate"] == []
    absolute = limits["absolute"]
    assert (absolute["maxTotalInstances"], absolute["totalInstancesUsed"]) == (10, 1)
    assert (absolute["maxTotalRAMSize"], absolute["totalRAMUsed"]) == (51200, 512)
    assert (absolute["maxServerMeta"], absolute["totalCoresUsed"]) == (128, 1)
    assert admin.get("/v2.1/limits").body["limits"]["absolute"]["totalInstancesUsed"] == 0
    assert admin.get("/v2.1/limits?tenant_id=demo").body["limits"]["absolute"]["totalInstancesUsed"] == 1
    assert client.get("/v2.1/limits?tenant_id=other").fault[1] == 403
