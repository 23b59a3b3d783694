"""The API as a process would run it: start, health, failing cells, stop."""

import socket
import time

import gevent
import pytest

from tests.api.conftest import Client, api_config, is_healthy, wait_until
from tests.api.fake_region import FakeRegion
from zcompute.api.server import ApiService
from zcompute.api.settings import Limits
from zcompute.api.wsgi import Server, listen
from zcompute.config import BusConfig, Config, ConfigError, PeerConfig, ServiceConfig
from zcompute.objects import methods as m


@pytest.fixture
def own_region():
    region = FakeRegion()
    yield region
    region.close()


@pytest.fixture
def own_service(own_region, tmp_path):
    service = ApiService(api_config(tmp_path, own_region))
    service.start()
    yield service
    service.stop()


def test_a_cell_that_dies_is_missing_in_lists_and_its_servers_unavailable(own_region, own_service):
    client = Client(own_service.address)
    wait_until(lambda: is_healthy(own_service) and own_service._region.linked("c2"), "health")
    server, lost = client.created(), client.created()
    own_region.hand_over(server, own_region.c1)
    own_region.hand_over(lost, own_region.c2)
    own_region.c2.close()
    wait_until(lambda: not own_service._region.linked("c2"), "a link that is down")
    began = time.monotonic()
    answer = client.get("/v2.1/servers")
    assert time.monotonic() - began < 3
    assert [found["id"] for found in answer.body["servers"]] == [server]
    assert answer.headers["X-Zcompute-Missing-Cells"] == "c2"
    assert client.get(f"/v2.1/servers/{lost}").fault[:2] == ("serviceUnavailable", 503)
    assert client.get("/healthz").status == 200


def test_without_the_root_cached_servers_are_shown_and_health_says_so(own_region, own_service):
    client = Client(own_service.address)
    wait_until(lambda: is_healthy(own_service), "health")
    server = client.created()
    own_region.hand_over(server, own_region.c1)
    assert client.get(f"/v2.1/servers/{server}").status == 200
    own_region.root.close()
    wait_until(lambda: client.get("/healthz").status == 503, "bad health")
    assert client.get("/healthz").body == {"status": "unavailable", "missing": ["root"]}
    assert client.get(f"/v2.1/servers/{server}").status == 200
    assert client.create().fault[:2] == ("serviceUnavailable", 503)
    listed = client.get("/v2.1/servers")
    assert listed.headers["X-Zcompute-Missing-Cells"] == "root"
    assert [found["id"] for found in listed.body["servers"]] == [server]


def test_until_the_region_is_linked_health_and_lists_are_unavailable(tmp_path, own_region):
    config = api_config(tmp_path, own_region)
    service = ApiService(
        Config(service=config.service, bus=BusConfig(root=[PeerConfig(id="r", address="tcp://127.0.0.1:1")]),
               api=config.api)
    )  # fmt: skip
    service.start()
    try:
        client = Client(service.address)
        assert client.get("/healthz").body["missing"] == ["root", "the list of cells"]
        assert client.get("/v2.1/servers").fault[:2] == ("serviceUnavailable", 503)
    finally:
        service.stop()


def test_stop_lets_a_request_finish_and_closes_idle_connections_at_once(own_region, own_service):
    wait_until(lambda: is_healthy(own_service), "health")
    idle, busy = Client(own_service.address), Client(own_service.address)
    assert idle.get("/").status == 200
    assert busy.get("/").status == 200
    began = gevent.event.Event()

    def slowly():
        began.set()
        gevent.sleep(0.5)

    own_region.root.before[m.FLAVOR_LIST] = slowly
    answer = gevent.spawn(busy.get, "/v2.1/flavors")
    assert began.wait(5)
    started = time.monotonic()
    own_service.stop()
    assert time.monotonic() - started < 2
    assert answer.get(timeout=5).status == 200
    assert idle.connection.sock.recv(1) == b""
    with pytest.raises(OSError):
        socket.create_connection(own_service.address, timeout=1)


def test_a_request_that_does_not_end_before_stop_is_told_to_repeat_itself(own_region, own_service):
    wait_until(lambda: is_healthy(own_service), "health")
    client = Client(own_service.address)
    began = gevent.event.Event()

    def hang():
        began.set()
        gevent.sleep(10)

    own_region.root.before[m.FLAVOR_LIST] = hang
    cut = gevent.spawn(client.get, "/v2.1/flavors")
    assert began.wait(5)
    started = time.monotonic()
    own_service.stop()
    assert time.monotonic() - started < 3
    answer = cut.get(timeout=5)
    assert answer.fault[:2] == ("serviceUnavailable", 503)
    assert answer.headers["Retry-After"] == "1"


def test_a_port_in_use_is_an_os_error_at_start(own_region, own_service, tmp_path):
    config = api_config(tmp_path, own_region, port=own_service.address[1])
    with pytest.raises(OSError, match="in use"):
        ApiService(config).start()


def test_a_configuration_without_tokens_or_root_is_refused(tmp_path, own_region):
    with pytest.raises(ConfigError, match="token_file"):
        ApiService(api_config(tmp_path, own_region, token_file=""))
    with pytest.raises(ConfigError, match=r"bus\.root"):
        ApiService(
            Config(
                service=ServiceConfig(id="a", cell="root", state_dir=str(tmp_path)),
                api=api_config(tmp_path, own_region).api,
            )
        )


@pytest.fixture
def impatient():
    """A server that answers "hello", with short deadlines."""

    def application(_environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    limits = Limits(idle_s=0.3, header_s=0.3, connections_max=2)
    server = Server(listen("127.0.0.1", 0, 16), application, limits)
    server.start()
    yield server.socket.getsockname()
    server.end(0.1)


def until_closed(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_header_that_never_ends_is_cut_at_its_deadline(impatient):
    with socket.create_connection(impatient, timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for _ in range(3):
            connection.sendall(b"X-More: x\r\n")
            gevent.sleep(0.05)
        assert until_closed(connection).startswith(b"HTTP/1.1 400 ")


def test_an_idle_connection_is_closed(impatient):
    with socket.create_connection(impatient, timeout=5) as connection:
        assert until_closed(connection) == b""


def test_more_connections_than_the_limit_wait_their_turn(impatient):
    held = [socket.create_connection(impatient, timeout=5) for _ in range(2)]
    with socket.create_connection(impatient, timeout=5) as third:
        third.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert until_closed(third).endswith(b"hello")
    for connection in held:
        connection.close()


def test_nodelay_is_set_on_accepted_connections(impatient):
    listener = listen("127.0.0.1", 0, 1)
    with socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        accepted.close()
    listener.close()


def test_a_large_body_that_nobody_reads_ends_the_connection(impatient):
    with socket.create_connection(impatient, timeout=5) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        with pytest.raises(OSError):
            connection.sendall(b"x" * 100_000_000)


def test_a_body_announced_with_expect_and_not_wanted_is_not_waited_for(impatient):
    with socket.create_connection(impatient, timeout=5) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
        answer = until_closed(connection)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"100 Continue" not in answer
