"""Peers that are processes of their own, and are killed or stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import monkey

from tests.unit.bus.conftest import Answer, Ask, Bus, Method, serve_echo, wait_until
from zcompute.bus import BusError, Endpoint, Link, LinkReset, Report

ECHO = Method("echo", "say", idempotent=True)
HOLD = Method("echo", "hold")
SCRIPT = Path(__file__).with_name("peer_process.py")


class Processes:
    """Starts peers and ends them by their own pid."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.running: list[subprocess.Popen[bytes]] = []
        bus.keys.make("peer-listen", "conductor")
        bus.keys.make("peer-dial", "compute")

    def start(self, mode: str, address: str, other: Endpoint) -> subprocess.Popen[bytes]:
        public, secret = self.bus.keys.secrets[f"peer-{mode}"]
        other_side = (other.identity.public_key, other.identity.role)
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), mode, address, public, secret, *other_side],
            stdout=subprocess.PIPE,
        )
        self.running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                process.kill()
            process.wait(5)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def processes(bus: Bus) -> Iterator[Processes]:
    made = Processes(bus)
    yield made
    made.close()


def free_address(bus: Bus) -> str:
    """An address that was free a moment ago."""
    probe = Endpoint(bus.endpoint("api", "probe", plain=True).identity)
    address = probe.bind("tcp://127.0.0.1:0")
    probe.close(linger_ms=0)
    return address


def dial_process(bus: Bus, processes: Processes) -> tuple[Endpoint, Link, subprocess.Popen[bytes], str]:
    address = free_address(bus)
    client = bus.endpoint("compute", "compute-1")
    process = processes.start("listen", address, client)
    link = client.dial(address, bus.keys.secrets["peer-listen"][0])
    assert link.wait_up(5000)
    return client, link, process, address


def seconds_until_down(link: Link) -> float:
    started = time.monotonic()
    wait_until(lambda: not link.up, 5)
    return time.monotonic() - started


def test_a_killed_listener_is_noticed_at_once_and_its_successor_is_found(bus: Bus, processes: Processes) -> None:
    client, link, process, address = dial_process(bus, processes)
    assert link.call(ECHO, Ask("a"), timeout_ms=2000) == Answer("a")
    process.kill()
    assert seconds_until_down(link) < 0.5
    processes.start("listen", address, client)
    assert link.wait_up(5000)
    assert link.call(ECHO, Ask("b"), timeout_ms=2000) == Answer("b")


def test_calls_open_at_a_killed_listener_fail_soon(bus: Bus, processes: Processes) -> None:
    _, link, process, _ = dial_process(bus, processes)
    os.kill(process.pid, signal.SIGSTOP)
    caller = gevent.spawn(link.call, ECHO, Ask("a"), timeout_ms=30_000)
    wait_until(lambda: link.core.calls)
    process.kill()
    with pytest.raises(LinkReset):
        caller.get(timeout=2)


def test_a_stopped_listener_is_noticed_within_two_seconds(bus: Bus, processes: Processes) -> None:
    _, link, process, _ = dial_process(bus, processes)
    os.kill(process.pid, signal.SIGSTOP)
    assert seconds_until_down(link) < 2.0
    os.kill(process.pid, signal.SIGCONT)
    assert link.wait_up(5000)
    assert link.call(ECHO, Ask("c"), timeout_ms=2000) == Answer("c")


def test_a_stopped_dialler_is_noticed_within_two_seconds_and_disturbs_nobody(bus: Bus, processes: Processes) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    address = server.bind("tcp://127.0.0.1:0")
    process = processes.start("dial", address, server)
    wait_until(lambda: len(server.links()) == 1)
    (stopped,) = server.links()
    neighbour = bus.endpoint("api", "api-1").dial(address, server.identity.public_key)
    assert neighbour.wait_up(5000)
    os.kill(process.pid, signal.SIGSTOP)
    started = time.monotonic()
    slowest = 0.0
    while stopped.up:
        before = time.monotonic()
        assert before - started < 2.0
        assert neighbour.call(ECHO, Ask("n"), timeout_ms=1000) == Answer("n")
        slowest = max(slowest, time.monotonic() - before)
        gevent.sleep(0.01)
    assert slowest < 0.5
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: stopped.up)
    assert server.links(role="compute") == [stopped]


def test_a_listener_whose_hub_is_held_up_keeps_its_links(bus: Bus, processes: Processes) -> None:
    client, link, _, _ = dial_process(bus, processes)
    assert link.call(HOLD, Ask("late", 4_000), timeout_ms=10_000) == Answer("late")
    assert link.core.link_number == 1
    assert client.counters["peers_silent"] == 0


def test_a_listener_that_was_held_up_itself_gives_no_peer_up(bus: Bus, processes: Processes) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    address = server.bind("tcp://127.0.0.1:0")
    processes.start("dial", address, server)
    wait_until(lambda: len(server.links()) == 1)
    (link,) = server.links()
    monkey.get_original("time", "sleep")(3.0)
    gevent.sleep(1.0)
    assert link.up
    assert link.core.link_number == 1


def test_a_killed_dialler_is_noticed_at_once(bus: Bus, processes: Processes) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    address = server.bind("tcp://127.0.0.1:0")
    process = processes.start("dial", address, server)
    wait_until(lambda: len(server.links()) == 1)
    (link,) = server.links()
    process.kill()
    assert seconds_until_down(link) < 0.5


def test_reports_to_a_stopped_listener_arrive_when_it_goes_on(bus: Bus, processes: Processes) -> None:
    client, link, process, _ = dial_process(bus, processes)
    acked: set[int] = set()
    client.on_acks(lambda link, acks: acked.update(ack.seq for ack in acks))
    os.kill(process.pid, signal.SIGSTOP)
    assert link.report([Report("i1", seq, b"x" * 1000) for seq in range(500)]) == 500
    wait_until(lambda: not link.up)
    assert not acked
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: len(acked) == 500)
    assert not link.core.reports_out.unacked


def test_no_call_ever_hangs_while_the_listener_is_killed_again_and_again(bus: Bus, processes: Processes) -> None:
    client, link, process, address = dial_process(bus, processes)
    answered = failed = 0
    stop = False

    def call_on() -> None:
        nonlocal answered, failed
        while not stop:
            before = time.monotonic()
            try:
                link.call(ECHO, Ask("x"), timeout_ms=1000)
                answered += 1
            except BusError:
                failed += 1
                gevent.sleep(0.005)
            assert time.monotonic() - before < 1.5

    callers = [gevent.spawn(call_on) for _ in range(8)]
    for _ in range(3):
        wanted = answered + 50
        wait_until(lambda wanted=wanted: answered >= wanted, 10)
        process.kill()
        process.wait(5)
        process = processes.start("listen", address, client)
    wanted = answered + 50
    wait_until(lambda: answered >= wanted, 10)
    stop = True
    gevent.joinall(callers, timeout=3, raise_error=True)
    assert not link.core.calls
