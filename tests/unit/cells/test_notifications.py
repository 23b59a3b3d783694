"""A follower sees everything once per n, in order, whatever streams overlap, begin late or have let go."""

import random
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcompute.bus.errors import LinkDown
from zcompute.bus.following import StreamEvents, StreamSkip
from zcompute.cells.notifications import NotificationTail, heads
from zcompute.objects.messages.instances import NotificationHeadsReply, NotificationsReply, NumberedBody
from zcompute.objects.methods import NOTIFICATION_HEADS, STREAM_NOTIFICATIONS
from zcompute.objects.notification import cursor_text, parse_cursor
from zcompute.objects.partition import PARTITIONS

PARTITION = 7


class Conductor:
    """A link to a conductor over the table of its cell: rows ``first`` to ``last`` of one partition."""

    def __init__(self, first: int, last: int, *, page_rows: int = 3) -> None:
        self.peer = SimpleNamespace(role="conductor", cell="c1", service_id="c1-conductor-1")
        self.up = True
        self.first = first
        self.last = last
        self.page_rows = page_rows
        self.followed: dict[str, int] = {}
        self.failures = 0
        self.calls = 0

    def follow(self, topic: str, key: str, cursor: int) -> None:
        assert topic == STREAM_NOTIFICATIONS
        self.followed[key] = cursor

    def call(self, method: Any, request: Any, *, timeout_ms: int) -> Any:
        self.calls += 1
        gevent.sleep(0)
        if self.failures:
            self.failures -= 1
            raise LinkDown("gone")
        if method is NOTIFICATION_HEADS:
            return NotificationHeadsReply(cell="c1", last_n=[self.last] * PARTITIONS)
        begin = max(self.first, request.after_n + 1)
        numbers = range(begin, min(self.last, begin + self.page_rows - 1) + 1)
        rows = [NumberedBody(n=n, body=body(n)) for n in numbers]
        return NotificationsReply(cell="c1", last_n=-1 if rows else self.last, rows=rows)


class Bus:
    """The face of an endpoint that a tail uses."""

    def __init__(self, *links: Conductor) -> None:
        self.of = list(links)

    def links(self, **_: Any) -> list[Conductor]:
        return self.of

    def on_stream(self, topic: str, handler: Any) -> None:
        self.happened = handler

    def on_event(self, topic: str, handler: Any) -> None:
        return

    def on_link_up(self, handler: Any) -> None:
        self.link_up = handler


def body(n: int) -> bytes:
    return b"%d" % n


class Follower:
    def __init__(self, conductor: Conductor, cursor: dict[int, int] | None = None) -> None:
        self.bus = Bus(conductor)
        self.conductor = conductor
        self.taken: list[int] = []
        self.gaps: list[tuple[int, int]] = []
        self.tail = NotificationTail(self.bus, "c1", cursor or {}, self.take, self.gap)  # type: ignore[arg-type]
        self.tail.start()

    def take(self, partition: int, n: int, payload: bytes) -> None:
        assert (partition, payload) == (PARTITION, body(n))
        self.taken.append(n)

    def gap(self, partition: int, first: int, last: int) -> None:
        self.gaps.append((first, last))

    def events(self, first: int, last: int) -> None:
        payloads = [body(n) for n in range(first, last + 1)]
        self.bus.happened(self.conductor, StreamEvents(STREAM_NOTIFICATIONS, str(PARTITION), first, payloads))

    def skip(self, first: int, end: int) -> None:
        self.bus.happened(self.conductor, StreamSkip(STREAM_NOTIFICATIONS, str(PARTITION), first, end))


def test_every_partition_is_followed_from_behind_its_cursor_at_each_conductor_of_the_cell() -> None:
    follower = Follower(Conductor(1, 0), {PARTITION: 41})
    assert len(follower.conductor.followed) == PARTITIONS
    assert (follower.conductor.followed["7"], follower.conductor.followed["8"]) == (42, 1)
    follower.events(42, 43)
    late = Conductor(1, 0)
    follower.bus.link_up(late)
    assert late.followed["7"] == 44
    stranger = Conductor(1, 0)
    stranger.peer.cell = "c2"
    follower.bus.link_up(stranger)
    assert stranger.followed == {}


