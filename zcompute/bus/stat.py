"""What an endpoint is doing, as typed records: what the operator's commands, metrics and state dumps show.

Taken on demand from what the endpoint keeps anyway; between two looks nothing is computed. Ages are whole milliseconds
of the endpoint's own monotonic clock; 0 means that nothing waits.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from zcompute.bus.link import Link
    from zcompute.bus.method import PreparedMethod
    from zcompute.bus.serving import Served
    from zcompute.bus.streams import Stream
    from zcompute.bus.workers import WorkerPool

LINKS_PER_PAGE_MAX = 1_000
STRANGERS_SHOWN_MAX = 100
STREAMS_SHOWN_MAX = 256


class LaneStat(msgspec.Struct, kw_only=True):
    """Reports of one link in one lane: of the peer's lanes those that we sent, of ours those that we owe an answer."""

    lane: int  # 0: keys whose lane the peer has not named yet
    unacked: int = 0  # ours that have no answer
    credit: int = 0  # how many more we may send
    owed: int = 0  # the peer's, in this lane of ours


class StreamStat(msgspec.Struct, kw_only=True):
    """One stream that is published here. The events kept have the cursors `first` to `next` - 1."""

    topic: str
    key: str
    followers: int = 0  # links that follow
    events: int = 0  # kept, for those behind
    bytes: int = 0  # of these, with overhead
    first: int = 0  # who is behind this is told a gap
    next: int = 0


class FollowedStat(msgspec.Struct, kw_only=True):
    """One stream that is followed here at the link's peer."""

    topic: str
    key: str
    cursor: int = 0  # of the event awaited next
    waiting: int = 0  # events that arrived and the application has not taken
    gaps: int = 0  # told by the publisher, since it is followed
    answered: bool = False  # False: the publisher did not answer yet, or publishes no such stream


class LinkStat(msgspec.Struct, kw_only=True):
    """One link. `queued` and its kin wait here to be sent; `open_calls` are ours, `serving_calls` the peer's."""

    name: str
    address: str
    state: str
    dialled: bool = False  # False: the peer dialled us
    role: str = ""
    cell: str = ""
    service_id: str = ""
    incarnation: str = ""
    release: str = ""
    up_ms: int = 0
    queued: int = 0  # calls, casts and replies
    queued_bytes: int = 0
    queued_control: int = 0  # acks, credits, naks
    queued_events: int = 0
    blocked_ms: int = 0  # how long the oldest frame is refused by the socket: the peer does not read
    open_calls: int = 0
    open_oldest_ms: int = 0  # since it was sent, or sent again after a reconnect
    serving_calls: int = 0
    serving_oldest_ms: int = 0
    reports_unacked: int = 0  # ours that have no durable ack
    report_credit: int = 0  # how many more we may send
    reports_owed: int = 0  # the peer's that we have not acked as durable
    lanes: list[LaneStat] = msgspec.field(default_factory=list)  # those with anything unanswered, by number
    followers: int = 0  # streams of ours that the peer follows
    followed: list[FollowedStat] = msgspec.field(default_factory=list)  # the peer's, at most STREAMS_SHOWN_MAX
    inbox: int = 0  # reports, acks and events that arrived and were not told to the application
    bytes_sent: int = 0
    bytes_received: int = 0
    refused: dict[str, int] = msgspec.field(default_factory=dict)  # by reason

    @property
    def oldest_ms(self) -> int:
        """Age of the oldest thing that waits on this link, in either direction."""
        return max(self.blocked_ms, self.open_oldest_ms, self.serving_oldest_ms)


class MethodStat(msgspec.Struct, kw_only=True):
    """One method served here. arrived = queued + expired + cancelled + running + ended; refused ones never arrived."""

    method: str
    version: str
    pool: str
    arrived: int = 0
    queued: int = 0
    running: int = 0
    oldest_ms: int = 0  # of the calls queued or running; casts count in their pool's
    ended: int = 0
    errors: int = 0  # of those ended: answered by an error
    expired: int = 0  # not begun, their time was over
    cancelled: int = 0  # not begun, their caller was gone
    refused: dict[str, int] = msgspec.field(default_factory=dict)  # by reason


