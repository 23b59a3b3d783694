"""Calls and casts between two endpoints over CURVE."""


from tests.unit.bus.conftest import ECHO, Answer, Ask, Bus
from zcompute.bus import Endpoint, Link


def serve_echo(endpoint: Endpoint) -> None:
    endpoint.serve(ECHO, lambda ask, context: Answer(ask.text))


def connect(bus: Bus, server: Endpoint, client: Endpoint) -> Link:
    address = server.bind("tcp://127.0.0.1:0")
    link = client.dial(address, server.identity.public_key)
    assert link.wait_up(5000), client.counters
    return link


def test_a_call_is_answered_over_curve(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    client = bus.endpoint("compute", "compute-1")
    link = connect(bus, server, client)
    assert link.call(ECHO, Ask("hello"), timeout_ms=2000) == Answer("hello")
    assert link.peer is not None
    assert (link.peer.role, link.peer.service_id) == ("conductor", "conductor-1")


def test_the_listener_calls_its_dialler(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    client = bus.endpoint("compute", "compute-1", hosts=("h1", "h2"))
    serve_echo(client)
    connect(bus, server, client)
    (back,) = server.links(role="compute")
    assert back.call(ECHO, Ask("hi"), timeout_ms=2000) == Answer("hi")
    assert back.peer is not None
    assert back.peer.hosts == {"h1", "h2"}
    assert back.peer.key_name == "compute-1"
