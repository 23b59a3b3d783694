"""What clients must not send: refused with the right code and the field's name, and nobody is asked."""

import json
import socket
import time

import gevent
import pytest

from tests.api.conftest import Client
from zcompute import bus
from zcompute.objects import methods as m


def post(client: Client, body, headers=None):
    return client.ask("POST", "/v2.1/servers", body, headers)


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "null", '"text"', "{}}", '{"server": {}} trailing', b"\xff\xfe", b'{"server": {"name": "\xff"}}'],
)
def test_malformed_json_is_a_bad_request(client, region, body):
    fault = post(client, body).fault
    assert fault[:2] == ("badRequest", 400)
    assert not region.root.seen


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": " web"}, "name"),
        ({"name": "w\neb"}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": 5}, "name"),
        ({"flavorRef": None}, "flavorRef"),
        ({"flavorRef": ""}, "flavorRef"),
        ({"imageRef": 1}, "imageRef"),
        ({"colour": "red"}, "colour"),
        ({"personality": []}, "personality"),
        ({"accessIPv4": "1.2.3.4"}, "accessIPv4"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"a": "x" * 256}}, "metadata"),
        ({"metadata": {"": "x"}}, "metadata"),
        ({"networks": "some"}, "networks"),
        ({"networks": [{}]}, "networks[0]"),
        ({"networks": [{"uuid": "n", "tag": "t"}]}, "tag"),
        ({"min_count": 0}, "min_count"),
        ({"min_count": "many"}, "min_count"),
        ({"max_count": 101}, "max_count"),
        ({"min_count": 3, "max_count": 2}, "min_count"),
        ({"availability_zone": "az:host"}, "availability_zone"),
        ({"user_data": "not base64!"}, "user_data"),
        ({"config_drive": "perhaps"}, "config_drive"),
        ({"OS-DCF:diskConfig": "AUTO"}, "OS-DCF:diskConfig"),
        ({"block_device_mapping_v2": [{"source_type": "volume", "uuid": "v"}]}, "block_device_mapping_v2"),
    ],
)
def test_a_bad_field_is_named(client, region, fields, field):
    server = {"name": "web", "flavorRef": "1"} | fields
    server = {key: value for key, value in server.items() if value is not None}
    fault = post(client, {"server": server}).fault
    assert fault[:2] == ("badRequest", 400)
    assert field in fault[2]
    assert not region.root.seen


def test_an_unknown_field_beside_the_server_is_named(client):
    fault = post(client, {"server": {"name": "a", "flavorRef": "1"}, "extra": 1}).fault
    assert fault == ("badRequest", 400, "Additional properties are not allowed ('extra' was unexpected)")
    hints = post(client, {"server": {"name": "a", "flavorRef": "1"}, "os:scheduler_hints": {"query": "[]"}}).fault
    assert "os:scheduler_hints" in hints[2]


def test_an_unknown_flavor_is_a_bad_request_that_names_flavor_ref(client, region):
    answer = client.create(flavorRef="99")
    message = "Invalid input for field/attribute flavorRef. Flavor 99 could not be found."
    assert answer.fault == ("badRequest", 400, message)
    assert not region.root.mappings


def test_too_much_metadata_is_forbidden(client):
    answer = client.create(metadata={str(n): "x" for n in range(129)})
    assert answer.fault[:2] == ("forbidden", 403)


def test_a_body_over_the_limit_is_refused(client, region):
    answer = client.create(user_data="A" * 200_000)
    assert answer.status == 413
    assert answer.body["overLimit"]["code"] == 413
    assert answer.body["overLimit"]["retryAfter"] == "0"
    assert answer.headers["Connection"] == "close"
    assert not region.root.seen


def test_a_body_over_the_limit_in_chunks_is_refused(client, region):
    answer = client.ask("POST", "/v2.1/servers", iter([b"x" * 60_000] * 3))
    assert answer.status == 413
    assert not region.root.seen


def test_a_body_in_chunks_is_read(client):
    body = json.dumps({"server": {"name": "a", "flavorRef": "1"}}).encode()
    answer = client.ask("POST", "/v2.1/servers", iter([body[:10], body[10:]]))
    assert answer.status == 202


def test_another_media_type_is_refused(client):
    answer = post(client, "<server/>", {"Content-Type": "application/xml"})
    assert answer.fault[:2] == ("badMediaType", 415)
    body = {"server": {"name": "a", "flavorRef": "1"}}
    assert post(client, body, {"Content-Type": "application/json; charset=utf-8"}).status == 202


def test_an_answer_that_never_comes_is_unavailable_at_the_deadline(client, region):
    region.root.before[m.SERVERS_CREATE] = lambda: gevent.sleep(10)
    began = time.monotonic()
    answer = client.create()
    assert answer.fault[:2] == ("serviceUnavailable", 503)
    assert int(answer.headers["Retry-After"]) >= 1
    assert 2.5 < time.monotonic() - began < 6


def test_a_busy_root_is_unavailable_with_the_time_to_wait(client, region):
    def busy():
        raise bus.Busy("full", retry_after_ms=5000)

    region.root.before[m.SERVERS_CREATE] = busy
    assert client.create().fault[:2] == ("serviceUnavailable", 503)


# -- below HTTP -------------------------------------------------------------------------------------------------


def raw(client: Client, request: bytes, timeout_s: float = 5.0) -> bytes:
    """Send bytes, read until the server closes."""
    with socket.create_connection(client.address, timeout=timeout_s) as connection:
        connection.sendall(request)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


HEAD = b"POST /v2.1/servers HTTP/1.1\r\nHost: x\r\nX-Auth-Token: demo-token\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "lengths",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 1_0\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    ],
)
def test_a_request_whose_end_is_ambiguous_is_refused_and_the_connection_ends(client, region, lengths):
    answer = raw(client, HEAD + lengths + b"\r\n{}   GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b'"badRequest"' in answer
    assert not region.root.seen


@pytest.mark.parametrize(
    "line", [b"nonsense\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/3.0\r\n\r\n"]
)
def test_what_is_no_http_1_1_is_refused(client, line):
    assert raw(client, line).startswith(b"HTTP/1.1 400 ")


def test_a_body_that_is_cut_off_is_refused(client, region):
    with socket.create_connection(client.address, timeout=5) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert not region.root.seen


def test_a_body_that_does_not_arrive_ends_at_the_deadline(client, region):
    began = time.monotonic()
    answer = raw(client, HEAD + b"Content-Length: 100\r\n\r\n{", timeout_s=10)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 8
    assert not region.root.seen
