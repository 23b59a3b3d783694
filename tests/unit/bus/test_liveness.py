"""Who is given up as silent, on a simulated clock; and the same over real connections."""

import logging
import socket
import time

import gevent
import pytest
import zmq

from tests.unit.bus.conftest import ECHO, Answer, Ask, Bus, connect, serve_echo, wait_until
from zcompute.bus import Endpoint, Limits, connections
from zcompute.bus.envelope import Hello, HelloRequired, Welcome, decode_frame, encode_frame
from zcompute.bus.liveness import Pulse, Sweep, Verdict
from zcompute.bus.pace import ReadPace

LIMITS = Limits()
TICK_S = LIMITS.tick_ms / 1000
SILENCE_S = LIMITS.silence_ms_max / 1000
ASK_S = LIMITS.heartbeat_interval_ms / 1000


class Peers:
    """Connections by name with the time of their last byte, swept at each tick of a simulated clock."""

    def __init__(self, *names: str) -> None:
        self.now = 1_000.0
        self.heard_at: dict[str, float] = {}
        self.looks = 0
        self.sweep: Sweep[str] = Sweep(LIMITS, self._silent_s)
        for name in names:
            self.heard_at[name] = self.now
            self.sweep.watch(name, self.now)

    def _silent_s(self, name: str) -> float | None:
        self.looks += 1
        heard_at = self.heard_at.get(name)
        return None if heard_at is None else self.now - heard_at

    def run(self, seconds: float, speaking: tuple[str, ...] = ()) -> dict[str, float]:
        """Who was found silent, and when; those who speak are heard every second."""
        found: dict[str, float] = {}
        end = self.now + seconds
        while self.now < end:
            self.now += TICK_S
            for name in speaking:
                if self.now - self.heard_at[name] >= 1.0:
                    self.heard_at[name] = self.now
            found |= dict.fromkeys(self.sweep.sweep(self.now), self.now)
        return found


def test_a_silent_peer_is_given_up_within_two_seconds_and_others_are_not() -> None:
    peers = Peers("quiet", "lively")
    began = peers.now
    found = peers.run(10, speaking=("lively",))
    assert list(found) == ["quiet"]
    assert SILENCE_S <= found["quiet"] - began < 2.0


def test_a_sweep_looks_at_a_connection_only_when_it_could_be_silent() -> None:
    peers = Peers(*(f"p{number}" for number in range(100)))
    assert not peers.run(20, speaking=tuple(peers.heard_at))
    assert peers.looks <= 100 * 20 / (SILENCE_S - 1.0)


def test_a_late_sweep_gives_nobody_up() -> None:
    """The process was stopped, or its hub held up, and so perhaps was everything else here."""
    peers = Peers("a", "b")
    peers.run(1, speaking=("a", "b"))
    peers.now += 30
    assert peers.sweep.sweep(peers.now) == []
    assert not peers.run(5, speaking=("a", "b"))


def test_who_stays_silent_after_a_late_sweep_is_given_up_an_interval_later() -> None:
    peers = Peers("a", "b")
    peers.run(1)
    peers.now += 30
    late = peers.now
    found = peers.run(3, speaking=("a",))
    assert list(found) == ["b"]
    assert ASK_S <= found["b"] - late < ASK_S + 0.1


def test_a_connection_that_has_ended_or_is_left_is_not_given_up() -> None:
    peers = Peers("ended", "left")
    del peers.heard_at["ended"]
    peers.sweep.leave("left")
    assert not peers.run(10)
    assert len(peers.sweep) == 1


class Ward:
    """A dialler's pulse on a simulated clock."""

    def __init__(self, answers: bool, opens: bool = True) -> None:
        self.now = self.heard_at = self.said_at = 1_000.0
        self.answers = answers
        self.opens = opens
        self.pulse = Pulse(LIMITS)
        self.pulse.begin()
        self.done: list[tuple[Verdict, float]] = []

    def run(self, seconds: float, hears_every_s: float = 1e9) -> "Ward":
        began, end = self.now, self.now + seconds
        while self.now < end:
            self.now += TICK_S
            if self.now - self.heard_at >= hears_every_s:
                self.heard_at = self.now
            if not self.pulse.due(self.now):
                continue
            verdict = self.pulse.look(self.now, self.said_at, self.now - self.heard_at)
            if verdict is Verdict.ASK:
                self.said_at = self.now
                if self.answers:
                    self.heard_at = self.now
            elif verdict is Verdict.KNOCK and self.opens:
                self.pulse.vouch(self.now)
            if verdict is not Verdict.NOTHING:
                self.done.append((verdict, self.now - began))
            if verdict is Verdict.SILENT:
                break
        return self

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for verdict, _ in self.done]