def test_what_comes_twice_is_taken_once() -> None:
    follower = Follower(Conductor(1, 9))
    follower.events(1, 3)
    follower.events(2, 5)
    follower.events(1, 2)
    assert follower.taken == [1, 2, 3, 4, 5]
    assert follower.tail.repeated == 4


def test_what_a_stream_no_longer_has_is_read_from_the_table() -> None:
    follower = Follower(Conductor(1, 20), {PARTITION: 2})
    follower.skip(3, 15)
    follower.events(15, 17)
    assert follower.taken == list(range(3, 18))
    assert follower.gaps == []


def test_a_stream_that_begins_later_than_the_cursor_is_caught_up_with() -> None:
    follower = Follower(Conductor(1, 20))
    follower.events(9, 10)
    assert follower.taken == list(range(1, 11))


@pytest.mark.parametrize(("first", "gap"), [(5, (1, 4)), (12, (1, 11))])
def test_what_the_retention_took_is_one_gap(first: int, gap: tuple[int, int]) -> None:
    follower = Follower(Conductor(first, 11))
    follower.skip(1, 12)
    assert follower.gaps == [gap]
    assert follower.taken == list(range(first, 12))
    assert follower.tail.seen[PARTITION] == 11


def test_a_stream_that_begins_anew_before_the_cursor_takes_nothing_back() -> None:
    follower = Follower(Conductor(1, 9), {PARTITION: 9})
    follower.skip(10, 4)
    follower.events(4, 10)
    assert follower.taken == [10]


def test_reads_are_tried_until_somebody_answers() -> None:
    follower = Follower(Conductor(1, 4))
    follower.conductor.failures = 2
    follower.skip(1, 5)
    assert follower.taken == [1, 2, 3, 4]


def test_heads_are_asked_of_any_conductor() -> None:
    bus: Any = Bus(Conductor(1, 5))
    assert heads(bus, "c1", 1000)[255] == 5
    with pytest.raises(LinkDown):
        heads(Bus(), "c1", 1000)  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 30), st.integers(0, 40), st.integers(0, 2**32))
def test_any_overlap_of_streams_gives_each_n_once_in_order(cursor: int, first: int, seed: int) -> None:
    """Streams of two owners at once, from anywhere, over a table whose beginning is gone."""
    dice = random.Random(seed)
    last = 50
    follower = Follower(Conductor(max(1, first), last, page_rows=dice.randint(1, 9)), {PARTITION: cursor})

    def stream() -> None:
        at = dice.randint(max(1, first), last)
        if dice.random() < 0.5:
            follower.skip(cursor + 1, at)
        while at <= last:
            end = min(last, at + dice.randint(0, 5))
            follower.events(at, end)
            gevent.sleep(0)
            at = end + 1

    gevent.joinall([gevent.spawn(stream) for _ in range(2)], raise_error=True)
    lost = [n for begin, end in follower.gaps for n in range(begin, end + 1)]
    assert sorted([*lost, *follower.taken]) == list(range(cursor + 1, last + 1))
    assert follower.taken == sorted(follower.taken)
    assert all(n < first for n in lost)


@given(st.dictionaries(st.integers(0, 255), st.integers(1, 2**62)))
def test_a_cursor_is_read_back_from_its_text(cursor: dict[int, int]) -> None:
    assert parse_cursor(cursor_text("c1", cursor)) == ("c1", cursor)


@pytest.mark.parametrize("text", ["", "c1", "/1:2", "c1/1", "c1/256:1", "c1/1:-2", "c1/1:2,,", "c1/x:1"])
def test_a_text_that_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_cursor(text)
