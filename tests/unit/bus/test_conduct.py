"""A key that sends what cannot be taken is barred; honest bursts are not."""

import gevent
import pytest

from tests.unit.bus.conftest import ECHO, Answer, Ask, Bus, connect, serve_echo, wait_until
from zcompute.bus import Ack, Limits, Link, Report
from zcompute.bus.conduct import STRANGER_WEIGHT, Conduct
from zcompute.bus.dialler import Dialler

LIMITS = Limits(offences_burst=20, offences_per_s=5, bar_ms=600)


def test_an_allowance_is_for_a_burst_and_then_for_so_many_a_second() -> None:
    conduct = Conduct(LIMITS)
    assert not any(conduct.offend("key", 100.0) for _ in range(20))
    assert not conduct.offend("another", 100.0)
    assert not any(conduct.offend("key", 101.0 + second / 5) for second in range(100))
    assert not conduct.barred("key", 121.0)


def test_a_key_is_barred_for_a_while() -> None:
    conduct = Conduct(LIMITS)
    assert [conduct.offend("key", 100.0) for _ in range(21)] == [False] * 20 + [True]
    assert conduct.barred("key", 100.5)
    assert not conduct.barred("another", 100.5)
    assert not conduct.barred("key", 100.6)


def test_frames_on_an_unknown_route_count_little() -> None:
    conduct = Conduct(Limits())
    assert not any(conduct.offend("key", 100.0, STRANGER_WEIGHT) for _ in range(3_900))
    assert any(conduct.offend("key", 100.0, STRANGER_WEIGHT) for _ in range(200))


def test_without_keys_nobody_is_barred() -> None:
    conduct = Conduct(LIMITS)
    assert not any(conduct.offend("", 100.0) for _ in range(1_000))


def dialler_of(link: Link) -> Dialler:
    assert isinstance(link.carrier, Dialler)
    return link.carrier


def test_a_flood_of_bad_frames_ends_the_connection_and_bars_the_key_for_a_while(
    bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=LIMITS)
    serve_echo(server)
    link = connect(server, bus.endpoint("compute", "compute-1"))
    neighbour = bus.endpoint("api", "api-1").dial(link.address, server.identity.public_key)
    assert neighbour.wait_up(5000)
    for _ in range(50):
        dialler_of(link).send(b"\xc1 no frame")
    wait_until(lambda: not link.up)
    assert server.counters["peers_barred"] == 1
    assert "peer barred key=compute-1 peer=compute/compute-1@c1 ms=600" in caplog.text
    wait_until(lambda: server.counters["refused_barred"])
    assert not server.links(role="compute")
    assert neighbour.call(ECHO, Ask("n"), timeout_ms=1000) == Answer("n")
    assert link.wait_up(5000), "the bar is over"
    assert link.call(ECHO, Ask("again"), timeout_ms=1000) == Answer("again")
    assert neighbour.core.link_number == 1


def test_a_stranger_that_never_says_hello_is_cut_too(bus: Bus) -> None:
    limits = Limits(offences_burst=1, offences_per_s=1, bar_ms=600)
    server = bus.endpoint("conductor", "conductor-1", limits=limits)
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    server._listeners[0]._routes.clear()
    server._listeners[0]._by_descriptor.clear()
    for _ in range(40):
        link.core.probe()
        frame = link.core.take_frame(0.0)
        assert frame is not None
        dialler_of(link).send(frame)
    wait_until(lambda: server.counters["peers_barred"])
    wait_until(lambda: link.core.link_number > 1 and link.up)


def test_five_thousand_reports_sent_again_are_no_offence(bus: Bus) -> None:
    limits = Limits(report_credit=5_000, offences_burst=1, offences_per_s=1)
    server = bus.endpoint("conductor", "conductor-1", limits=limits)
    client = bus.endpoint("compute", "compute-1", limits=limits)
    seen: list[int] = []
    durable = False

    def take(link: Link, reports: list[Report]) -> None:
        seen.extend(report.seq for report in reports)
        if durable:
            link.ack([Ack(report.key, report.seq, "applied") for report in reports])

    server.on_reports(take)
    link = connect(server, client)
    assert link.report([Report("i", seq, b"x" * 300) for seq in range(5_000)]) == 5_000
    wait_until(lambda: len(seen) == 5_000)
    durable = True
    link.reset("as after a loss")
    wait_until(lambda: len(seen) == 10_000 and not link.core.reports_out.unacked)
    assert link.core.link_number == 2
    assert server.counters["peers_barred"] == 0


def test_a_storm_of_valid_calls_is_no_offence(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(offences_burst=1, offences_per_s=1))
    serve_echo(server)
    link = connect(server, bus.endpoint("compute", "compute-1"))
    calls = [gevent.spawn(link.call, ECHO, Ask("x"), timeout_ms=10_000) for _ in range(3_000)]
    gevent.joinall(calls, raise_error=True)
    assert link.core.link_number == 1
    assert server.counters["peers_barred"] == 0