def test_a_quiet_link_is_kept_by_questions_and_answers() -> None:
    ward = Ward(answers=True).run(60)
    assert set(ward.verdicts) == {Verdict.ASK}
    assert len(ward.verdicts) <= 60 / ASK_S


def test_a_dialler_that_only_hears_says_something_before_it_counts_as_silent() -> None:
    ward = Ward(answers=True).run(10, hears_every_s=0.1)
    assert set(ward.verdicts) == {Verdict.ASK}
    asked = [at for _, at in ward.done]
    assert max(later - earlier for earlier, later in zip([0.0, *asked], asked, strict=False)) < SILENCE_S - 0.5


def test_a_link_with_enough_to_say_is_asked_nothing() -> None:
    ward = Ward(answers=True)
    for _ in range(100):
        ward.said_at = ward.heard_at = ward.now
        ward.run(1.0)
    assert ward.verdicts == []


def test_a_listener_that_neither_answers_nor_opens_is_given_up_within_two_seconds() -> None:
    ward = Ward(answers=False, opens=False).run(10)
    assert ward.verdicts == [Verdict.ASK, Verdict.KNOCK, Verdict.SILENT]
    assert ward.done[-1][1] < 2.0


def test_a_listener_whose_hub_is_held_up_is_kept() -> None:
    ward = Ward(answers=False).run(30)
    assert Verdict.SILENT not in ward.verdicts


def test_a_dialler_that_was_held_up_asks_before_it_gives_up() -> None:
    ward = Ward(answers=True)
    ward.now += 30
    ward.run(5)
    assert set(ward.verdicts) == {Verdict.ASK}


def test_reading_is_paced_while_many_peers_are_heard_and_never_for_a_few_busy_ones() -> None:
    pace = ReadPace(Limits(paced_routes_per_tick=4))

    def hear(*route_ids: bytes) -> bool:
        for route_id in route_ids * 3:
            pace.hear(route_id)
        return pace.tick()

    assert not hear(b"a", b"b", b"c")
    assert hear(b"a", b"b", b"c", b"d")
    assert hear(b"a", b"b")
    assert not hear(b"a")
    assert not hear(b"a", b"b")


# Real connections


def pair_of_sockets() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        dialled = socket.create_connection(server.getsockname())
        return dialled, server.accept()[0]


def test_the_kernel_tells_how_long_a_connection_is_silent() -> None:
    near, far = pair_of_sockets()
    with near, far:
        time.sleep(0.1)
        silent_s = connections.silent_s(near.fileno())
        assert silent_s is not None
        assert 0.09 <= silent_s < 5
        assert connections.unread_bytes(near.fileno()) == 0
        far.send(b"word")
        wait_until(lambda: connections.unread_bytes(near.fileno()) == 4)
        silent_s = connections.silent_s(near.fileno())
        assert silent_s is not None
        assert silent_s < 0.09
    assert connections.silent_s(near.fileno()) is None


def test_a_connection_is_cut_and_never_that_of_another_peer() -> None:
    near, far = pair_of_sockets()
    with near, far:
        assert not connections.cut(near.fileno(), "another's address")
        assert not connections.cut(near.fileno(), "")
        far.send(b"word")
        assert near.recv(4) == b"word"
        assert connections.cut(near.fileno(), connections.far_end(near.fileno()))
        assert far.recv(1) == b""
    assert not connections.cut(-1, "any")
    assert connections.far_end(-1) == ""


