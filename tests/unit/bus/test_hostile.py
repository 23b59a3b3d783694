"""A peer with a valid key that sends what it should not: refused, counted, and nobody else notices."""

import random
import time
from collections.abc import Iterator

import gevent
import msgspec
import pytest
import zmq

from tests.unit.bus.conftest import ECHO, Answer, Ask, Bus, connect, serve_echo, wait_until
from zcompute.bus import Ack, Endpoint, Limits, Link
from zcompute.bus.conduct import Conduct
from zcompute.bus.endpoint import BLOCKED_RETRY_INTERVAL_S
from zcompute.bus.envelope import PROTOCOL_MINOR, Call, Hello, Report, ReportBatch, encode_frame
from zcompute.bus.sockets import readable
from zcompute.bus.zap import zap_answer

HELLO = Hello(
    protocol_major=1, protocol_minor=0, link_number=1, service_id="evil-1", incarnation="e1", role="compute", cell="c1",
    release="1", hosts=[], interfaces={}, topics=[], attributes=b"\x80", report_credit=10,
)  # fmt: skip


class RawPeer:
    """A DEALER with a valid key and nothing of ours above it."""

    def __init__(self, bus: Bus, address: str, server_key: str) -> None:
        public, secret = bus.keys.make("evil", "compute")
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = 8  # who does not read is soon full
        self.socket.curve_publickey = public.encode()
        self.socket.curve_secretkey = secret.encode()
        self.socket.curve_serverkey = server_key.encode()
        self.socket.connect(address)

    def send(self, *parts: bytes) -> None:
        self.socket.send_multipart(list(parts))

    def answer(self) -> list[list[object]]:
        wait_until(lambda: readable(self.socket))
        return msgspec.msgpack.decode(self.socket.recv(), type=list[list[object]])

    def hello(self) -> None:
        self.send(encode_frame([HELLO]))
        answer = self.answer()
        while answer[0][0] == 13:  # hello_required, for what was sent before
            answer = self.answer()
        assert answer[0][0] == 2

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()


@pytest.fixture
def server(bus: Bus) -> Endpoint:
    endpoint = bus.endpoint("conductor", "conductor-1")
    serve_echo(endpoint)
    return endpoint


@pytest.fixture
def neighbour(bus: Bus, server: Endpoint) -> Link:
    return connect(server, bus.endpoint("compute", "compute-1"))


@pytest.fixture
def peer(bus: Bus, server: Endpoint, neighbour: Link) -> Iterator[RawPeer]:
    raw = RawPeer(bus, neighbour.address, server.identity.public_key)
    yield raw
    raw.close()


def check_neighbour(neighbour: Link) -> None:
    assert neighbour.call(ECHO, Ask("fine"), timeout_ms=2000) == Answer("fine")
    assert neighbour.core.link_number == 1


@pytest.mark.parametrize(
    ("frame", "counter"),
    [
        (b"not msgpack at all", "refused_malformed"),
        (b"\x91\x91\xcc\xc8", "refused_malformed"),
        (b"\xdc\x02\x00" + b"\x93\x09\x00\x00" * 512, "refused_envelopes"),
        (encode_frame([Call(1, "echo.say", 1, 0, 100, "-", b"x" * 100_000)]), "refused_size"),
        (encode_frame([Call(1, "echo.say", 1, 0, 100, "-", b"")]), "refused_no_hello"),
    ],
)
def test_before_hello_anything_else_is_refused(
    server: Endpoint, neighbour: Link, peer: RawPeer, frame: bytes, counter: str
) -> None:
    peer.send(frame)
    wait_until(lambda: server.counters[counter] == 1)
    assert server.counters["calls_served"] == 0
    check_neighbour(neighbour)
    peer.hello()