class AskedStat(msgspec.Struct, kw_only=True):
    """One method that this endpoint calls or casts."""

    method: str
    sent: int = 0
    open: int = 0
    oldest_ms: int = 0


class PoolStat(msgspec.Struct, kw_only=True):
    """One pool of workers."""

    pool: str
    workers_max: int
    running: int = 0
    queued: int = 0
    oldest_ms: int = 0  # of those queued, to within a tick


class EndpointStat(msgspec.Struct, kw_only=True):
    """One endpoint. `links` is a page of them, by name; `links_known` says how many there are."""

    service_id: str
    role: str
    cell: str
    release: str
    incarnation: str
    age_ms: int
    addresses: list[str] = msgspec.field(default_factory=list)  # where it listens
    links_known: int = 0
    links_up: int = 0
    links_blocked: int = 0
    open_calls: int = 0
    serving_calls: int = 0
    queued: int = 0
    streams_published: int = 0
    streams_followed: int = 0
    stream_events_waiting: int = 0  # of those followed: arrived, and not taken by the application
    streams: list[StreamStat] = msgspec.field(default_factory=list)  # published, at most STREAMS_SHOWN_MAX
    links: list[LinkStat] = msgspec.field(default_factory=list)
    methods: list[MethodStat] = msgspec.field(default_factory=list)
    asked: list[AskedStat] = msgspec.field(default_factory=list)
    pools: list[PoolStat] = msgspec.field(default_factory=list)
    counters: dict[str, int] = msgspec.field(default_factory=dict)
    strangers: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)  # refused by address and reason


class Work(msgspec.Struct):
    """What is under way on an endpoint's links, gathered in one pass: most of 10,000 links have none."""

    asking: list["Link"]  # links with open calls of ours
    asked: list["Link"]  # links with calls of the peer's
    open_calls: int = 0
    serving_calls: int = 0
    queued: int = 0
    streams_followed: int = 0
    stream_events_waiting: int = 0


def work_of(links: Iterable["Link"]) -> Work:
    """What is under way on these links."""
    work = Work([], [])
    queued = 0
    for link in links:
        core = link.core
        if core.calls:
            work.asking.append(link)
            work.open_calls += len(core.calls)
        if core.serving:
            work.asked.append(link)
            work.serving_calls += len(core.serving)
        if len(core.streams_in):
            work.streams_followed += len(core.streams_in)
            work.stream_events_waiting += sum(following.waiting for following in core.streams_in.followings)
        queued += core.outgoing.queued
    work.queued = queued
    return work


def link_stat(link: "Link", dialled: bool, refused: dict[str, int], now: float) -> LinkStat:
    """One link as it is now."""
    core = link.core
    peer = core.peer
    outgoing = core.outgoing
    stat = LinkStat(
        name=link.name,
        address=link.address,
        state=core.state.value,
        dialled=dialled,
        up_ms=_ms(now - link.up_since) if link.up else 0,
        queued=outgoing.queued,
        queued_bytes=outgoing.queued_bytes,
        queued_control=outgoing.queued_control,
        queued_events=len(outgoing.events),
        blocked_ms=_ms(now - link.sender.held_since) if link.sender.held_since else 0,
        open_calls=len(core.calls),
        serving_calls=len(core.serving),
        reports_unacked=len(core.reports_out.unacked),
        report_credit=link.report_credit,
        reports_owed=core.reports_in.unacked,
        lanes=lane_stats(link),
        followers=len(core.streams_out),
        followed=followed_stats(link),
        inbox=len(link.inbox),
        bytes_sent=link.sender.bytes_sent,
        bytes_received=core.bytes_received,
        refused=refused,
    )
    if peer is not None:
        stat.role, stat.cell, stat.service_id = peer.role, peer.cell, peer.service_id
        stat.incarnation, stat.release = peer.incarnation, peer.release
    for open_call in core.calls.values():  # in the order in which they were made
        stat.open_oldest_ms = _ms(now - open_call.deadline) + open_call.call.remaining_ms
        break
    for arrived_at, _ in core.serving.values():
        stat.serving_oldest_ms = _ms(now - arrived_at)
        break
    return stat


