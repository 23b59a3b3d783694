"""Every reason for which something is refused has a counter, and a test that sees it count."""

from collections.abc import Iterator

import msgspec
import pytest
import zmq
from gevent.event import Event as Flag

from tests.unit.bus.conftest import ECHO, SLOW, Answer, Ask, Bus, connect, wait_until
from tests.unit.bus.test_hostile import HELLO, RawPeer
from zcompute.bus import Endpoint, FrameRefused, Limits, Link, Report, Unavailable
from zcompute.bus.envelope import (
    AckBatch,
    Bye,
    Call,
    Cast,
    Credit,
    Envelope,
    Hello,
    HelloRequired,
    Nak,
    ReportBatch,
    Welcome,
    encode_frame,
)
from zcompute.bus.listener import Route
from zcompute.bus.protocol import State


class Scene:
    """A listener with small limits, and a raw peer that has said hello."""

    def __init__(self, bus: Bus, limits: Limits) -> None:
        self.stay = Flag()
        self.server = bus.endpoint("conductor", "conductor-1", limits=limits)
        self.server.serve(SLOW, self._wait)
        self.server.on_reports(lambda link, reports: self.stay.wait(10) and None)
        self.address = self.server.bind("tcp://127.0.0.1:0")
        self.peer = RawPeer(bus, self.address, self.server.identity.public_key)

    def _wait(self, ask: object, context: object) -> Answer:
        self.stay.wait(10)
        return Answer("at last")

    def counts(self, reason: str) -> bool:
        return self.server.counters[f"refused_{reason}"] > 0

    def close(self) -> None:
        self.stay.set()
        self.peer.close()


@pytest.fixture
def scene(bus: Bus) -> Iterator[Scene]:
    limits = Limits(serving_calls_max=1, report_credit=8, inbox_max=2, routes_max=1)
    made = Scene(bus, limits)
    made.peer.hello()
    yield made
    made.close()


def call(call_id: int) -> Call:
    return Call(call_id, "echo.slow", 1, 0, 5000, "-", msgspec.msgpack.encode({"text": "x"}))


def test_what_follows_a_bye_is_refused(scene: Scene) -> None:
    scene.peer.send(encode_frame([Bye("leaving"), call(1)]))
    wait_until(lambda: scene.server.counters["refused_before_welcome"] == 1)


def test_a_call_beyond_those_served_at_once_is_answered_busy(scene: Scene) -> None:
    scene.peer.send(encode_frame([call(1), call(2)]))
    wait_until(lambda: scene.server.counters["refused_busy"] == 1)
    (answer,) = scene.peer.answer()
    assert answer[:3] == [5, 2, "Busy"]


def test_reports_beyond_the_credit_are_dropped(scene: Scene) -> None:
    scene.peer.send(encode_frame([ReportBatch(1, 0, [Report("k", seq, b"") for seq in range(11)])]))
    wait_until(lambda: scene.server.counters["refused_over_credit"] == 1)


def test_reports_that_nobody_takes_out_of_the_inbox_reset_the_link(scene: Scene) -> None:
    batches: list[Envelope] = [ReportBatch(1, seq, [Report("k", seq, b"")]) for seq in range(6)]
    for batch in batches:
        scene.peer.send(encode_frame([batch]))
    wait_until(lambda: scene.server.counters["refused_inbox_overflow"] >= 1)
    assert not scene.server.links()


def test_a_peer_that_tells_of_a_refusal_is_heard(scene: Scene) -> None:
    scene.peer.send(msgspec.msgpack.encode([[5, 0, "FrameRefused", "you sent nonsense"]]))
    wait_until(lambda: scene.server.counters["refused_told_by_peer"] == 1)


def test_a_route_beyond_the_limit_is_told_busy(bus: Bus, scene: Scene) -> None:
    other = bus.endpoint("api", "api-1")
    link = other.dial(scene.address, scene.server.identity.public_key)
    wait_until(lambda: other.counters["hellos_refused"] >= 1)
    assert scene.counts("routes_full")
    assert scene.server.counters["refused_routes_full"] >= 1
    assert not link.up


