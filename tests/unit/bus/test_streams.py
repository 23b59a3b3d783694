"""Streams between two endpoints, and between two cores without sockets."""

import random
from itertools import pairwise

import gevent
import pytest
from gevent.event import Event as Flag

from tests.unit.bus.conftest import Bus, connect, wait_until
from tests.unit.bus.pair import Pair
from zcompute.bus import BusConfigError, Busy, Endpoint, FrameRefused, Limits, Link, StreamEvents, StreamSkip
from zcompute.bus.protocol import LinkCore
from zcompute.bus.streams import Streams

ROLES = frozenset({"compute", "conductor", "api"})


class Seen:
    """What the handler of a topic was told."""

    def __init__(self, endpoint: Endpoint, topic: str = "news") -> None:
        self.payloads: list[bytes] = []
        self.skips: list[tuple[int, int]] = []
        self.go_on = Flag()
        self.go_on.set()
        endpoint.on_stream(topic, self.take)

    def take(self, link: Link, news: StreamEvents | StreamSkip) -> None:
        self.go_on.wait(10)
        if isinstance(news, StreamSkip):
            self.skips.append((news.first, news.end))
        else:
            self.payloads += news.payloads


def numbers(first: int, end: int) -> list[bytes]:
    return [str(n).encode() for n in range(first, end)]


def test_a_stream_arrives_whole_and_in_order(bus: Bus) -> None:
    server, client = bus.endpoint("conductor", "conductor-1"), bus.endpoint("compute", "compute-1")
    seen = Seen(client)
    stream = server.publish_stream("news", "p7", roles=ROLES)
    link = connect(server, client)
    link.follow("news", "p7")
    assert [stream.append(payload) for payload in numbers(0, 3)] == [0, 1, 2]
    for payload in numbers(3, 5000):
        stream.append(payload)
        if stream.next % 100 == 0:
            gevent.sleep(0)
    wait_until(lambda: len(seen.payloads) == 5000)
    assert seen.payloads == numbers(0, 5000)
    assert not seen.skips


def test_a_stream_may_be_followed_before_it_is_there_and_is_found_again_after_it_was_withdrawn(bus: Bus) -> None:
    server, client = bus.endpoint("conductor", "conductor-1"), bus.endpoint("compute", "compute-1")
    seen = Seen(client)
    link = connect(server, client)
    link.follow("news", "p7", 40)
    wait_until(lambda: len(server.links()[0].core.streams_out) == 1)
    stream = server.publish_stream("news", "p7", roles=ROLES, cursor=40)
    stream.append(b"40")
    wait_until(lambda: seen.payloads == [b"40"])
    server.withdraw_stream(stream)
    again = server.publish_stream("news", "p7", roles=ROLES, cursor=41)
    again.append(b"41")
    wait_until(lambda: seen.payloads == [b"40", b"41"])
    assert not stream.followers


def test_a_follower_resumes_at_its_cursor_after_a_reconnect(bus: Bus) -> None:
    server, client = bus.endpoint("conductor", "conductor-1"), bus.endpoint("compute", "compute-1")
    seen = Seen(client)
    stream = server.publish_stream("news", roles=ROLES)
    link = connect(server, client)
    link.follow("news")
    stream.append(b"0")
    wait_until(lambda: seen.payloads == [b"0"])
    link.reset("test")
    for payload in numbers(1, 10):
        stream.append(payload)
    wait_until(lambda: len(seen.payloads) == 10)
    assert seen.payloads == numbers(0, 10)


def test_a_follower_behind_the_retention_is_told_the_gap(bus: Bus) -> None:
    server, client = bus.endpoint("conductor", "conductor-1"), bus.endpoint("compute", "compute-1")
    seen = Seen(client)
    stream = server.publish_stream("news", roles=ROLES, events_max=3)
    for payload in numbers(0, 10):
        stream.append(payload)
    link = connect(server, client)
    link.follow("news", cursor=2)
    wait_until(lambda: len(seen.payloads) == 3)
    assert seen.skips == [(2, 7)]
    assert seen.payloads == numbers(7, 10)


def test_a_follower_ahead_of_a_stream_that_began_anew_is_told(bus: Bus) -> None:
    server, client = bus.endpoint("conductor", "conductor-1"), bus.endpoint("compute", "compute-1")
    seen = Seen(client)
    stream = server.publish_stream("news", roles=ROLES)
    stream.append(b"0")
    link = connect(server, client)
    link.follow("news", cursor=1000)
    wait_until(lambda: seen.payloads == [b"0"])
    stream.append(b"1")
    wait_until(lambda: seen.payloads == [b"0", b"1"])
    assert seen.skips == [(1000, 0)]