def lane_stats(link: "Link") -> list[LaneStat]:
    """The lanes of a link with reports that are not answered."""
    unacked = link.core.reports_out.lanes.unacked
    owed = link.core.reports_in.lanes.owed
    return [
        LaneStat(
            lane=lane,
            unacked=unacked[lane],
            credit=link.lane_room(lane) if lane in unacked else 0,
            owed=owed.get(lane, 0),
        )
        for lane in sorted({*unacked, *owed})
    ]


def followed_stats(link: "Link") -> list[FollowedStat]:
    """The streams followed at a link's peer; those with the most events waiting, where they are too many."""
    followings = sorted(link.core.streams_in.followings, key=lambda following: -following.waiting)[:STREAMS_SHOWN_MAX]
    return [
        FollowedStat(
            topic=following.name[0],
            key=following.name[1],
            cursor=following.expected,
            waiting=following.waiting,
            gaps=following.gaps,
            answered=following.confirmed,
        )
        for following in followings
    ]


def stream_stats(streams: Iterable["Stream"]) -> list[StreamStat]:
    """The streams published here; those with the most events kept, where they are too many."""
    shown = sorted(streams, key=lambda stream: stream.first - stream.next)[:STREAMS_SHOWN_MAX]
    return [
        StreamStat(
            topic=stream.topic,
            key=stream.key,
            followers=stream.followers,
            events=stream.next - stream.first,
            bytes=stream.bytes,
            first=stream.first,
            next=stream.next,
        )
        for stream in shown
    ]


def method_stats(methods: Iterable["Served"], links: Iterable["Link"], now: float) -> list[MethodStat]:
    """The methods served, by name; those never called too: what is missing in a list looks forgotten."""
    oldest: dict[str, float] = {}
    for link in links:
        for arrived_at, method in link.core.serving.values():
            if arrived_at < oldest.get(method, now):
                oldest[method] = arrived_at
    stats = []
    for served in methods:
        name = served.prepared.full_name
        stats.append(
            MethodStat(
                method=name,
                version=f"{served.prepared.major}.{served.prepared.minor}",
                pool=served.pool.name,
                arrived=served.arrived,
                queued=max(0, served.arrived - served.begun - served.expired - served.cancelled),
                running=served.begun - served.ended,
                oldest_ms=_ms(now - oldest.get(name, now)),
                ended=served.ended,
                errors=served.errors,
                expired=served.expired,
                cancelled=served.cancelled,
                refused=dict(served.refused),
            )
        )
    return sorted(stats, key=lambda stat: stat.method)


def asked_stats(methods: Iterable["PreparedMethod"], links: Iterable["Link"], now: float) -> list[AskedStat]:
    """The methods called from here, by name."""
    stats: dict[str, AskedStat] = {}
    for prepared in methods:
        stats.setdefault(prepared.full_name, AskedStat(method=prepared.full_name)).sent += prepared.sent
    for link in links:
        for open_call in link.core.calls.values():
            stat = stats.get(open_call.call.method)
            if stat is not None:
                age_ms = _ms(now - open_call.deadline) + open_call.call.remaining_ms
                stat.open += 1
                stat.oldest_ms = max(stat.oldest_ms, age_ms)
    return sorted(stats.values(), key=lambda stat: stat.method)


def pool_stats(pools: Iterable["WorkerPool"], now: float) -> list[PoolStat]:
    """The pools, in their order."""
    return [
        PoolStat(
            pool=pool.name,
            workers_max=pool.workers_max,
            running=pool.running,
            queued=pool.queued,
            oldest_ms=_ms(pool.oldest_age_s(now)),
        )
        for pool in pools
    ]


def strangers_of(by_peer: Mapping[str, dict[str, int]], names: set[str]) -> dict[str, dict[str, int]]:
    """Who was refused and is none of the links of these `names`: at most STRANGERS_SHOWN_MAX, those refused most."""
    strangers = [(peer, reasons) for peer, reasons in by_peer.items() if peer not in names]
    strangers.sort(key=lambda item: -sum(item[1].values()))
    return dict(strangers[:STRANGERS_SHOWN_MAX])


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