@pytest.mark.parametrize(
    ("frame", "counter"),
    [
        (b"not msgpack at all", "refused_malformed"),
        (b"\x91\x91\xcc\xc8", "refused_malformed"),
        (b"\xdc\x02\x00" + b"\x93\x09\x00\x00" * 512, "refused_envelopes"),
        (encode_frame([ReportBatch(1, 0, [Report("k", 1, b"")])]), "refused_no_report_handler"),
        (msgspec.msgpack.encode([[9, 1, 99, 99]]), "refused_bad_sequence"),
        (msgspec.msgpack.encode([[12, 1, 99]]), "refused_bad_sequence"),
        (msgspec.msgpack.encode([[2, *msgspec.structs.astuple(HELLO)]]), "refused_late_welcome"),
    ],
)
def test_after_hello_a_bad_frame_is_dropped_and_the_link_goes_on(
    server: Endpoint, neighbour: Link, peer: RawPeer, frame: bytes, counter: str
) -> None:
    peer.hello()
    peer.send(frame)
    wait_until(lambda: server.counters[counter] == 1)
    check_neighbour(neighbour)
    peer.send(encode_frame([Call(7, "echo.say", 1, 0, 1000, "-", msgspec.msgpack.encode(Ask("still here")))]))
    answers: list[object] = []
    while not answers:
        answers = [envelope for envelope in peer.answer() if envelope[0] == 4]
    assert answers == [[4, 7, msgspec.msgpack.encode(Answer("still here"))]]


def test_a_message_of_several_parts_is_refused_whole(server: Endpoint, neighbour: Link, peer: RawPeer) -> None:
    peer.send(b"one", b"two", b"three")
    wait_until(lambda: server.counters["refused_multipart"] == 1)
    peer.hello()
    peer.send(b"", b"", b"", b"")
    wait_until(lambda: server.counters["refused_multipart"] == 2)
    check_neighbour(neighbour)


def test_a_message_over_the_frame_limit_costs_its_sender_the_connection(
    server: Endpoint, neighbour: Link, peer: RawPeer
) -> None:
    peer.hello()
    wait_until(lambda: len(server.links()) == 2)
    peer.send(b"\x91" + b"x" * (Limits().frame_bytes_max + 1))
    wait_until(lambda: len(server.links()) == 1)
    check_neighbour(neighbour)


def test_another_protocol_version_is_told_which_one_is_spoken(server: Endpoint, neighbour: Link, peer: RawPeer) -> None:
    peer.send(msgspec.msgpack.encode([[1, 2, 7, "a very", {"different": "hello"}]]))
    (error,) = peer.answer()
    assert error[:3] == [5, 0, "UnsupportedVersion"]
    assert error[4] == {"interface": "protocol", "wanted": [2, 7], "server": [[1, 0], [1, PROTOCOL_MINOR]]}
    assert server.counters["refused_protocol_version"] == 1
    check_neighbour(neighbour)


def test_another_identity_than_the_keys_cannot_be_taken(server: Endpoint, neighbour: Link, peer: RawPeer) -> None:
    stolen = msgspec.structs.replace(HELLO, service_id="compute-1", role="conductor")
    peer.send(encode_frame([stolen]))
    (error,) = peer.answer()
    assert error[:3] == [5, 0, "Forbidden"]
    same_name = msgspec.structs.replace(HELLO, service_id="compute-1")
    peer.send(encode_frame([same_name]))
    assert peer.answer()[0][0] == 2
    check_neighbour(neighbour)
    assert len(server.links(service_id="compute-1")) == 2


def test_a_hello_with_an_old_link_number_is_refused(server: Endpoint, neighbour: Link, peer: RawPeer) -> None:
    peer.send(encode_frame([msgspec.structs.replace(HELLO, link_number=5)]))
    assert peer.answer()[0][0] == 2
    peer.send(encode_frame([msgspec.structs.replace(HELLO, link_number=5)]))
    (error,) = peer.answer()
    assert error[:3] == [5, 0, "FrameRefused"]


