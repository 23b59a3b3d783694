"""Streams that we follow at a link's peer: in order, from a cursor on, with credit; see zcompute.bus.streams."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zcompute.bus.envelope import Envelope, Follow, StreamBatch, StreamCredit, StreamGap
from zcompute.bus.errors import Busy
from zcompute.bus.limits import Limits

StreamName = tuple[str, str]


@dataclass(frozen=True)
class StreamEvents:
    """Consecutive events of a stream, the first of them at `cursor`."""

    topic: str
    key: str
    cursor: int
    payloads: list[bytes]

    @property
    def end(self) -> int:
        """Cursor of the event after these: where to follow from another time."""
        return self.cursor + len(self.payloads)


@dataclass(frozen=True)
class StreamSkip:
    """The events from cursor `first` up to, not including, `end` will not come: the publisher does not have them.

    An `end` below `first` says that the stream began anew.
    """

    topic: str
    key: str
    first: int
    end: int


class Following:
    """A stream that we follow at a peer."""

    __slots__ = ("asked_at", "confirmed", "expected", "gaps", "handled", "limit", "name", "number", "said_at", "told")

    def __init__(self, name: StreamName, cursor: int) -> None:
        self.name = name
        self.number = 0  # rises each time that it is asked for: answers to an older question are dropped
        self.expected = self.handled = cursor
        self.limit = self.told = cursor
        self.confirmed = False
        self.gaps = 0
        self.asked_at = self.said_at = 0.0

    @property
    def waiting(self) -> int:
        """Events that arrived and that the application has not taken."""
        return self.expected - self.handled


@dataclass(frozen=True)
class Found:
    """What came of an envelope: something to tell the application, a question to send."""

    happening: StreamEvents | StreamSkip | None
    question: Follow | None


class StreamReceiver:
    """What is followed at one link's peer: the order is held here, and the credit given."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._followings: dict[StreamName, Following] = {}
        self._number = 0
        self.repeated = 0

    def __len__(self) -> int:
        return len(self._followings)

    @property
    def followings(self) -> Iterable[Following]:
        """Each stream that is followed."""
        return self._followings.values()

    @property
    def cursors(self) -> Mapping[StreamName, int]:
        """The event awaited next, by stream."""
        return {name: following.expected for name, following in self._followings.items()}

    def follow(self, topic: str, key: str, cursor: int, now: float) -> Follow:
        """Follow a stream from `cursor` on, or go to another place of it. Raises Busy at `streams_max`."""
        name = (topic, key)
        if name not in self._followings and len(self._followings) >= self._limits.streams_max:
            raise Busy(
                f"expected at most {self._limits.streams_max} streams followed on a link: leave some",
                retry_after_ms=self._limits.retry_after_ms,
            )
        following = self._followings[name] = Following(name, cursor)
        return self._ask(following, now)

    def unfollow(self, topic: str, key: str) -> Follow | None:
        """Follow it no more; None when it was not followed."""
        following = self._followings.pop((topic, key), None)
        if following is None:
            return None
        self._number += 1
        return Follow(topic, key, self._number, following.expected, 0)

    def reopen(self, now: float) -> list[Follow]:
        """The link is up: resume every stream where it stands."""
        return [self._ask(following, now) for following in self._followings.values()]

    def receive(self, envelope: StreamBatch | StreamGap, now: float) -> Found:
        """What an envelope brings that is new, or the question to send when something before it is missing."""
        following = self._followings.get((envelope.topic, envelope.key))
        if following is None or following.number != envelope.number:
            return Found(None, None)  # the answer to an older question
        if isinstance(envelope, StreamBatch):
            return self._receive_batch(following, envelope, now)
        return self._receive_gap(following, envelope, now)

    def _receive_batch(self, following: Following, batch: StreamBatch, now: float) -> Found:
        following.confirmed = True
        skip = following.expected - batch.cursor
        if skip < 0:
            return Found(None, self._ask(following, now))
        fresh = batch.payloads[skip : skip + max(0, following.limit - following.expected)]
        self.repeated += len(batch.payloads) - len(fresh)
        if not fresh:
            if batch.payloads:
                following.told = -1  # the publisher repeats itself: tell it again
            return Found(None, None)
        events = StreamEvents(batch.topic, batch.key, following.expected, fresh)
        following.expected += len(fresh)
        return Found(events, None)

    def _receive_gap(self, following: Following, gap: StreamGap, now: float) -> Found:
        if gap.first != following.expected:
            return Found(None, self._ask(following, now) if gap.first > following.expected else None)
        if gap.end == gap.first:
            return Found(None, None)
        following.confirmed = True
        following.gaps += 1
        skip = StreamSkip(gap.topic, gap.key, gap.first, gap.end)
        following.expected = gap.end
        following.told = -1
        if gap.end > gap.first:
            return Found(skip, None)
        following.handled = following.limit = gap.end
        return Found(skip, self._ask(following, now))  # the stream began anew

    def handled(self, topic: str, key: str, cursor: int, now: float) -> StreamCredit | None:
        """The application has taken the events below `cursor`; the credit to send when half of it is used up."""
        following = self._followings.get((topic, key))
        if following is None or not following.handled < cursor <= following.expected:
            return None
        following.handled = cursor
        if following.limit - cursor > self._limits.stream_credit // 2:
            return None  # what was received is told by the tick
        return self._credit(following, now)

    def tick(self, now: float) -> list[Envelope]:
        """Ask again what was not answered; tell again what is had, where events may be held for want of it."""
        said: list[Envelope] = []
        patience, received = self._limits.stream_probe_ms, self._limits.received_ack_ms
        for following in self._followings.values():
            if not following.confirmed:
                if now - following.asked_at >= patience / 1000:
                    said.append(self._ask(following, now))
            elif now - following.said_at >= (patience if following.told == following.expected else received) / 1000:
                said.append(self._credit(following, now))
        return said

    def _ask(self, following: Following, now: float) -> Follow:
        self._number += 1
        following.number = self._number
        following.confirmed = False
        following.asked_at = following.said_at = now
        following.told = following.expected
        following.limit = max(following.expected, following.handled + self._limits.stream_credit)
        topic, key = following.name
        return Follow(topic, key, following.number, following.expected, following.limit)

    def _credit(self, following: Following, now: float) -> StreamCredit:
        following.said_at = now
        following.told = following.expected
        following.limit = max(following.limit, following.handled + self._limits.stream_credit)
        topic, key = following.name
        return StreamCredit(topic, key, following.number, following.expected, following.limit)