@pytest.mark.parametrize(
    "attributes", [b"\xc1", b"\x93\x01\x02\x03", b"\x81\x01\x02", msgspec.msgpack.encode({"much": "x" * 20_000})]
)
def test_attributes_that_are_no_map_or_too_much_refuse_the_hello(bus: Bus, attributes: bytes) -> None:
    made = Scene(bus, Limits())
    try:
        made.peer.send(encode_frame([msgspec.structs.replace(HELLO, attributes=attributes)]))
        (error,) = made.peer.answer()
        assert error[:3] == [5, 0, "FrameRefused"]
        assert made.server.counters["refused_hello"] == 1
    finally:
        made.close()


def test_the_link_of_a_key_that_is_taken_away_is_ended_on_both_sides(bus: Bus) -> None:
    server, client = bus.endpoint("conductor", "conductor-1"), bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    bus.keys.keyring.replace([entry for entry in bus.keys.entries if entry.name != "compute-1"])
    wait_until(lambda: server.counters["refused_revoked"] == 1)
    wait_until(lambda: not link.up)


class HostileListener:
    """A ROUTER that answers the hello of an endpoint as it pleases."""

    def __init__(self, bus: Bus) -> None:
        self.client = bus.endpoint("compute", "compute-1", plain=True)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        self._router.linger = 0
        port = self._router.bind_to_random_port("tcp://127.0.0.1", 20000, 25999)
        self.link = self.client.dial(f"tcp://127.0.0.1:{port}")

    def welcome(self, **values: object) -> Hello:
        wait_until(lambda: self._router.getsockopt(zmq.EVENTS) & zmq.POLLIN)
        self._route, frame = self._router.recv_multipart()
        (hello,) = msgspec.msgpack.decode(frame, type=list[Hello])
        told = {name: getattr(hello, name) for name in Hello.__struct_fields__}
        self.send(Welcome(**{**told, "role": "conductor", **values}))
        wait_until(lambda: self.link.up)
        return hello

    def send(self, envelope: Envelope) -> None:
        self._router.send_multipart([self._route, encode_frame([envelope])])

    def close(self) -> None:
        self._router.close(0)
        self._context.term()


@pytest.fixture
def hostile(bus: Bus) -> Iterator[HostileListener]:
    made = HostileListener(bus)
    yield made
    made.close()


def test_a_listener_says_no_hello(hostile: HostileListener) -> None:
    hello = hostile.welcome()
    hostile.send(hello)
    wait_until(lambda: hostile.client.counters["refused_hello_from_listener"] == 1)
    assert hostile.link.up


def test_a_stream_of_a_peer_that_knows_no_streams_is_told(hostile: HostileListener) -> None:
    hostile.client.on_stream("news", lambda link, events: None)
    hostile.link.follow("news")
    hostile.welcome(protocol_minor=0)
    wait_until(lambda: hostile.client.counters["refused_streams_unspoken"] == 1)
    assert hostile.link.up


def test_a_route_counts_the_refusal_of_a_hello_that_it_never_says(bus: Bus) -> None:
    server: Endpoint = bus.endpoint("conductor", "conductor-1")
    connect(server, bus.endpoint("compute", "compute-1"))
    (back,) = server.links()
    assert isinstance(back, Link)
    assert isinstance(back.carrier, Route)
    back.carrier.on_refused(Unavailable("you may not say hello"))
    assert server.counters["refused_unasked_error"] == 1


def test_sequences_that_were_never_sent_are_refused(scene: Scene) -> None:
    never_sent: list[Envelope] = [Credit(1, 7, 9), AckBatch(1, 7, 9, []), Nak(1, 7)]
    scene.peer.send(encode_frame(never_sent))
    wait_until(lambda: scene.server.counters["refused_bad_sequence"] == 3)