def test_random_bytes_after_hello_disturb_nobody(server: Endpoint, neighbour: Link, peer: RawPeer) -> None:
    chance = random.Random(3)
    server.conduct = Conduct(Limits(offences_burst=10_000))  # else the key would be barred
    peer.hello()
    real = encode_frame([Call(1, "echo.say", 1, 0, 100, "-", msgspec.msgpack.encode(Ask("x")))])
    for n in range(2000):
        frame = bytearray(real)
        for _ in range(chance.randrange(1, 6)):
            frame[chance.randrange(len(frame))] = chance.randrange(256)
        peer.send(bytes(frame))
        if n % 100 == 0:
            check_neighbour(neighbour)
            gevent.sleep(0)
    check_neighbour(neighbour)
    wait_until(lambda: server.counters["refused_malformed"] > 100)


def test_zap_refuses_what_is_no_curve_request_of_a_known_key(bus: Bus) -> None:
    keyring = bus.keys.keyring
    request = [b"1.0", b"1", b"zcompute", b"127.0.0.1", b"", b"CURVE", b"k" * 32]
    for parts, status in (
        (request, b"400"),
        ([*request[:5], b"NULL", b""], b"400"),
        ([*request[:2], b"other", *request[3:]], b"400"),
        (request[:3], b"500"),
    ):
        reply, reason = zap_answer(parts, keyring)
        assert reply[2] == status
        assert reason


def test_a_peer_that_never_reads_is_reset_and_costs_bounded_memory(bus: Bus) -> None:
    limits = Limits(queue_control_max=20, held_frames_hwm=2, batch_envelopes=4, report_credit=1_000_000)
    server = bus.endpoint("conductor", "conductor-1", limits=limits)
    detail = "x" * 2000

    def acknowledge(link: Link, reports: list[Report]) -> None:
        for report in reports:
            link.ack([Ack(report.key, report.seq, "applied", detail)])

    server.on_reports(acknowledge)
    address = server.bind("tcp://127.0.0.1:0")
    peer = RawPeer(bus, address, server.identity.public_key)
    try:
        peer.socket.setsockopt(zmq.RCVHWM, 1)
        peer.hello()
        sent = 0
        while not server.counters["refused_unread"] and sent < 200_000:
            batch = [Report("k", seq, b"") for seq in range(sent, sent + 500)]
            try:
                peer.socket.send(encode_frame([ReportBatch(1, sent, batch)]), zmq.NOBLOCK)
                sent += 500
            except zmq.Again:
                gevent.sleep(0.001)
            gevent.sleep(0)
        wait_until(lambda: server.counters["refused_unread"] >= 1)
        assert not server.links()
    finally:
        peer.close()


def test_a_peer_that_does_not_read_costs_a_try_now_and_then_and_no_spinning(
    server: Endpoint, neighbour: Link, peer: RawPeer
) -> None:
    peer.hello()
    (link,) = server.links(service_id="evil-1")
    for key in range(4000):
        link.event("news", str(key), 1, b"x" * 50_000)
        if link.sender.held_since and time.monotonic() - link.sender.held_since > 0.3:
            break
        gevent.sleep(0.001 if link.sender.held_since else 0)
    assert link.sender.held_since
    tries = 0
    carrier = link.carrier
    assert carrier is not None

    class Counting:
        """The link's carrier, its sends counted."""

        def __getattr__(self, name: str) -> object:
            return getattr(carrier, name)

        def send(self, frame: bytes) -> str:
            nonlocal tries
            tries += 1
            return carrier.send(frame)

    link.carrier = Counting()  # type: ignore[assignment] - the rest is the carrier's own
    started = time.monotonic()
    while time.monotonic() - started < 0.3:
        check_neighbour(neighbour)
        gevent.sleep(0.001)
    passed = time.monotonic() - started
    link.carrier = carrier
    assert link.sender.held_since
    assert 0 < tries <= passed / BLOCKED_RETRY_INTERVAL_S + 1