def test_a_slow_follower_holds_only_itself(bus: Bus) -> None:
    limits = Limits(stream_credit=8)
    server = bus.endpoint("conductor", "conductor-1", limits=limits)
    slow, quick = (bus.endpoint("compute", name, limits=limits) for name in ("compute-1", "compute-2"))
    seen_slow, other, seen_quick = Seen(slow), Seen(slow, "other"), Seen(quick)
    stream = server.publish_stream("news", roles=ROLES, events_max=50)
    beside = server.publish_stream("other", roles=ROLES)
    link = connect(server, slow)
    link.follow("news")
    link.follow("other")
    second = quick.dial(link.address, server.identity.public_key)
    second.follow("news")
    assert second.wait_up(5000)
    wait_until(lambda: stream.followers == 2)
    seen_slow.go_on.clear()
    for n, payload in enumerate(numbers(0, 200)):
        stream.append(payload)
        beside.append(payload)
        wait_until(lambda n=n: len(seen_quick.payloads) == len(other.payloads) == n + 1)
    assert link.core.streams_in.cursors["news", ""] <= 8
    seen_slow.go_on.set()
    wait_until(lambda: seen_slow.payloads[-1:] == [b"199"])
    assert seen_quick.payloads == numbers(0, 200)
    ((first, end),) = seen_slow.skips
    assert seen_slow.payloads == numbers(0, first) + numbers(end, 200)


def test_a_role_that_may_not_follow_gets_nothing(bus: Bus) -> None:
    server, client = bus.endpoint("conductor", "conductor-1"), bus.endpoint("compute", "compute-1")
    seen = Seen(client)
    stream = server.publish_stream("news", roles={"conductor"})
    link = connect(server, client)
    link.follow("news")
    link.follow("news", "later")
    wait_until(lambda: server.counters["refused_stream_forbidden"] == 1)
    later = server.publish_stream("news", "later", roles={"conductor"})
    stream.append(b"secret")
    later.append(b"secret")
    assert not stream.followers
    assert not later.followers
    assert not seen.payloads
    wait_until(lambda: client.counters["refused_told_by_peer"] == 1)


def test_what_is_not_followed_any_more_is_not_sent(bus: Bus) -> None:
    server, client = bus.endpoint("conductor", "conductor-1"), bus.endpoint("compute", "compute-1")
    Seen(client)
    stream = server.publish_stream("news", roles=ROLES)
    link = connect(server, client)
    link.follow("news")
    wait_until(lambda: stream.followers == 1)
    link.unfollow("news")
    wait_until(lambda: stream.followers == 0)
    link.unfollow("news")


def test_streams_have_limits() -> None:
    streams = Streams(Limits(streams_max=1, stream_event_bytes_max=10))
    stream = streams.publish("news", "", 0, 100, 60, ROLES)
    with pytest.raises(FrameRefused):
        stream.append(b"x" * 11)
    for _ in range(5):
        stream.append(b"x" * 10)
    assert (stream.first, stream.next, stream.bytes) == (3, 5, 52)
    with pytest.raises(BusConfigError):
        streams.publish("news", "", 0, 100, 60, ROLES)
    with pytest.raises(Busy):
        streams.publish("more", "", 0, 100, 60, ROLES)
    core = LinkCore(Limits(streams_max=1))
    core.follow("a", "", 0, 0.0)
    with pytest.raises(Busy):
        core.follow("b", "", 0, 0.0)


@pytest.mark.parametrize("seed", range(12))
def test_over_a_network_that_loses_and_repeats_frames_each_event_comes_once_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    limits = Limits(stream_credit=16, stream_batch=4)
    pair = Pair(seed, loss=0.2, repeat=0.2, limits=limits)
    streams = Streams(limits)
    pair.listener = LinkCore(limits, streams=streams)
    pair.seen[pair.listener] = []
    stream = streams.publish("news", "", 0, 40, 10_000, frozenset({"conductor"}))
    pair.dialler.follow("news", "", 0, pair.now)
    pair.connect()
    told: list[StreamEvents | StreamSkip] = []
    for turn in range(1200):
        if turn < 600 and chance.random() < 0.5:
            stream.append(str(stream.next).encode())
        if chance.random() < 0.01:
            pair.lose_link()
            pair.connect()
        pair.turn(ms=50)
        fresh = [h for h in pair.seen[pair.dialler] if isinstance(h, StreamEvents | StreamSkip)][len(told) :]
        told += fresh[: chance.randrange(3)]
        for news in told[-1:]:
            pair.dialler.stream_handled("news", "", news.end, pair.now)
    told = [h for h in pair.seen[pair.dialler] if isinstance(h, StreamEvents | StreamSkip)]
    assert told[-1].end == stream.next
    starts = [(news.cursor if isinstance(news, StreamEvents) else news.first, news.end) for news in told]
    assert starts[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(starts))
    for news in told:
        if isinstance(news, StreamEvents):
            assert news.payloads == numbers(news.cursor, news.end)