def test_a_door_is_opened_by_a_listener_and_not_by_a_kernel(bus: Bus) -> None:
    address = bus.endpoint("conductor", "conductor-1").bind("tcp://127.0.0.1:0")
    assert connections.answers(address, 5.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert not connections.answers(f"tcp://127.0.0.1:{server.getsockname()[1]}", 0.1)
    assert not connections.answers("tcp://127.0.0.1:1", 0.1)


QUICK = Limits(heartbeat_interval_ms=60, late_answer_ms=20, silence_ms_max=150)


def test_a_peer_that_only_receives_stays_up(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=QUICK)
    client = bus.endpoint("compute", "compute-1", limits=QUICK, topics=("map",))
    link = connect(server, client)
    until = time.monotonic() + 1.0
    version = 0
    while time.monotonic() < until:
        version += 1
        server.publish("map", "", version, b"")
        gevent.sleep(0.01)
    assert link.up
    assert link.core.link_number == 1


def test_an_idle_link_stays_up(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=QUICK)
    client = bus.endpoint("compute", "compute-1", limits=QUICK)
    link = connect(server, client)
    gevent.sleep(1.0)
    assert link.up
    assert link.core.link_number == 1
    assert server.counters["frames_received"] <= 2 + 1000 / 60


class Foreign:
    """A peer that does nothing by itself: a DEALER with a hello."""

    def __init__(self, bus: Bus, server: Endpoint, pings_ms: int = 0) -> None:
        address = server.bind("tcp://127.0.0.1:0")
        public, secret = bus.keys.make("foreign", "compute")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._dealer = self._context.socket(zmq.DEALER)
        self._dealer.linger, self._dealer.heartbeat_ivl, self._dealer.reconnect_ivl = 0, pings_ms, -1
        self._dealer.curve_publickey, self._dealer.curve_secretkey = public.encode(), secret.encode()
        self._dealer.curve_serverkey = server.identity.public_key.encode()
        self._monitor = self._dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._dealer.connect(address)
        self._number = 0

    def say_hello(self) -> None:
        self._number += 1
        hello = Hello(1, 1, self._number, "foreign", "e1", "compute", "c1", "1", [], {}, [], b"\x80", 10)
        self._dealer.send(encode_frame([hello]))

    def hears(self, kind: type) -> bool:
        """Whether such an envelope comes."""
        while self._dealer.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            if any(isinstance(envelope, kind) for envelope in decode_frame(self._dealer.recv(), LIMITS)):
                return True
        return False

    @property
    def cut(self) -> bool:
        return bool(self._monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN)

    def close(self) -> None:
        self._dealer.disable_monitor()
        self._monitor.close(0)
        self._dealer.close(0)
        self._context.term()


@pytest.mark.parametrize(("pings_ms", "stays"), [(0, False), (50, True)])
def test_a_foreign_peer_that_gives_no_sign_of_life_is_cut(bus: Bus, pings_ms: int, stays: bool) -> None:
    """ZMTP pings are sign enough: any byte is."""
    limits = Limits(silence_ms_max=300, forsaken_ms_max=600)
    server = bus.endpoint("conductor", "conductor-1", limits=limits)
    foreign = Foreign(bus, server, pings_ms)
    foreign.say_hello()
    wait_until(lambda: server.links())
    (link,) = server.links()
    if stays:
        gevent.sleep(1.0)
        assert link.up
    else:
        wait_until(lambda: not link.up)
        wait_until(lambda: foreign.cut)
    assert server.counters["peers_silent"] == (0 if stays else 1)
    foreign.close()


def test_a_peer_that_was_late_says_hello_over_the_connection_that_it_has(bus: Bus) -> None:
    limits = Limits(silence_ms_max=300, forsaken_ms_max=700)
    server = bus.endpoint("conductor", "conductor-1", limits=limits)
    foreign = Foreign(bus, server, 0)
    foreign.say_hello()
    wait_until(lambda: server.links())
    wait_until(lambda: not server.links())
    wait_until(lambda: foreign.hears(HelloRequired))
    until = time.monotonic() + 1.0
    while time.monotonic() < until:  # beyond the time at which it would have been cut
        foreign.say_hello()
        wait_until(lambda: foreign.hears(Welcome))
        gevent.sleep(0.1)
    assert not foreign.cut
    assert server.counters["peers_silent"] == 1
    foreign.close()


def test_a_burst_from_many_peers_is_answered_while_reading_is_paced(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    limits = Limits(paced_routes_per_tick=2, paced_read_ms=4)
    server = bus.endpoint("conductor", "conductor-1", limits=limits)
    serve_echo(server)
    address = server.bind("tcp://127.0.0.1:0")
    links = []
    for number in range(5):
        links.append(bus.endpoint("compute", f"compute-{number}").dial(address, server.identity.public_key))
    for link in links:
        assert link.wait_up(5000)
    (listener,) = server._listeners
    paced = 0
    for _ in range(100):
        calls = [gevent.spawn(link.call, ECHO, Ask("x"), timeout_ms=5000) for link in links]
        gevent.joinall(calls, raise_error=True)
        assert all(call.value == Answer("x") for call in calls)
        paced += listener._pace.paced
    assert paced
    wait_until(lambda: not listener._pace.paced)
    assert links[0].call(ECHO, Ask("y"), timeout_ms=5000) == Answer("y")
    assert not caplog.records
