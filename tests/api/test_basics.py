"""Versions, tokens, request ids, flavors, services, health."""

import pytest

from tests.api.conftest import Client


def test_the_root_lists_the_versions_without_a_token(client):
    answer = Client(client.address, token=None).get("/")
    host, port = client.address
    (version,) = answer.body["versions"]
    assert answer.status == 200
    assert (version["id"], version["version"], version["min_version"]) == ("v2.1", "2.1", "2.1")
    assert version["links"] == [{"rel": "self", "href": f"http://{host}:{port}/v2.1/"}]


@pytest.mark.parametrize("path", ["/v2.1", "/v2.1/"])
def test_the_version_document_needs_no_token(client, path):
    answer = Client(client.address, token=None).get(path)
    assert answer.status == 200
    assert answer.body["version"]["status"] == "CURRENT"


@pytest.mark.parametrize("token", [None, "", "wrong", "demo-toke", "demo-token2", "d\u00e9mo"])
def test_without_a_known_token_there_is_nothing(client, token):
    answer = Client(client.address, token).get("/v2.1/servers")
    assert answer.fault == ("unauthorized", 401, "The request you have made requires authentication.")
    assert answer.headers["WWW-Authenticate"].startswith('Keystone uri="http://')
    assert answer.headers["x-openstack-request-id"].startswith("req-")


def test_a_token_is_asked_for_before_a_path_is_known(client):
    assert Client(client.address, None).get("/v2.1/nothing").status == 401
    assert client.get("/v2.1/nothing").fault == ("itemNotFound", 404, "The resource could not be found.")


def test_another_method_is_refused(client):
    answer = client.ask("PUT", "/v2.1/servers", {})
    assert answer.fault[:2] == ("badMethod", 405)
    assert "POST" in answer.headers["Allow"]


def test_a_valid_request_id_is_kept_and_reaches_the_conductors(client, region):
    given = "req-01234567-89ab-cdef-0123-456789abcdef"
    answer = client.ask("GET", "/v2.1/servers", headers={"X-Openstack-Request-Id": given})
    assert answer.headers["x-openstack-request-id"] == given
    assert {request_id for conductor in (region.root, region.c1, region.c2) for _, _, request_id in conductor.seen} == {
        given
    }


@pytest.mark.parametrize("given", ["req-1", "", "x" * 500, "req-01234567-89ab-cdef-0123-456789abcdefg"])
def test_an_invalid_request_id_is_replaced(client, given):
    answer = client.ask("GET", "/v2.1/flavors", headers={"X-Openstack-Request-Id": given})
    made = answer.headers["x-openstack-request-id"]
    assert made != given
    assert len(made) == 40


@pytest.mark.parametrize("version", ["2.1", "latest"])
def test_the_served_microversion_is_accepted(client, version):
    answer = client.ask("GET", "/v2.1/flavors", headers={"OpenStack-API-Version": f"compute {version}"})
    assert answer.status == 200
    assert answer.headers["OpenStack-API-Version"] == "compute 2.1"
    assert answer.headers["X-OpenStack-Nova-API-Version"] == "2.1"


def test_another_microversion_is_not_acceptable(client):
    answer = client.ask("GET", "/v2.1/flavors", headers={"X-OpenStack-Nova-API-Version": "2.79"})
    message = "Version 2.79 is not supported by the API. Minimum is 2.1 and maximum is 2.1."
    assert answer.fault == ("computeFault", 406, message)


def test_a_microversion_that_is_none_is_a_bad_request(client):
    answer = client.ask("GET", "/v2.1/flavors", headers={"OpenStack-API-Version": "compute two"})
    assert answer.fault[:2] == ("badRequest", 400)


def test_public_flavors_are_listed_with_links(client):
    flavors = client.get("/v2.1/flavors").body["flavors"]
    host, port = client.address
    assert flavors[0] == {
        "id": "1",
        "name": "m1.tiny",
        "links": [
            {"rel": "self", "href": f"http://{host}:{port}/v2.1/flavors/1"},
            {"rel": "bookmark", "href": f"http://{host}:{port}/flavors/1"},
        ],
    }
    assert [flavor["id"] for flavor in flavors] == ["1", "2"]


def test_flavors_are_shown_as_nova_shows_them(client):
    shown = client.get("/v2.1/flavors/2").body["flavor"]
    assert {key: value for key, value in shown.items() if key != "links"} == {
        "id": "2", "name": "m1.small", "ram": 2048, "disk": 20, "vcpus": 1, "swap": 512,
        "OS-FLV-EXT-DATA:ephemeral": 0, "OS-FLV-DISABLED:disabled": False, "os-flavor-access:is_public": True,
        "rxtx_factor": 1.0,
    }  # fmt: skip
    assert client.get("/v2.1/flavors/detail").body["flavors"][1] == shown
    assert client.get("/v2.1/flavors/1").body["flavor"]["swap"] == ""


def test_flavors_come_in_pages_and_by_size(client):
    page = client.get("/v2.1/flavors?limit=1").body
    assert [flavor["id"] for flavor in page["flavors"]] == ["1"]
    (link,) = page["flavors_links"]
    assert link["href"].endswith("/v2.1/flavors?limit=1&marker=1")
    assert [f["id"] for f in client.get("/v2.1/flavors?limit=1&marker=1").body["flavors"]] == ["2"]
    assert [f["id"] for f in client.get("/v2.1/flavors?minRam=1024").body["flavors"]] == ["2"]
    assert client.get("/v2.1/flavors?marker=9").fault == ("badRequest", 400, "marker [9] not found")
    assert client.get("/v2.1/flavors?minDisk=x").fault[1] == 400


def test_an_unknown_or_hidden_flavor_is_not_found(client, admin):
    assert client.get("/v2.1/flavors/99").fault == ("itemNotFound", 404, "Flavor 99 could not be found.")
    assert client.get("/v2.1/flavors/3").status == 404
    assert admin.get("/v2.1/flavors/3").status == 200
    assert len(admin.get("/v2.1/flavors?is_public=none").body["flavors"]) == 3


def test_services_of_all_cells_are_an_administrators(client, admin):
    assert client.get("/v2.1/os-services").fault[:2] == ("forbidden", 403)
    services = admin.get("/v2.1/os-services").body["services"]
    assert [service["host"] for service in services] == ["root-1", "c1-1", "c2-1"]
    first = services[0]
    assert isinstance(first.pop("id"), int)
    assert first == {
        "binary": "nova-conductor", "host": "root-1", "zone": "internal", "status": "enabled", "state": "up",
        "updated_at": "2023-11-14T22:13:20.000000", "disabled_reason": None,
    }  # fmt: skip
    assert admin.get("/v2.1/os-services?binary=nova-compute").body == {"services": []}
    assert len(admin.get("/v2.1/os-services?host=c1-1").body["services"]) == 1


def test_health_says_what_is_linked(client):
    answer = Client(client.address, None).get("/healthz")
    assert answer.status == 200
    assert answer.body == {"status": "ok", "missing": []}


def test_one_connection_serves_many_requests(client):
    for _ in range(5):
        assert client.get("/").status == 200
