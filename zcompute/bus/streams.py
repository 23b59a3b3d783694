"""Ordered streams of events: what an endpoint publishes, and what a link's peer follows of it. No I/O, no clock.

A stream is named (topic, key). Its events have consecutive cursors, so a follower knows what it has seen and resumes
there: after a lost frame, after a reconnect, at another publisher of the same events. The publisher keeps the newest
events within its retention; a follower behind them is told a gap. A follower grants by cursor how far it may be sent
to, so a slow one is waited for by nobody but itself.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping

from zcompute.bus.envelope import Envelope, Follow, StreamBatch, StreamCredit, StreamGap
from zcompute.bus.errors import BusConfigError, Busy, FrameRefused
from zcompute.bus.limits import Limits

EVENT_OVERHEAD_BYTES = 16

StreamName = tuple[str, str]


class Stream:
    """A published stream: its newest events, at most `events_max` and `bytes_max` of them, and who follows."""

    def __init__(
        self, topic: str, key: str, cursor: int, events_max: int, bytes_max: int, roles: frozenset[str], event_max: int
    ) -> None:
        self.topic = topic
        self.key = key
        self.next = cursor  # of the event that is appended next
        self.roles = roles
        self.bytes = 0
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._event_max = event_max
        self._payloads: deque[bytes] = deque()
        self._followers: dict[Follower, None] = {}

    @property
    def first(self) -> int:
        """Cursor of the oldest event that is kept; that of the next one when none is."""
        return self.next - len(self._payloads)

    @property
    def followers(self) -> int:
        """How many links follow."""
        return len(self._followers)

    def append(self, payload: bytes) -> int:
        """Publish an event; returns its cursor. Raises FrameRefused for one over `stream_event_bytes_max`."""
        if len(payload) > self._event_max:
            raise FrameRefused(
                f"expected a stream's event of at most {self._event_max} bytes, found {len(payload)}: send less",
                reason="size",
            )
        self._payloads.append(payload)
        self.bytes += len(payload) + EVENT_OVERHEAD_BYTES
        self.next += 1
        while len(self._payloads) > self._events_max or (self.bytes > self._bytes_max and len(self._payloads) > 1):
            self.bytes -= len(self._payloads.popleft()) + EVENT_OVERHEAD_BYTES
        for follower in self._followers:
            follower.wake()
        return self.next - 1

    def slice(self, cursor: int, events_max: int, bytes_max: int) -> list[bytes]:
        """Events from `cursor` on, at least one where there is one."""
        found: list[bytes] = []
        size = 0
        for index in range(cursor - self.first, min(len(self._payloads), cursor - self.first + events_max)):
            payload = self._payloads[index]
            if found and size + len(payload) > bytes_max:
                break
            found.append(payload)
            size += len(payload) + EVENT_OVERHEAD_BYTES
        return found

    def attach(self, follower: "Follower") -> None:
        """Wake this follower at each event."""
        self._followers[follower] = None

    def detach(self, follower: "Follower") -> None:
        """Wake it no more."""
        self._followers.pop(follower, None)


class Streams:
    """The streams that an endpoint publishes, by (topic, key)."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._streams: dict[StreamName, Stream] = {}
        self._senders: dict[StreamSender, None] = {}
        self.gaps = 0  # told to followers

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams.values())

    def get(self, name: StreamName) -> Stream | None:
        """The stream of that name, None when it is not published (any more)."""
        return self._streams.get(name)

    def publish(
        self, topic: str, key: str, cursor: int, events_max: int | None, bytes_max: int | None, roles: frozenset[str]
    ) -> Stream:
        """Begin a stream. Raises BusConfigError for a name that is taken, Busy at `streams_max`."""
        limits = self._limits
        if (topic, key) in self._streams:
            raise BusConfigError(f"stream {topic}/{key} is published already: publish it once")
        if len(self._streams) >= limits.streams_max:
            raise Busy(
                f"expected at most {limits.streams_max} streams, found as many: withdraw some",
                retry_after_ms=limits.retry_after_ms,
            )
        stream = self._streams[topic, key] = Stream(
            topic, key, cursor,
            limits.stream_events_max if events_max is None else events_max,
            limits.stream_bytes_max if bytes_max is None else bytes_max,
            roles, limits.stream_event_bytes_max,
        )  # fmt: skip
        for sender in list(self._senders):
            sender.published(stream)
        return stream

    def withdraw(self, stream: Stream) -> None:
        """Publish it no more; its followers wait until somebody does again."""
        if self._streams.get((stream.topic, stream.key)) is stream:
            del self._streams[stream.topic, stream.key]
        for sender in list(self._senders):
            sender.withdrawn(stream)

    def join(self, sender: "StreamSender") -> None:
        """Tell a link's sender of streams that are published later."""
        self._senders[sender] = None

    def leave(self, sender: "StreamSender") -> None:
        """Tell it no more."""
        self._senders.pop(sender, None)


