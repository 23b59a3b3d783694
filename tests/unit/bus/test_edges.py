"""No edge of ZMQ_FD is missed: all goes on where nothing ever reads EVENTS again for good measure."""

import gevent
import pytest

from tests.unit.bus.conftest import ECHO, NOTE, SLOW, Answer, Ask, Bus, connect, serve_echo
from zcompute.bus import Busy, CallContext, Endpoint, Limits, Link

NEVER_MS = 600_000
NO_RESCUE = Limits(tick_ms=NEVER_MS, events_reread_ms=NEVER_MS)
ALL_WITHIN_S = 20.0


@pytest.fixture
def server(bus: Bus) -> Endpoint:
    return bus.endpoint("conductor", "conductor-1", limits=NO_RESCUE)


@pytest.fixture
def client(bus: Bus) -> Endpoint:
    return bus.endpoint("compute", "compute-1", limits=NO_RESCUE)


def ask_in_turn(link: Link, calls: int, pause_every: int = 0) -> None:
    for number in range(calls):
        if pause_every and number % pause_every == 0:
            gevent.sleep(0.001)
        assert link.call(ECHO, Ask("x" * (number % 700)), timeout_ms=NEVER_MS).text == "x" * (number % 700)


@pytest.mark.parametrize("callers", [1, 2, 7, 70])
def test_calls_go_on_without_a_rescue(server: Endpoint, client: Endpoint, callers: int) -> None:
    serve_echo(server)
    link = connect(server, client)
    with gevent.Timeout(ALL_WITHIN_S):
        gevent.joinall([gevent.spawn(ask_in_turn, link, 2_000 // callers, n) for n in range(callers)], raise_error=True)


def test_handlers_that_wait_and_call_back_go_on_without_a_rescue(server: Endpoint, client: Endpoint) -> None:
    def slow(ask: Ask, context: CallContext) -> Answer:
        gevent.sleep(0.0005 * (ask.number % 3))
        back = context.link.call(ECHO, Ask(ask.text), timeout_ms=NEVER_MS)
        return Answer(back.text)

    server.serve(SLOW, slow)
    serve_echo(client)
    link = connect(server, client)
    with gevent.Timeout(ALL_WITHIN_S):
        for number in range(300):
            assert link.call(SLOW, Ask(str(number), number), timeout_ms=NEVER_MS).text == str(number)


def test_casts_and_a_queue_that_fills_go_on_without_a_rescue(server: Endpoint, client: Endpoint) -> None:
    seen: list[str] = []
    server.serve(NOTE, lambda ask, context: seen.append(ask.text))
    link = connect(server, client)
    sent = 0
    with gevent.Timeout(ALL_WITHIN_S):
        for _ in range(20_000):
            try:
                link.cast(NOTE, Ask("y" * 1_000))
                sent += 1
            except Busy:
                gevent.sleep(0)
        while len(seen) < sent:
            gevent.sleep(0.001)
    assert len(seen) == sent


def test_what_a_paced_listener_was_sent_is_read_though_its_pace_ends(bus: Bus) -> None:
    """Ticks begin and end the pace; nothing else rescues: a receive that finds nothing must not lose the next edge."""
    limits = Limits(paced_routes_per_tick=2, paced_read_ms=2, tick_ms=10, events_reread_ms=NEVER_MS)
    server = bus.endpoint("conductor", "conductor-1", limits=limits)
    serve_echo(server)
    first = connect(server, bus.endpoint("compute", "compute-1", limits=NO_RESCUE))
    others = [bus.endpoint("compute", f"compute-{number}", limits=NO_RESCUE) for number in (2, 3, 4)]
    links = [first, *(other.dial(first.address, server.identity.public_key) for other in others)]
    assert all(link.wait_up(5000) for link in links)
    with gevent.Timeout(ALL_WITHIN_S):
        for _ in range(20):
            gevent.joinall([gevent.spawn(ask_in_turn, link, 20) for link in links], raise_error=True)
            gevent.sleep(0.03)  # nobody is heard within a tick: the pace ends
            ask_in_turn(links[0], 1)