def test_much_before_a_hello_and_too_many_envelopes_are_refused(bus: Bus) -> None:
    made = Scene(bus, Limits(frame_envelopes_max=4))
    try:
        made.peer.send(b"x" * (made.server.limits.hello_bytes_max + 1))
        wait_until(lambda: made.server.counters["refused_size"] == 1)
        made.peer.hello()
        made.peer.send(encode_frame([Bye("")] * 5))
        wait_until(lambda: made.server.counters["refused_envelopes"] == 1)
        assert len(made.server.links()) == 1
    finally:
        made.close()


def test_a_follow_beyond_the_limit_is_refused_and_told(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(streams_max=1))
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    link.follow("news", "a")
    link.follow("news", "b")
    wait_until(lambda: server.counters["refused_streams_full"] == 1)
    wait_until(lambda: client.counters["refused_told_by_peer"] == 1)
    assert len(server.links()[0].core.streams_out) == 1


def test_reports_that_nobody_takes_are_refused(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    link = connect(server, bus.endpoint("compute", "compute-1"))
    assert link.report([Report("k", 0, b"")]) == 1
    wait_until(lambda: server.counters["refused_no_report_handler"] == 1)


def test_calls_that_no_caller_of_ours_would_send_are_refused_by_name(scene: Scene) -> None:
    """Ours finds out by itself: the server is asked by a peer that does not."""
    empty = msgspec.msgpack.encode({})
    for number, name in ((1, "echo.nothing"), (2, "nowhere.slow")):
        scene.peer.send(encode_frame([Call(number, name, 1, 0, 5000, "-", empty)]))
        wait_until(lambda number=number: scene.server.counters["refused_UnknownMethod"] == number)
    scene.peer.send(encode_frame([Cast("echo.slow", 1, 0, "-", empty)]))
    wait_until(lambda: scene.server.counters["refused_InvalidRequest"] == 1)


def test_a_hello_with_an_older_link_number_is_refused(scene: Scene) -> None:
    scene.peer.send(encode_frame([msgspec.structs.replace(HELLO, link_number=5)]))
    wait_until(lambda: scene.server.links() and scene.server.links()[0].core.link_number == 5)
    scene.peer.send(encode_frame([msgspec.structs.replace(HELLO, link_number=4)]))
    wait_until(lambda: scene.server.counters["refused_hello"] == 1)


def test_a_hello_that_nobody_can_look_at_is_told_busy(bus: Bus) -> None:
    server, client = bus.endpoint("conductor", "conductor-1"), bus.endpoint("compute", "compute-1")
    server.admit_pool.close()
    client.dial(server.bind("tcp://127.0.0.1:0"), server.identity.public_key)
    wait_until(lambda: server.counters["refused_hellos_full"] >= 1)
    wait_until(lambda: client.counters["hellos_refused"] >= 1)


def test_a_reply_beyond_the_limit_is_refused_before_it_is_sent(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(payload_bytes_max=1000))
    server.serve(ECHO, lambda ask, context: Answer("x" * 1001))
    link = connect(server, bus.endpoint("compute", "compute-1"))
    with pytest.raises(FrameRefused):
        link.call(ECHO, Ask("x"), timeout_ms=2000)


@pytest.mark.parametrize("late", [Bye("of another life"), HelloRequired("for another frame")])
def test_a_late_word_about_the_life_before_leaves_a_hello_waiting_for_its_answer(
    hostile: HostileListener, late: Envelope
) -> None:
    """A busy listener asks for a hello for each of two old frames; the second time the hello is on its way."""
    hostile.welcome()
    hostile.send(HelloRequired("for a frame"))
    wait_until(lambda: hostile.link.core.state is State.HELLO_SENT)
    hostile.send(late)
    wait_until(lambda: hostile.client.counters["frames_received"] == 3)
    assert hostile.link.core.state is State.HELLO_SENT
    hostile.welcome()


def test_a_welcome_that_was_not_asked_for_is_refused(hostile: HostileListener) -> None:
    hello = hostile.welcome()
    hostile.send(Welcome(**{name: getattr(hello, name) for name in Hello.__struct_fields__}))
    wait_until(lambda: hostile.client.counters["refused_late_welcome"] == 1)
    assert hostile.link.up
