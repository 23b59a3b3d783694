"""What an endpoint says of itself: the counts are the truth, at rest and in the middle of work."""

import time

import gevent
import msgspec
import pytest
from gevent.event import Event as Flag

from tests.unit.bus.conftest import ECHO, NOTE, SLOW, Answer, Ask, Bus, Method, connect, serve_echo, wait_until
from zcompute.bus import (
    BUS_PING,
    BUS_STAT,
    Ack,
    Busy,
    EndpointStat,
    Forbidden,
    Limits,
    LinkDown,
    PingRequest,
    Report,
    StatRequest,
    open_endpoints,
)
from zcompute.bus.counters import OTHERS, PEERS_KEPT_MAX, Counters, Refusals
from zcompute.bus.inside import RELAYS_MAX
from zcompute.bus.stat import AskedStat, FollowedStat, LinkStat, MethodStat, PoolStat, StreamStat, strangers_of
from zcompute.bus.workers import WorkerPool
from zcompute.cli.bus_commands import stream_rows
from zcompute.metrics import families


def method(stat: EndpointStat, name: str) -> MethodStat:
    return next(row for row in stat.methods if row.method == name)


def pool(stat: EndpointStat, name: str) -> PoolStat:
    return next(row for row in stat.pools if row.pool == name)


def asked(stat: EndpointStat, name: str) -> AskedStat:
    return next(row for row in stat.asked if row.method == name)


def only_link(stat: EndpointStat) -> LinkStat:
    (link,) = stat.links
    return link


