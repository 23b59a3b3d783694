"""Nobody on the bus waits for another: not for a stopped peer, a full pool, a flood. Who has to wait is told."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import gevent
import pytest

from tests.cluster.bus_dialogs import (
    ALERT,
    HOLD,
    HOLD_READ,
    NOTE,
    READ,
    RELEASE,
    SAY,
    SKIM,
    STREAM_ROLES,
    Answer,
    Ask,
    Method,
    Outbox,
    assert_accounted,
    reports_of,
)
from tests.cluster.bus_scene import Scene, delays, p99
from tests.unit.bus.conftest import wait_until
from zcompute.bus import BusError, Busy, Limits, Link, Report

NEIGHBOUR_FACTOR = 5
NEIGHBOUR_SLACK_S = 0.02
"""A neighbour's p99 stays below NEIGHBOUR_FACTOR times its own in quiet, plus what a shared machine may add."""
WINDOW_S = 0.7


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


def test_a_stopped_peer_and_a_full_pool_delay_no_neighbour(scene: Scene) -> None:
    """The server here writes to a stopped peer until it is told Busy, and every worker of a pool is blocked."""
    limits = Limits(reads_workers=4, pool_queue_max=50, queue_envelopes_max=2000)
    server, address, journal = scene.service(limits)
    stopped = scene.peer("agent", dials=address)
    scene.peer("agent2", dials=address, does="crowd")
    wait_until(lambda: len(server.links()) == 2)
    link = server.links(service_id="agent")[0]
    neighbour = scene.endpoint("neighbour").dial(address, server.identity.public_key)
    assert neighbour.wait_up(5000)

    def ask() -> None:
        assert neighbour.call(SAY, Ask("n" * 500), timeout_ms=2000)

    quiet = delays(ask, WINDOW_S)
    wait_until(lambda: len(journal.lines("begun")) == 4)  # a pool is full now
    stopped.stop()
    told = 0
    while link.up and not (told and server.blocked):
        try:
            link.cast(NOTE, Ask("x" * 20_000))
        except Busy:
            told += 1
            gevent.sleep(0.001)
    assert told
    crowded = delays(ask, WINDOW_S)
    assert server.counters["refused_Busy"] > 0  # the pool's
    assert p99(crowded) < NEIGHBOUR_FACTOR * p99(quiet) + NEIGHBOUR_SLACK_S, (p99(crowded), p99(quiet))


def busy_of(say: Callable[[int], object], times_max: int = 5000) -> Busy:
    """Say it until it is refused; the refusal."""
    for number in range(times_max):
        try:
            say(number)
        except Busy as busy:
            return busy
    raise AssertionError(f"said {times_max} times and never told Busy")


def outcome_of(link: Link, method: Method) -> BusError | Answer:
    try:
        return link.call(method, Ask("x"), timeout_ms=5000)
    except BusError as error:
        return error


def test_each_bounded_queue_tells_when_to_come_again(scene: Scene) -> None:
    small = {"calls_workers": 2, "pool_queue_max": 3, "serving_calls_max": 8, "reads_workers": 1}
    server = scene.peer("server", limits=small)
    endpoint = scene.endpoint(limits=Limits(open_calls_max=12, queue_envelopes_max=20, queue_bytes_max=100_000))
    link = scene.dial(endpoint, server)
    busy: dict[str, Busy] = {}

    # The peer's pool (2 run, 3 wait), and then the calls of one link that it serves at a time.
    calls = [gevent.spawn(outcome_of, link, HOLD) for _ in range(2)]
    wait_until(lambda: len(server.journal.lines("begun")) == 2)
    calls += [gevent.spawn(outcome_of, link, HOLD) for _ in range(4)]
    wait_until(lambda: any(call.value is not None for call in calls))
    busy["pool"] = next(call.value for call in calls if call.value is not None)
    assert "pool calls" in str(busy["pool"])
    reads = [gevent.spawn(outcome_of, link, HOLD_READ) for _ in range(4)]
    wait_until(lambda: any(call.value is not None for call in reads))
    busy["served calls"] = next(call.value for call in reads if call.value is not None)
    assert "being served" in str(busy["served calls"])

    # Our own: calls that are open, envelopes and bytes that wait, and what reads may use of them.
    more = [gevent.spawn(outcome_of, link, SAY) for _ in range(10)]
    gevent.sleep(0)
    busy["open calls"] = next(call.value for call in more if isinstance(call.value, Busy) and "open" in str(call.value))
    busy["queue"] = busy_of(lambda number: link.cast(NOTE, Ask("", number)))
    busy["reads' part"] = busy_of(lambda number: link.cast(SKIM, Ask("", number)), 1)
    wait_until(lambda: not link.core.outgoing.queued)
    busy["bytes"] = busy_of(lambda number: link.cast(NOTE, Ask("x" * 10_000, number)), 30)
    busy["streams published"] = busy_of(lambda number: endpoint.publish_stream("s", str(number), roles=STREAM_ROLES))
    busy["streams followed"] = busy_of(lambda number: link.follow("news", str(number)))

    for name, told in busy.items():
        assert isinstance(told, Busy), name
        assert told.details.get("retry_after_ms", 0) > 0, name
    wait_until(lambda: not link.core.outgoing.queued)
    link.cast(RELEASE, Ask(""))
    gevent.joinall([*calls, *reads, *more], timeout=5, raise_error=True)
    assert not link.core.calls
    assert link.call(SAY, Ask("room again"), timeout_ms=2000) == Answer("room again")


def test_reports_beyond_the_credit_are_not_taken_and_find_room_again(scene: Scene) -> None:
    server = scene.peer("server", limits={"report_credit": 50})
    endpoint = scene.endpoint()
    link = scene.dial(endpoint, server)
    reports = reports_of(1, 400)
    assert link.report(reports) == 50
    assert link.report([Report("k1", 0, b"")]) == 0
    outbox = Outbox(endpoint, reports, lambda ack: None)
    outbox.offered(50)
    outbox.run(link)
    assert_accounted(server.journal, reports)


def test_control_and_reports_get_through_a_flood_of_reads(scene: Scene) -> None:
    server = scene.peer("server")
    endpoint = scene.endpoint()
    link = scene.dial(endpoint, server)
    reports = reports_of(3, 200)
    outbox = Outbox(endpoint, reports, lambda ack: None)
    read_delays: list[float] = []
    told = 0
    stay = True

    def read() -> None:
        before = time.monotonic()
        try:
            link.call(READ, Ask("?"), timeout_ms=10_000)
            read_delays.append(time.monotonic() - before)
        except BusError:
            return

    def flood() -> None:
        """Fill the queue up to what reads may use of it, as soon as there is room; now and then with a read that is
        timed."""
        nonlocal told
        while stay:
            try:
                link.cast(SKIM, Ask("x" * 1000))
            except Busy:
                told += 1
                gevent.spawn(read)
                gevent.sleep(0.001)

    flooder = gevent.spawn(flood)
    wait_until(lambda: told > 10 and read_delays)
    alerts: list[float] = []
    reporter = gevent.spawn(outbox.run, link)
    started = time.monotonic()
    while len(alerts) < 8 or len(read_delays) < 4 or not reporter.dead:
        assert time.monotonic() - started < 10, (len(alerts), len(read_delays), len(outbox.open))
        before = time.monotonic()
        assert link.call(ALERT, Ask("!"), timeout_ms=2000) == Answer("!")
        alerts.append(time.monotonic() - before)
    stay = False
    flooder.get(timeout=2)
    assert_accounted(server.journal, reports)
    assert median(alerts) < median(read_delays), (alerts, read_delays)
