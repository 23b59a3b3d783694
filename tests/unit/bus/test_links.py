"""Hello, admission, loss and return of links; reports and state events over real sockets."""

import errno
from typing import Any

import gevent
import gevent.socket
import pytest
import zmq
from gevent.event import Event as Flag

from tests.unit.bus.conftest import ECHO, SLOW, Answer, Ask, Bus, Method, connect, serve_echo, wait_until
from tests.unit.bus.test_processes import free_address
from zcompute.bus import (
    Ack,
    BusConfigError,
    Endpoint,
    Event,
    Forbidden,
    Identity,
    Limits,
    Link,
    LinkReset,
    Peer,
    Report,
    Unavailable,
    dialler,
)
from zcompute.bus.envelope import HelloRequired, encode_frame


def test_hello_and_welcome_carry_attributes_topics_and_interfaces(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", attributes=lambda: {"map_version": 7})
    serve_echo(server)
    client = bus.endpoint("compute", "compute-1", attributes=lambda: {"epochs": {"h1": 3}}, topics=("map",))
    link = connect(server, client)
    assert link.peer is not None
    assert link.peer.attributes == {"map_version": 7}
    assert link.peer.interfaces == {"bus": ((1, 0), (1, 0)), "echo": ((1, 0), (1, 0))}
    (back,) = server.links()
    assert back.peer is not None
    assert (back.peer.attributes, back.peer.topics) == ({"epochs": {"h1": 3}}, frozenset({"map"}))


def test_links_are_found_by_role_cell_and_service_id(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    address = server.bind("tcp://127.0.0.1:0")
    for role, service_id in (("compute", "compute-1"), ("compute", "compute-2"), ("scheduler", "scheduler-1")):
        link = bus.endpoint(role, service_id).dial(address, server.identity.public_key)
        assert link.wait_up(5000)
    assert len(server.links()) == 3
    assert len(server.links(role="compute", cell="c1")) == 2
    assert [link.peer.service_id for link in server.links(service_id="scheduler-1") if link.peer] == ["scheduler-1"]
    assert server.links(cell="c2") == []


def test_admission_may_block_and_refuse_with_an_error_and_is_asked_again(bus: Bus) -> None:
    asked: list[Peer] = []

    def admit(peer: Peer) -> None:
        gevent.sleep(0.01)
        asked.append(peer)
        if len(asked) < 3:
            raise Unavailable("the database is away")

    server = bus.endpoint("conductor", "conductor-1", admit=admit)
    client = bus.endpoint("compute", "compute-1", hosts=("h1",))
    address = server.bind("tcp://127.0.0.1:0")
    link = client.dial(address, server.identity.public_key)
    assert link.wait_up(5000)
    assert [peer.hosts for peer in asked] == [frozenset({"h1"})] * 3
    assert client.counters["hellos_refused"] == 2
    assert server.counters["refused_hello"] == 2


@pytest.mark.parametrize(
    ("role", "cell", "hosts"), [("conductor", "c1", ()), ("compute", "c2", ()), ("compute", "c1", ("h1", "h9"))]
)
def test_a_hello_that_claims_more_than_its_key_is_refused(
    bus: Bus, role: str, cell: str, hosts: tuple[str, ...]
) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    address = server.bind("tcp://127.0.0.1:0")
    bus.keys.make("stolen", "compute", "c1", ("h1", "h2"))
    client = bus.endpoint(role, "compute-1", key="stolen", cell=cell, hosts=hosts)
    link = client.dial(address, server.identity.public_key)
    wait_until(lambda: client.counters["hellos_refused"] >= 1)
    assert not link.up
    assert server.links() == []
    with pytest.raises(Exception, match="key stolen"):
        link.call(ECHO, Ask("?"), timeout_ms=1000)


def test_an_unknown_key_never_gets_in(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    address = server.bind("tcp://127.0.0.1:0")
    client = bus.endpoint("compute", "compute-1")
    bus.keys.keyring.replace([entry for entry in bus.keys.entries if entry.name != "compute-1"])
    link = client.dial(address, server.identity.public_key)
    wait_until(lambda: server.counters["refused_key"] >= 1)
    wait_until(lambda: client.counters["handshakes_failed"] >= 1)
    assert not link.up
    assert server.counters["hellos"] == 0


def test_a_key_that_becomes_known_gets_in_without_a_restart(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    client = bus.endpoint("compute", "compute-1")
    bus.keys.keyring.replace([entry for entry in bus.keys.entries if entry.name != "compute-1"])
    link = client.dial(server.bind("tcp://127.0.0.1:0"), server.identity.public_key)
    wait_until(lambda: client.counters["handshakes_failed"] >= 2)
    bus.keys.keyring.replace(bus.keys.entries)
    assert link.wait_up(3000)


def test_a_listener_of_another_role_than_its_key_is_not_taken(bus: Bus) -> None:
    bus.keys.make("conductor-1", "api")
    server = bus.endpoint("conductor", "conductor-1")
    client = bus.endpoint("compute", "compute-1")
    link = client.dial(server.bind("tcp://127.0.0.1:0"), server.identity.public_key)
    wait_until(lambda: client.counters["hellos_refused"] >= 1)
    assert not link.up


def test_a_computes_key_serves_one_service_id_and_a_conductors_several(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    address = server.bind("tcp://127.0.0.1:0")
    first = bus.endpoint("compute", "compute-1")
    assert first.dial(address, server.identity.public_key).wait_up(5000)
    second = bus.endpoint("compute", "compute-2", key="compute-1")
    second.dial(address, server.identity.public_key)
    wait_until(lambda: second.counters["hellos_refused"] >= 1)
    bus.keys.make("api", "api")
    for service_id in ("api-1", "api-2"):
        assert bus.endpoint("api", service_id, key="api").dial(address, server.identity.public_key).wait_up(5000)
    assert len(server.links(role="compute")) == 1


def test_a_revoked_keys_link_goes_down_and_stays_down(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    link = connect(server, bus.endpoint("compute", "compute-1"))
    kept = bus.endpoint("api", "api-1").dial(server._listeners[0].address, server.identity.public_key)
    assert kept.wait_up(5000)
    bus.keys.keyring.replace([entry for entry in bus.keys.entries if entry.name != "compute-1"])
    wait_until(lambda: not link.up and not server.links(role="compute"))
    wait_until(lambda: server.counters["refused_revoked_frame"] >= 1)
    assert not link.up
    assert kept.up


def test_a_listener_that_forgot_the_route_asks_for_a_hello(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    (back,) = server.links()
    server._listeners[0]._routes.clear()
    again = Method("echo", "say", idempotent=True)
    assert link.call(again, Ask("after"), timeout_ms=3000) == Answer("after")
    assert server.counters["refused_no_hello"] == 1
    assert server.counters["hellos_required"] == 1
    assert client.counters["calls_resent"] == 1
    assert link.core.link_number == 2
    assert server.links() == [back]


def test_a_call_that_is_not_idempotent_fails_with_link_reset(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    go_on = Flag()
    server.serve(SLOW, lambda ask, context: (go_on.wait(5), Answer(""))[1])
    link = connect(server, bus.endpoint("compute", "compute-1"))
    caller = gevent.spawn(link.call, SLOW, Ask("?"), timeout_ms=30_000)
    wait_until(lambda: server.counters["frames_received"] >= 1)
    server.close(linger_ms=0)
    with pytest.raises(LinkReset):
        caller.get(timeout=2)
    go_on.set()


def test_the_same_link_object_comes_back_to_a_new_listener(bus: Bus) -> None:
    first = bus.endpoint("conductor", "conductor-1")
    client = bus.endpoint("compute", "compute-1")
    ups: list[str] = []
    downs: list[Link] = []
    client.on_link_up(lambda link: ups.append(link.peer.incarnation if link.peer else ""))
    client.on_link_down(downs.append)
    link = connect(first, client)
    address = first._listeners[0].address
    first.close(linger_ms=100)
    wait_until(lambda: not link.up)
    second = bus.endpoint("conductor", "conductor-1")
    serve_echo(second)
    second.bind(address)
    assert link.wait_up(5000)
    assert link.call(ECHO, Ask("new"), timeout_ms=2000) == Answer("new")
    wait_until(lambda: len(ups) == 2)
    assert ups == [first.incarnation, second.incarnation]
    assert downs == [link]


def test_a_new_incarnation_of_a_dialler_retires_the_old_link(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    old = bus.endpoint("compute", "compute-1")
    connect(server, old)
    (old_back,) = server.links()
    new = bus.endpoint("compute", "compute-1")
    assert new.dial(server._listeners[0].address, server.identity.public_key).wait_up(5000)
    old.close(linger_ms=0)
    wait_until(lambda: [link.peer.incarnation for link in server.links() if link.peer] == [new.incarnation])
    assert not old_back.up


def test_a_hung_up_link_ends_on_both_sides(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    client.hang_up(link)
    wait_until(lambda: not server.links())
    assert not link.up
    assert client.links() == []


def test_hello_required_comes_once_per_route_and_interval(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    link = connect(server, bus.endpoint("compute", "compute-1"))
    listener = server._listeners[0]
    (route_id,) = listener._routes
    for _ in range(50):
        listener._admission._require_hello(route_id)
    assert server.counters["hellos_required"] == 1
    wait_until(lambda: link.core.link_number == 2 and link.up)
    link.receive(encode_frame([HelloRequired()]))
    wait_until(lambda: link.core.link_number == 3 and link.up)
    assert len(listener._routes) == 1
    (back,) = server.links()
    assert back.peer is not None
    gevent.sleep(0.1)
    link.core.probe()
    link.flush_soon()
    frames = server.counters["frames_received"]
    wait_until(lambda: server.counters["frames_received"] > frames)
    assert link.core.link_number == 3


# Reports


class Conductor:
    """Takes reports, remembers them, and acknowledges when told."""

    def __init__(self, endpoint: Endpoint, acks: bool = True) -> None:
        self.seen: list[tuple[str, int]] = []
        self.acks = acks
        endpoint.on_reports(self.take)

    def take(self, link: Link, reports: list[Report]) -> None:
        self.seen += [(report.key, report.seq) for report in reports]
        if self.acks:
            link.ack([Ack(report.key, report.seq, "applied") for report in reports])


def test_reports_are_acknowledged_durably_and_credit_returns(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(report_credit=20))
    conductor = Conductor(server)
    client = bus.endpoint("compute", "compute-1")
    acked: list[tuple[str, int, str]] = []
    client.on_acks(lambda link, acks: acked.extend((ack.key, ack.seq, ack.verdict) for ack in acks))
    link = connect(server, client)
    reports = [Report(f"i{n % 3}", n, b"state") for n in range(200)]
    sent = 0
    while sent < len(reports):
        taken = link.report(reports[sent:])
        assert taken <= 20
        sent += taken
        gevent.sleep(0.001)
    wait_until(lambda: len(acked) == 200)
    assert conductor.seen == [(report.key, report.seq) for report in reports]
    assert acked == [(report.key, report.seq, "applied") for report in reports]
    assert not link.core.reports_out.unacked
    assert link.report_credit == 20


def test_reports_are_confirmed_as_received_in_time_though_no_ack_comes(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    conductor = Conductor(server, acks=False)
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    for number in range(3):  # also after the first word of it
        link.report([Report("i1", number, b"")])
        wait_until(lambda: not link.core.reports_out.ready and not link.core.reports_out.waiting)
    assert len(conductor.seen) == 3
    assert len(link.core.reports_out.unacked) == 3
    assert not server.links()[0].core.reports_in.untold
    assert server.counters["reports_repeated"] == 0


def test_links_are_found_by_role_while_they_are_up(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    client, other = bus.endpoint("compute", "compute-1"), bus.endpoint("scheduler", "scheduler-1")
    for endpoint in (client, other):
        connect(server, endpoint)
    assert [link.peer.role for link in server.links(role="compute") if link.peer] == ["compute"]
    assert len(server.links()) == 2
    client.close()
    wait_until(lambda: not server.links(role="compute"))
    assert len(server.links(role="scheduler")) == 1
    assert server.links(role="api") == []


def test_unacknowledged_reports_go_out_again_over_a_new_hello(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    conductor = Conductor(server, acks=False)
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    assert link.report([Report("i1", 1, b""), Report("i1", 2, b"")]) == 2
    wait_until(lambda: len(conductor.seen) == 2)
    conductor.acks = True
    server.links()[0].reset("test")
    wait_until(lambda: len(conductor.seen) == 4)
    assert conductor.seen[2:] == [("i1", 1), ("i1", 2)]
    wait_until(lambda: not link.core.reports_out.unacked)


def test_a_late_ack_of_a_link_that_came_back_still_counts(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    conductor = Conductor(server, acks=False)
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    link.report([Report("i1", 1, b"")])
    wait_until(lambda: len(conductor.seen) == 1)
    (back,) = server.links()
    back.reset("test")
    wait_until(lambda: link.up and back.up and link.core.link_number == 2)
    back.ack([Ack("i1", 1, "applied")])
    wait_until(lambda: not link.core.reports_out.unacked)


def test_reports_flow_from_the_listener_too(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    client = bus.endpoint("compute", "compute-1")
    conductor = Conductor(client)
    connect(server, client)
    (back,) = server.links()
    assert back.report([Report("x", 1, b"")]) == 1
    wait_until(lambda: conductor.seen == [("x", 1)])
    wait_until(lambda: not back.core.reports_out.unacked)


# State events


def test_events_reach_the_links_that_named_their_topic(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    address = server.bind("tcp://127.0.0.1:0")
    seen: dict[str, list[tuple[str, int]]] = {"compute-1": [], "api-1": []}
    for role, service_id, topics in (("compute", "compute-1", ("map",)), ("api", "api-1", ())):
        client = bus.endpoint(role, service_id, topics=topics)

        def take(link: Link, event: Event, name: str = service_id) -> None:
            seen[name].append((event.key, event.version))

        client.on_event("map", take)
        assert client.dial(address, server.identity.public_key).wait_up(5000)
    server.publish("map", "c1", 1, b"one")
    server.publish("map", "c1", 2, b"two")
    server.publish("map", "c2", 9, b"")
    wait_until(lambda: ("c2", 9) in seen["compute-1"])
    assert seen == {"compute-1": [("c1", 2), ("c2", 9)], "api-1": []}


def test_a_snapshot_sent_at_link_up_arrives_first(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    server.on_link_up(lambda link: link.event("map", "c1", 4, b"snapshot"))
    client = bus.endpoint("compute", "compute-1", topics=("map",))
    seen: list[object] = []
    client.on_link_up(lambda link: seen.append("up"))
    client.on_event("map", lambda link, event: seen.append((event.version, event.payload)))
    connect(server, client)
    wait_until(lambda: len(seen) == 2)
    assert seen == ["up", (4, b"snapshot")]


def test_handlers_of_a_link_may_call_over_it(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    client = bus.endpoint("compute", "compute-1")
    answers: list[Answer] = []
    client.on_link_up(lambda link: answers.append(link.call(ECHO, Ask("from the handler"), timeout_ms=2000)))
    connect(server, client)
    wait_until(lambda: answers == [Answer("from the handler")])


def test_too_many_state_events_reset_the_link_which_then_gets_a_snapshot(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(state_events_max=5))
    client = bus.endpoint("compute", "compute-1", topics=("map",))
    link = connect(server, client)
    for n in range(7):
        server.publish("map", str(n), 1, b"")
    wait_until(lambda: link.core.link_number == 2 and link.up)
    assert server.counters["refused_events_overflow"] == 1


# Setting up


def test_a_setup_that_would_let_anybody_in_is_refused(bus: Bus) -> None:
    public, secret = bus.keys.make("conductor-1", "conductor")
    open_door = Endpoint(Identity("conductor", "c1", "conductor-1", public_key=public, secret_key=secret))
    bus.endpoints.append(open_door)
    with pytest.raises(BusConfigError, match="keyring"):
        open_door.bind("tcp://127.0.0.1:0")
    with pytest.raises(BusConfigError, match="server key"):
        open_door.dial("tcp://127.0.0.1:20001")
    with pytest.raises(BusConfigError, match="tcp"):
        open_door.bind("ipc://x")
    with pytest.raises(BusConfigError, match="both CURVE keys"):
        Endpoint(Identity("conductor", "c1", "conductor-1", public_key=public))


def test_a_port_in_use_is_a_clear_error(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    address = server.bind("tcp://127.0.0.1:0")
    with pytest.raises(BusConfigError, match=address):
        bus.endpoint("conductor", "conductor-2").bind(address)


def test_a_plain_endpoint_works_without_keys(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", plain=True)
    serve_echo(server)
    link = connect(server, bus.endpoint("compute", "compute-1", plain=True))
    assert link.call(ECHO, Ask("plain"), timeout_ms=2000) == Answer("plain")


def test_a_closed_endpoint_fails_its_calls_and_refuses_new_work(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    go_on = Flag()
    server.serve(SLOW, lambda ask, context: (go_on.wait(5), Answer(""))[1])
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    caller = gevent.spawn(link.call, SLOW, Ask("?"), timeout_ms=30_000)
    wait_until(lambda: link.core.calls)
    client.close()
    with pytest.raises(LinkReset):
        caller.get(timeout=2)
    with pytest.raises(BusConfigError):
        client.dial("tcp://127.0.0.1:20001", server.identity.public_key)
    wait_until(lambda: not server.links())
    go_on.set()
    assert not isinstance(caller.exception, Forbidden)


def test_a_dialler_that_finds_no_descriptor_tries_again_and_holds_no_other_up(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    client = bus.endpoint("compute", "compute-1")
    address = server.bind("tcp://127.0.0.1:0")
    bus.keys.keyring.replace([entry for entry in bus.keys.entries if entry.name != "compute-1"])
    failed: list[str] = []
    opens = dialler.open_dealer

    def open_dealer(*arguments: Any) -> Any:
        if len(failed) < 3:
            failed.append("")
            raise zmq.ZMQError(errno.EMFILE)
        return opens(*arguments)

    link = client.dial(address, server.identity.public_key)
    monkeypatch.setattr(dialler, "open_dealer", open_dealer)
    wait_until(lambda: len(failed) == 3)
    bus.keys.keyring.replace(bus.keys.entries)
    assert link.wait_up(3000)


def test_a_handshake_that_is_cut_off_is_left_to_the_transport(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second attempt beside libzmq's own would cut that one off, and so on: thousands never came back."""
    opened: list[Any] = []
    opens = dialler.open_dealer

    def open_dealer(*arguments: Any) -> Any:
        opened.append(arguments)
        return opens(*arguments)

    monkeypatch.setattr(dialler, "open_dealer", open_dealer)
    client = bus.endpoint("compute", "compute-1")
    address = free_address(bus)
    deaf = gevent.socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])))
    try:
        public = bus.keys.make("conductor-1", "conductor")[0]
        client.dial(address, public)
        for _ in range(3):
            deaf.accept()[0].close()
        wait_until(lambda: client.counters["handshakes_failed"] >= 2)
        assert len(opened) == 1
    finally:
        deaf.close()