def test_calls_casts_and_errors_are_counted_per_method(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    server.serve(NOTE, lambda ask, context: None)
    link = connect(server, bus.endpoint("compute", "compute-1"))
    for _ in range(3):
        link.call(ECHO, Ask("x"), timeout_ms=2000)
    link.cast(NOTE, Ask("x"))
    wait_until(lambda: method(server.stat(), "echo.note").ended == 1)
    stat = server.stat()
    say = method(stat, "echo.say")
    assert (say.arrived, say.queued, say.running, say.ended, say.errors, say.version) == (3, 0, 0, 3, 0, "1.0")
    assert say.oldest_ms == 0
    assert asked(bus.endpoints[1].stat(), "echo.say").sent == 3
    shown = only_link(stat)
    assert (shown.service_id, shown.role, shown.state, shown.dialled) == ("compute-1", "compute", "up", False)
    assert shown.bytes_received > 0
    assert shown.bytes_sent > 0
    assert only_link(bus.endpoints[1].stat()).dialled


def test_work_in_flight_and_queued_shows_with_its_age(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(calls_workers=2))
    go = Flag()
    server.serve(SLOW, lambda ask, context: (go.wait(), Answer(ask.text))[1])
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    callers = [gevent.spawn(link.call, SLOW, Ask("x"), timeout_ms=5000) for _ in range(5)]
    wait_until(lambda: method(server.stat(), "echo.slow").arrived == 5)
    since = time.monotonic()
    wait_until(lambda: time.monotonic() - since > 0.1)
    stat = server.stat()
    slow = method(stat, "echo.slow")
    assert (slow.running, slow.queued, slow.ended) == (2, 3, 0)
    assert 100 <= slow.oldest_ms < 3000
    assert (pool(stat, "calls").running, pool(stat, "calls").queued) == (2, 3)
    assert pool(stat, "calls").oldest_ms >= 50
    assert (stat.serving_calls, only_link(stat).serving_calls) == (5, 5)
    assert only_link(stat).oldest_ms >= 100
    seen = client.stat()
    assert (seen.open_calls, only_link(seen).open_calls, asked(seen, "echo.slow").open) == (5, 5, 5)
    assert 100 <= asked(seen, "echo.slow").oldest_ms < 3000
    assert only_link(seen).open_oldest_ms >= 100
    go.set()
    gevent.joinall(callers, timeout=5, raise_error=True)
    rest = server.stat()
    assert (method(rest, "echo.slow").running, method(rest, "echo.slow").ended) == (0, 5)
    assert (rest.serving_calls, pool(rest, "calls").oldest_ms, pool(rest, "calls").running) == (0, 0, 0)


def test_a_failing_a_killed_and_an_expired_call_leave_nothing_in_flight(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(calls_workers=1))
    go = Flag()

    def handler(ask: Ask, context: object) -> Answer:
        if ask.text == "kill":
            raise gevent.GreenletExit
        if ask.text == "wait":
            go.wait()
        raise ValueError(ask.text)

    server.serve(SLOW, handler)
    link = connect(server, bus.endpoint("compute", "compute-1"))
    callers = [gevent.spawn(link.call, SLOW, Ask(text), timeout_ms=3000) for text in ("fail", "kill", "wait")]
    callers.append(gevent.spawn(link.call, SLOW, Ask("late"), timeout_ms=50))
    gevent.joinall(callers[3:], timeout=5)
    go.set()
    gevent.joinall(callers, timeout=5)
    wait_until(lambda: method(server.stat(), "echo.slow").expired == 1)
    slow = method(server.stat(), "echo.slow")
    assert (slow.arrived, slow.queued, slow.running, slow.ended, slow.errors) == (4, 0, 0, 3, 3)


def test_refusals_are_kept_apart_by_method_link_and_stranger(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    serve_echo(server)
    link = connect(server, bus.endpoint("scheduler", "scheduler-1"))
    with pytest.raises(Forbidden):
        link.call(ECHO, Ask("x"), timeout_ms=2000)
    server.refusals.count("key", "10.0.0.9")
    stat = server.stat()
    assert method(stat, "echo.say").refused == {"Forbidden": 1}
    assert only_link(stat).refused == {"Forbidden": 1}
    assert stat.counters["refused_Forbidden"] == 1
    assert stat.strangers == {"10.0.0.9": {"key": 1}}


def test_reports_show_their_credit_and_what_is_owed(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    arrived: list[Report] = []
    server.on_reports(lambda link, reports: arrived.extend(reports))
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    assert link.report([Report(f"k{n}", 1, b"") for n in range(3)]) == 3
    wait_until(lambda: len(arrived) == 3)
    assert only_link(server.stat()).reports_owed == 3
    sent = only_link(client.stat())
    assert (sent.reports_unacked, sent.report_credit) == (3, Limits().report_credit - 3)
    server.links()[0].ack([Ack("k0", 1, "applied"), Ack("k1", 1, "applied")])
    wait_until(lambda: only_link(client.stat()).reports_unacked == 1)
    assert only_link(server.stat()).reports_owed == 1


def test_a_lane_is_shown_on_both_sides_whoever_owes_in_it(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1", limits=Limits(lane_credit=4))
    server.on_reports(lambda link, reports: None)
    client = bus.endpoint("compute", "compute-1")
    link = connect(server, client)
    assert link.report([Report("k", 1, b"")]) == 1
    wait_until(lambda: only_link(server.stat()).reports_owed == 1)
    assert server.links()[0].admit_report(7)
    (taken,) = only_link(server.stat()).lanes
    assert (taken.lane, taken.owed, taken.unacked) == (7, 1, 0)
    (sent,) = only_link(client.stat()).lanes
    assert (sent.lane, sent.owed, sent.unacked) == (0, 0, 1)
    server.links()[0].settle_report(7)
    assert only_link(server.stat()).lanes == []


def test_an_operator_pings_and_asks_a_service_and_those_behind_it(bus: Bus) -> None:
    conductor = bus.endpoint("conductor", "conductor-1")
    address = conductor.bind("tcp://127.0.0.1:0")
    compute = bus.endpoint("compute", "compute-1")
    operator = bus.endpoint("operator", "operator-1")
    own = compute.dial(address, conductor.identity.public_key)
    link = operator.dial(address, conductor.identity.public_key)
    assert own.wait_up(5000)
    assert link.wait_up(5000)
    direct = link.call(BUS_PING, PingRequest(), timeout_ms=2000)
    assert (direct.service_id, direct.incarnation, direct.relay_us) == ("conductor-1", conductor.incarnation, 0)
    behind = link.call(BUS_PING, PingRequest(service="compute-1"), timeout_ms=2000)
    assert (behind.service_id, behind.role, behind.incarnation) == ("compute-1", "compute", compute.incarnation)
    assert behind.relay_us > 0
    stat = link.call(BUS_STAT, StatRequest(), timeout_ms=2000)
    assert {row.service_id for row in stat.links} == {"compute-1", "operator-1"}
    assert method(stat, "bus.ping").ended == 2
    far = link.call(BUS_STAT, StatRequest(service="compute-1"), timeout_ms=2000)
    assert (far.service_id, [row.service_id for row in far.links]) == ("compute-1", ["conductor-1"])
    with pytest.raises(LinkDown, match="nobody"):
        link.call(BUS_PING, PingRequest(service="nobody"), timeout_ms=2000)


def test_only_so_many_requests_are_passed_on_at_once(bus: Bus) -> None:
    conductor = bus.endpoint("conductor", "conductor-1")
    address = conductor.bind("tcp://127.0.0.1:0")
    compute = bus.endpoint("compute", "compute-1", limits=Limits(control_workers=1))
    go = Flag()
    compute.serve(Method("echo", "hold", pool="control"), lambda ask, context: (go.wait(), Answer(""))[1])
    operator = bus.endpoint("operator", "operator-1")
    assert compute.dial(address, conductor.identity.public_key).wait_up(5000)
    link = operator.dial(address, conductor.identity.public_key)
    assert link.wait_up(5000)
    (back,) = conductor.links(role="compute")
    holding = gevent.spawn(back.call, Method("echo", "hold", pool="control"), Ask(""), timeout_ms=5000)
    wait_until(lambda: method(compute.stat(), "echo.hold").running == 1)
    behind = PingRequest(service="compute-1")
    pings = [gevent.spawn(link.call, BUS_PING, behind, timeout_ms=5000) for _ in range(RELAYS_MAX)]
    wait_until(lambda: method(conductor.stat(), "bus.ping").running == RELAYS_MAX)
    with pytest.raises(Busy):
        link.call(BUS_PING, behind, timeout_ms=2000)
    assert link.call(BUS_PING, PingRequest(), timeout_ms=2000).service_id == "conductor-1"
    go.set()
    gevent.joinall([holding, *pings], timeout=5, raise_error=True)
    assert link.call(BUS_PING, behind, timeout_ms=2000).service_id == "compute-1"


def test_a_compute_may_not_look_inside_a_conductor(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    link = connect(server, bus.endpoint("compute", "compute-1"))
    for asked_method, request in ((BUS_PING, PingRequest()), (BUS_STAT, StatRequest())):
        with pytest.raises(Forbidden):
            link.call(asked_method, request, timeout_ms=2000)


def test_links_come_in_pages_by_name_and_none_costs_nothing(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    address = server.bind("tcp://127.0.0.1:0")
    for number in range(4):
        link = bus.endpoint("compute", f"compute-{number}").dial(address, server.identity.public_key)
        assert link.wait_up(5000)
    pages = [server.stat(links_from=start, links_max=3) for start in (0, 3, 6)]
    names = [row.service_id for page in pages for row in page.links]
    assert names == [f"compute-{number}" for number in range(4)]
    assert {page.links_known for page in pages} == {4}
    assert server.stat(links_max=0).links == []


def test_open_endpoints_are_known_until_they_close(bus: Bus) -> None:
    endpoint = bus.endpoint("conductor", "conductor-1")
    assert endpoint in open_endpoints()
    endpoint.close()
    assert endpoint not in open_endpoints()


def test_a_stat_survives_the_wire_whole(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    connect(server, bus.endpoint("compute", "compute-1"))
    stat = server.stat()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(stat), type=EndpointStat) == stat


def test_a_hostile_crowd_does_not_grow_the_table_of_refusals() -> None:
    refusals = Refusals(Counters())
    for number in range(PEERS_KEPT_MAX + 500):
        refusals.count("key", f"10.0.{number // 256}.{number % 256}")
    kept = refusals.by_peer()
    assert len(kept) <= PEERS_KEPT_MAX + 1
    assert sum(reasons["key"] for reasons in kept.values()) == PEERS_KEPT_MAX + 500
    assert kept[OTHERS]["key"] >= 499


def test_strangers_shown_are_those_refused_most() -> None:
    crowd = {f"a{number}": {"key": number} for number in range(300)}
    shown = strangers_of(crowd, {"a299"})
    assert next(iter(shown)) == "a298"
    assert len(shown) == 100


def test_the_oldest_job_of_a_pool_has_an_age_and_marks_stay_few() -> None:
    jobs = WorkerPool("calls", 1, 100, 10)
    go = Flag()
    for _ in range(3):
        assert jobs.submit(None, go.wait)
        jobs.mark(10.0)
    jobs.mark(11.0)
    assert jobs.oldest_age_s(12.0) == 2.0
    wait_until(lambda: jobs.running == 1 and jobs.queued == 2)
    assert jobs.oldest_age_s(12.0) == 2.0
    go.set()
    wait_until(lambda: jobs.running == 0)
    assert jobs.oldest_age_s(13.0) == 0.0
    jobs.mark(13.0)
    assert jobs.submit(None, go.wait)
    jobs.mark(20.0)
    assert jobs.oldest_age_s(21.0) == 1.0
    jobs.close()


def test_streams_are_shown_by_who_publishes_and_by_who_follows(bus: Bus) -> None:
    server, client = bus.endpoint("conductor", "conductor-1"), bus.endpoint("compute", "compute-1")
    go_on = Flag()
    client.on_stream("news", lambda link, news: go_on.wait(10) and None)
    stream = server.publish_stream("news", "p7", roles=["compute"], events_max=10)
    link = connect(server, client)
    for _ in range(30):
        stream.append(b"x" * 84)
    link.follow("news", "p7")
    link.follow("news", "nobody's")
    wait_until(lambda: client.stat().stream_events_waiting > 0)
    (published,) = server.stat().streams
    assert published == StreamStat(topic="news", key="p7", followers=1, events=10, bytes=1000, first=20, next=30)
    assert server.stat().streams_published == 1
    assert only_link(server.stat()).followers == 2
    stat = client.stat()
    assert (stat.streams_published, stat.streams_followed) == (0, 2)
    followed = {row.key: row for row in only_link(stat).followed}
    expected = FollowedStat(topic="news", key="p7", cursor=30, waiting=30, gaps=1, answered=True)
    assert followed["p7"] == expected  # the skip waits with the events behind it
    assert not followed["nobody's"].answered
    assert stat.counters["stream_gaps"] == 1
    assert server.stat().counters["stream_gaps_told"] == 1
    rows = [row for shown in (server.stat(), stat) for row in stream_rows(shown)]
    assert [(row["service"], row["stream"], row["waiting"]) for row in rows] == [
        ("conductor-1", "news/p7", 0),
        ("compute-1", "news/p7", 30),
        ("compute-1", "news/nobody's (no answer)", 0),
    ]
    go_on.set()
    wait_until(lambda: client.stat().stream_events_waiting == 0)


def test_streams_are_in_the_metrics_by_topic(bus: Bus) -> None:
    server = bus.endpoint("conductor", "conductor-1")
    for key in ("a", "b"):
        server.publish_stream("news", key, roles=["compute"]).append(b"x" * 84)
    found = {
        sample.name: (sample.labels, sample.value)
        for family in families(server.stat())
        for sample in family.samples
        if "stream" in sample.name
    }
    by_topic = {"service": "conductor-1", "topic": "news"}
    assert found["zcompute_bus_streams_published"] == ({"service": "conductor-1"}, 2)
    assert found["zcompute_bus_stream_kept_events"] == (by_topic, 2)
    assert found["zcompute_bus_stream_kept_bytes"] == (by_topic, 200)
    assert found["zcompute_bus_stream_cursors"] == (by_topic, 2)
