"""Each promise of the bus between real processes that are killed (kill -9), stopped (SIGSTOP) and started again."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import gevent
import msgspec
import pytest

from tests.cluster.bus_dialogs import (
    FAIL,
    HOLD,
    HOLD_AGAIN,
    KEPT_OUT,
    NOTE,
    RELEASE,
    SAY,
    STREAM_ROLES,
    Answer,
    Ask,
    Journal,
    Method,
    Outbox,
    assert_accounted,
    reports_of,
)
from tests.cluster.bus_scene import Scene, seconds_until
from tests.unit.bus.conftest import wait_until
from zcompute.bus import (
    BusError,
    Busy,
    DeadlineExceeded,
    Endpoint,
    Forbidden,
    InvalidRequest,
    Limits,
    Link,
    LinkDown,
    LinkReset,
    NotOwner,
    RemoteError,
    StreamEvents,
    StreamSkip,
    Unavailable,
    UnknownMethod,
    UnsupportedVersion,
)

NOTICED_S = 2.0
"""A stopped peer is noticed within this."""
CANCELLED_S = 4.0
"""The grace of an open call, the silence after which its caller gives up, and a second for a machine that is shared."""
REPORTS = 1500
EVENTS = 600


class Wrong(msgspec.Struct):
    text: int


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


# Calls


def test_calls_open_at_a_killed_server_end_at_once_and_none_outlives_its_deadline(scene: Scene) -> None:
    server = scene.peer("server")
    link = scene.dial(scene.endpoint(), server)
    calls = [gevent.spawn(link.call, method, Ask("x"), timeout_ms=30_000) for method in (HOLD, HOLD_AGAIN)]
    wait_until(lambda: len(server.journal.lines("begun")) == 2)
    started = time.monotonic()
    server.kill()
    for open_call in calls:
        with pytest.raises(LinkReset):
            open_call.get(timeout=2)
    assert time.monotonic() - started < 1.5
    with pytest.raises(LinkDown):
        link.call(SAY, Ask("x"), timeout_ms=1000)
    server.start()
    assert link.wait_up(5000)
    assert link.call(SAY, Ask("again"), timeout_ms=2000) == Answer("again")


def test_a_call_to_a_stopped_server_ends_by_its_deadline_and_its_late_answer_is_dropped(scene: Scene) -> None:
    server = scene.peer("server")
    endpoint = scene.endpoint()
    link = scene.dial(endpoint, server)
    server.stop()
    before = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        link.call(SAY, Ask("late"), timeout_ms=300)
    assert 0.3 <= time.monotonic() - before < 0.7
    server.go_on()
    wait_until(lambda: endpoint.counters["replies_late"] == 1)
    assert link.call(SAY, Ask("in time"), timeout_ms=2000) == Answer("in time")


def test_a_stopped_server_is_noticed_and_an_idempotent_call_is_served_and_answered_once(scene: Scene) -> None:
    server = scene.peer("server")
    endpoint = scene.endpoint(limits=Limits(call_grace_ms=5000))
    link = scene.dial(endpoint, server)
    again = gevent.spawn(link.call, HOLD_AGAIN, Ask("again"), timeout_ms=20_000)
    once = gevent.spawn(link.call, HOLD, Ask("once"), timeout_ms=20_000)
    wait_until(lambda: len(server.journal.lines("begun")) == 2)
    server.stop()
    assert seconds_until(lambda: not link.up) < NOTICED_S
    with pytest.raises(LinkReset):
        once.get(timeout=1)
    server.go_on()
    assert link.wait_up(5000)
    assert endpoint.counters["calls_resent"] == 1
    link.cast(RELEASE, Ask(""))
    assert again.get(timeout=5) == Answer("again")
    assert server.journal.lines("begun") == [["again"], ["once"]]
    wait_until(lambda: endpoint.counters["replies_late"] == 1)  # that of the call that failed
    assert endpoint.counters["replies_late"] == 1


@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_a_handler_learns_that_its_caller_was_killed_or_stopped(scene: Scene, fault: str) -> None:
    endpoint, address, journal = scene.service()
    caller = scene.peer("agent", dials=address, does="call")
    wait_until(lambda: journal.lines("begun"))
    getattr(caller, fault)()
    assert seconds_until(lambda: journal.lines("cancelled")) < CANCELLED_S + (NOTICED_S if fault == "stop" else 0)
    wait_until(lambda: endpoint.counters["replies_dropped"] == 1)  # what the handler answered all the same
    assert endpoint.counters["calls_cancelled"] == 1


def test_a_new_life_of_a_killed_caller_cancels_what_the_old_one_asked(scene: Scene) -> None:
    _, address, journal = scene.service(Limits(call_grace_ms=60_000))
    caller = scene.peer("agent", dials=address, does="call")
    wait_until(lambda: journal.lines("begun"))
    caller.restart()
    wait_until(lambda: journal.lines("cancelled"))
    wait_until(lambda: len(journal.lines("begun")) == 2)
    assert len(journal.lines("cancelled")) == 1


def test_errors_cross_by_name_and_others_without_their_traceback(scene: Scene) -> None:
    link = scene.dial(scene.endpoint(), scene.peer("server"))

    def error_of(method: Method, text: str = "") -> BusError:
        with pytest.raises(BusError) as caught:
            link.call(method, Ask(text), timeout_ms=2000)
        return caught.value

    assert (type(error_of(FAIL, "Unavailable")), str(error_of(FAIL, "Unavailable"))) == (
        Unavailable,
        "the database is away",
    )
    owner = error_of(FAIL, "NotOwner")
    assert isinstance(owner, NotOwner)
    assert (owner.partition, owner.map_version) == (7, 3)
    failed = error_of(FAIL, "somebody")
    assert isinstance(failed, RemoteError)
    assert (failed.type_name, str(failed)) == ("ZeroDivisionError", "as asked by somebody")
    told = f"{failed!r} {failed.details}"
    assert not any(word in told for word in ("Traceback", "hidden_from_the_wire", ".py"))
    assert isinstance(error_of(Method("nowhere")), UnknownMethod)
    assert isinstance(error_of(Method("x", interface="nothing")), UnknownMethod)
    assert isinstance(error_of(KEPT_OUT), Forbidden)
    newer = error_of(Method("say", version=(1, 9)))
    assert isinstance(newer, UnsupportedVersion)
    assert "1.0-1.0" in str(newer)
    assert newer.details["wanted"] == [1, 9]
    with pytest.raises(InvalidRequest) as invalid:
        link.call(Method("say", request=Wrong), Wrong(7), timeout_ms=2000)
    assert invalid.value.field == "text"


# Casts


def test_a_cast_arrives_at_most_once_whatever_befalls_its_receiver(scene: Scene) -> None:
    server = scene.peer("server")
    endpoint = scene.endpoint()
    link = scene.dial(endpoint, server)
    queued: set[int] = set()
    told: set[int] = set()
    stay = True

    def cast_on() -> None:
        number = 0
        while stay:
            number += 1
            try:
                link.cast(NOTE, Ask("", number))
                queued.add(number)
            except LinkDown:
                told.add(number)
            gevent.sleep(0.001)

    caster = gevent.spawn(cast_on)
    for fault in (server.kill, server.stop):
        heard = len(server.journal.lines("note"))
        wait_until(lambda heard=heard: len(server.journal.lines("note")) > heard + 400)
        fault()
        missed = len(told)
        wait_until(lambda missed=missed: len(told) > missed + 20)
        if fault == server.kill:
            server.start()
        else:
            server.go_on()
        assert link.wait_up(5000)
    first = max(queued | told)
    wait_until(lambda: max(queued) > first + 100)
    stay = False
    caster.get(timeout=2)
    wait_until(lambda: [str(max(queued))] in server.journal.lines("note"))
    times = Counter(int(words[0]) for words in server.journal.lines("note"))
    assert max(times.values()) == 1
    assert set(times) <= queued
    assert set(range(first + 1, max(queued) + 1)) <= set(times)  # none is lost on a link that stays up
    assert endpoint.counters["casts"] == len(queued)


def test_who_casts_to_a_stopped_receiver_is_told_busy_and_then_that_the_link_is_down(scene: Scene) -> None:
    server = scene.peer("server")
    link = scene.dial(scene.endpoint(limits=Limits(queue_envelopes_max=500)), server)
    server.stop()
    queued = 0
    told: Busy | None = None
    while told is None:
        try:
            link.cast(NOTE, Ask("x" * 4000, queued))
        except Busy as busy:
            told = busy
        else:
            queued += 1
    assert told.retry_after_ms > 0
    wait_until(lambda: not link.up)
    with pytest.raises(LinkDown):
        link.cast(NOTE, Ask("", 0))
    server.go_on()
    assert link.wait_up(5000)
    link.cast(NOTE, Ask("", 1_000_000))
    wait_until(lambda: ["1000000"] in server.journal.lines("note"))
    times = Counter(words[0] for words in server.journal.lines("note"))
    assert max(times.values()) == 1
    assert len(times) <= queued + 1


# Reports


def test_reports_to_a_receiver_that_is_killed_again_and_again_all_arrive_in_order(scene: Scene) -> None:
    server = scene.peer("server")
    endpoint = scene.endpoint()
    reports = reports_of(3, REPORTS)
    outbox = Outbox(endpoint, reports, lambda ack: None)
    link = scene.dial(endpoint, server)
    reporter = gevent.spawn(outbox.run, link)
    for _ in range(2):
        heard = len(server.journal.lines("report"))
        wait_until(lambda heard=heard: len(server.journal.lines("report")) > heard + 300)
        server.restart()
    reporter.get(timeout=15)
    assert_accounted(server.journal, reports)
    assert not link.core.reports_out.unacked


def test_reports_of_a_sender_that_is_stopped_and_killed_all_arrive_in_order(scene: Scene) -> None:
    endpoint, address, journal = scene.service()
    sender = scene.peer("agent", dials=address, does="report", count=REPORTS)
    wait_until(lambda: len(journal.lines("report")) > 300)
    sender.stop()
    (link,) = endpoint.links()
    assert seconds_until(lambda: not link.up) < NOTICED_S
    heard = len(journal.lines("report"))
    assert heard < 3 * REPORTS
    sender.go_on()
    wait_until(lambda: len(journal.lines("report")) > heard + 300)
    sender.restart()
    wait_until(lambda: len(sender.journal.lines("acked")) == 3 * REPORTS, 15)
    assert_accounted(journal, reports_of(3, REPORTS))


def test_reports_that_a_stopped_receiver_did_not_take_arrive_when_it_goes_on(scene: Scene) -> None:
    server = scene.peer("server")
    endpoint = scene.endpoint()
    reports = reports_of(3, 200)
    outbox = Outbox(endpoint, reports, lambda ack: None)
    link = scene.dial(endpoint, server)
    server.stop()
    reporter = gevent.spawn(outbox.run, link)
    wait_until(lambda: not link.up)
    assert len(outbox.open) == len(reports)
    server.go_on()
    reporter.get(timeout=10)
    assert_accounted(server.journal, reports)


# State events


def test_who_was_stopped_ends_with_the_newest_version_of_each_key(scene: Scene) -> None:
    endpoint = scene.endpoint()
    versions = dict.fromkeys((f"k{n}" for n in range(50)), 0)
    endpoint.on_link_up(lambda link: [link.event("state", key, versions[key], b"") for key in versions] and None)
    address = endpoint.bind("tcp://127.0.0.1:0")
    agent = scene.peer("agent", dials=address)

    def publish() -> None:
        for key in versions:
            versions[key] += 1
            endpoint.publish("state", key, versions[key], b"x" * 200)
        gevent.sleep(0.002)

    def heard() -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for key, version in agent.journal.lines("state"):
            found[key].append(int(version))
        return found

    def has_the_newest() -> bool:
        return {key: found[-1] for key, found in heard().items()} == versions

    wait_until(has_the_newest)
    (link,) = endpoint.links()
    agent.stop()
    while link.up:
        publish()
    publish()  # while nobody is there
    agent.go_on()
    wait_until(has_the_newest)
    agent.kill()
    publish()
    agent.start()
    wait_until(has_the_newest)
    assert all(found == sorted(found) for found in heard().values())
    assert versions["k0"] > 20


# Streams


def follow_here(endpoint: Endpoint, journal: Journal) -> None:
    """Write down what the endpoint hears of the stream `news`."""

    def heard(link: Link, news: StreamEvents | StreamSkip) -> None:
        if isinstance(news, StreamSkip):
            journal.write(("gap", news.first, news.end))
        else:
            journal.write(*(("news", news.cursor + n, payload.decode()) for n, payload in enumerate(news.payloads)))

    endpoint.on_stream("news", heard)


def assert_whole(journal: Journal, end: int) -> None:
    """Every event once, in order, each at its cursor, and no gap."""
    assert [words[:2] for words in journal.lines("news")] == [[str(n), str(n)] for n in range(end)]
    assert journal.lines("gap") == []


def test_a_follower_that_is_killed_resumes_at_the_cursor_that_it_kept(scene: Scene) -> None:
    endpoint = scene.endpoint()
    stream = endpoint.publish_stream("news", roles=STREAM_ROLES)
    address = endpoint.bind("tcp://127.0.0.1:0")
    follower = scene.peer("agent", dials=address, does="follow")
    for end in (EVENTS, 2 * EVENTS, 3 * EVENTS):
        while stream.next < end:
            stream.append(str(stream.next).encode())
            if stream.next % 20 == 0:
                gevent.sleep(0.001)
        wait_until(lambda: follower.journal.lines("news"))
        if end < 3 * EVENTS:
            follower.restart()  # in the middle of what it is sent
    wait_until(lambda: len(follower.journal.lines("news")) >= 3 * EVENTS)
    assert_whole(follower.journal, 3 * EVENTS)


def test_a_publisher_that_is_killed_or_stopped_and_keeps_its_log_loses_nothing(scene: Scene, tmp_path: Path) -> None:
    count = 3 * EVENTS  # so that it is in the middle of them when it is stopped, on a busy machine too
    publisher = scene.peer("server", does="publish", count=count)
    endpoint = scene.endpoint()
    journal = Journal(tmp_path / "followed.journal")
    follow_here(endpoint, journal)
    link = scene.dial(endpoint, publisher)
    link.follow("news")
    wait_until(lambda: len(journal.lines("news")) > EVENTS // 4)
    publisher.restart()
    wait_until(lambda: len(journal.lines("news")) > EVENTS // 2)
    assert len(journal.lines("news")) < count
    publisher.stop()
    wait_until(lambda: not link.up)
    publisher.go_on()
    wait_until(lambda: len(journal.lines("news")) == count)
    assert_whole(journal, count)


def test_a_stopped_follower_is_told_its_gap_and_delays_no_other(scene: Scene) -> None:
    endpoint = scene.endpoint()
    stream = endpoint.publish_stream("news", roles=STREAM_ROLES, events_max=50)
    address = endpoint.bind("tcp://127.0.0.1:0")
    stopped = scene.peer("agent", dials=address, does="follow")
    other = scene.peer("agent2", dials=address, does="follow")
    wait_until(lambda: stream.followers == 2)
    appended: list[float] = []

    def append() -> None:
        appended.append(time.monotonic())
        stream.append(str(stream.next).encode())
        gevent.sleep(0.004)

    for _ in range(150):
        append()
    quiet = len(appended)
    wait_until(lambda: len(stopped.journal.lines("news")) == quiet)
    stopped.stop()
    while stream.followers == 2 or len(appended) < quiet + 600:
        append()
    wait_until(lambda: len(other.journal.lines("news")) == len(appended))
    late = [int(words[2]) / 1e6 - at for words, at in zip(other.journal.lines("news"), appended, strict=True)]
    assert max(late[quiet:]) < 5 * max(late[:quiet]) + 0.1, (max(late[quiet:]), max(late[:quiet]))
    assert_whole(other.journal, len(appended))
    stopped.go_on()
    wait_until(lambda: len(stopped.journal.lines("news")) > quiet)
    append()
    wait_until(lambda: stopped.journal.lines("news")[-1][0] == str(stream.next - 1))
    # What the append above pushes out of the publisher's fifty may be a second gap, told after the first.
    gaps = [range(int(words[0]), int(words[1])) for words in stopped.journal.lines("gap")]
    assert len(gaps) <= 2, gaps
    assert max(map(len, gaps)) > 100, gaps
    cursors = [int(words[0]) for words in stopped.journal.lines("news")]
    assert cursors == [cursor for cursor in range(stream.next) if not any(cursor in gap for gap in gaps)]