class Follower:
    """One link's following of one stream, at the publisher."""

    __slots__ = ("_sender", "confirm", "limit", "name", "next", "number", "progress_at", "received", "role", "stream")

    def __init__(self, sender: "StreamSender", follow: Follow, role: str) -> None:
        self._sender = sender
        self.role = role
        self.name = (follow.topic, follow.key)
        self.number = follow.number
        self.next = self.received = follow.cursor
        self.limit = follow.limit
        self.stream: Stream | None = None
        self.confirm = True  # an answer is owed even when there is no event
        self.progress_at = 0.0

    def wake(self) -> None:
        """Something may have become sendable."""
        if self.ready:
            self._sender.wake(self)

    @property
    def ready(self) -> bool:
        """True when `take` would give something."""
        stream = self.stream
        return stream is not None and (
            self.confirm or self.next > stream.next or self.next < min(self.limit, stream.next)
        )

    def take(self, now: float, events_max: int, bytes_max: int) -> Envelope | None:
        """The next envelope of this following."""
        stream = self.stream
        if stream is None or not self.ready:
            return None
        topic, key = self.name
        self.confirm = False
        if self.next <= self.received:
            self.progress_at = now
        if not stream.first <= self.next <= stream.next:
            first, self.next = self.next, stream.first
            self.received = min(self.received, self.next)
            return StreamGap(topic, key, self.number, first, self.next)
        payloads = stream.slice(self.next, min(events_max, max(0, self.limit - self.next)), bytes_max)
        batch = StreamBatch(topic, key, self.number, self.next, payloads)
        self.next += len(payloads)
        return batch


class StreamSender:
    """What one link's peer follows here."""

    def __init__(self, limits: Limits, streams: Streams) -> None:
        self._limits = limits
        self._streams = streams
        self._followers: dict[StreamName, Follower] = {}
        self._ready: dict[Follower, None] = {}
        self.ready: Mapping[Follower, None] = self._ready
        """The followers to whom something may be sent; the mapping itself, which stays the same."""
        self.on_ready: Callable[[], None] = lambda: None
        """Called when something became sendable outside the link's own turn."""

    def __bool__(self) -> bool:
        return bool(self._ready)

    def __len__(self) -> int:
        return len(self._followers)

    def follow(self, follow: Follow, role: str) -> str:
        """The peer follows a stream, anew or from elsewhere. Returns why not: "" when it may."""
        name = (follow.topic, follow.key)
        known = self._followers.get(name)
        if known is not None and follow.number <= known.number:
            return ""  # a repeat
        if known is not None:
            self._forget(known)
        if not follow.limit:
            return ""
        if len(self._followers) >= self._limits.streams_max:
            return "streams_full"
        stream = self._streams.get(name)
        if stream is not None and role not in stream.roles:
            return "stream_forbidden"
        follower = self._followers[name] = Follower(self, follow, role)
        self._streams.join(self)
        if stream is not None:
            self._attach(follower, stream)
        return ""

    def credit(self, credit: StreamCredit, now: float) -> None:
        """The follower told what it has and may be sent; one that claims too much misses events of its own only."""
        follower = self._followers.get((credit.topic, credit.key))
        if follower is None or follower.number != credit.number:
            return  # a late word of an earlier following
        if credit.received > follower.received:
            follower.received = credit.received
            follower.next = max(follower.next, credit.received)
            follower.progress_at = now
        follower.limit = max(follower.limit, credit.limit)
        follower.wake()

    def published(self, stream: Stream) -> None:
        """A stream is there now that the peer may have been waiting for."""
        follower = self._followers.get((stream.topic, stream.key))
        if follower is None or follower.stream is not None:
            return
        if follower.role in stream.roles:
            self._attach(follower, stream)
        else:
            self._forget(follower)

    def withdrawn(self, stream: Stream) -> None:
        """The stream is gone: the peer waits for another one of the name."""
        follower = self._followers.get((stream.topic, stream.key))
        if follower is not None and follower.stream is stream:
            follower.stream = None
            follower.confirm = True
            self._ready.pop(follower, None)
            stream.detach(follower)

    def wake(self, follower: Follower) -> None:
        """This follower has something to send."""
        idle = not self._ready
        self._ready[follower] = None
        if idle:
            self.on_ready()

    def take(self, now: float, bytes_max: int) -> Envelope | None:
        """The next envelope, each follower in its turn."""
        while self._ready:
            follower = next(iter(self._ready))
            del self._ready[follower]
            envelope = follower.take(now, self._limits.stream_batch, bytes_max)
            if follower.ready:
                self._ready[follower] = None
            if envelope is not None:
                self._streams.gaps += isinstance(envelope, StreamGap)
                return envelope
        return None

    @property
    def waiting(self) -> bool:
        """True while events are on their way that were not confirmed."""
        return bool(self._followers) and any(one.received < one.next for one in self._followers.values())

    def tick(self, now: float) -> int:
        """Send again what was not confirmed for `retransmit_ms`; returns for how many streams."""
        again = 0
        for follower in self._followers.values():
            if follower.received < follower.next and now - follower.progress_at >= self._limits.retransmit_ms / 1000:
                follower.next = follower.received
                follower.progress_at = now
                follower.wake()
                again += 1
        return again

    def clear(self) -> None:
        """The link is down: the peer follows anew when it is back."""
        for follower in list(self._followers.values()):
            self._forget(follower)
        self._streams.leave(self)

    def _attach(self, follower: Follower, stream: Stream) -> None:
        follower.stream = stream
        stream.attach(follower)
        follower.wake()

    def _forget(self, follower: Follower) -> None:
        del self._followers[follower.name]
        self._ready.pop(follower, None)
        if follower.stream is not None:
            follower.stream.detach(follower)
