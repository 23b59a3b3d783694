"""A ledger on the fake database with a feed, sinks that fail on demand, and an endpoint that only publishes."""

from collections.abc import Sequence
from typing import Any

from tests.unit.conductor.ledger_world import World
from zcompute.bus.limits import Limits
from zcompute.bus.streams import Stream, Streams
from zcompute.conductor.ledger import Change
from zcompute.conductor.notifiers.feed import Feed
from zcompute.conductor.notifiers.notifier import Notifier
from zcompute.conductor.notifiers.settings import NotifierSettings
from zcompute.conductor.notifiers.sink import Told
from zcompute.objects.base import unpack
from zcompute.objects.notification import Notification
from zcompute.objects.partition import PARTITIONS

QUICK = NotifierSettings(
    retry_ms_min=1, retry_ms_max=5, recent_rows_max=5, page_rows_max=4, cursor_save_s=0.0, purge_pause_ms=0,
    purge_rows_max=3,
)  # fmt: skip


class Publisher:
    """The publishing side of an endpoint."""

    def __init__(self) -> None:
        self.streams = Streams(Limits())

    def publish_stream(self, topic: str, key: str, **options: Any) -> Stream:
        roles = frozenset(options.pop("roles"))
        return self.streams.publish(topic, key, options["cursor"], options["events_max"], options["bytes_max"], roles)

    def withdraw_stream(self, stream: Stream) -> None:
        self.streams.withdraw(stream)


class ListSink:
    """Keeps what it was given. ``broken`` partitions fail; ``fail_next`` deliveries fail after they were taken."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.gaps: list[tuple[int, int, int]] = []
        self.broken: set[int] = set()
        self.fail_next = 0
        self.closed = False

    def deliver(self, batch: Sequence[Told]) -> None:
        if batch[0].partition in self.broken:
            raise OSError("no route")
        self.told += batch
        if self.fail_next:
            self.fail_next -= 1
            raise OSError("the answer was lost")

    def gap(self, cell: str, partition: int, first: int, last: int) -> None:
        self.gaps.append((partition, first, last))

    def close(self) -> None:
        self.closed = True

    def numbers(self, partition: int) -> list[int]:
        return [told.n for told in self.told if told.partition == partition]


class Outlets:
    """One incarnation's."""

    def __init__(self, world: World | None = None, settings: NotifierSettings = QUICK) -> None:
        self.world = world or World()
        self.settings = settings
        self.publisher = Publisher()
        self.feed = Feed(self.publisher, self.world.ledger, self.world.store, "c1", settings)  # type: ignore[arg-type]
        self.feed.start()
        self.notifiers: list[Notifier] = []

    def notifier(self, name: str = "n", batch_max: int = 10) -> tuple[Notifier, ListSink]:
        sink = ListSink()
        made = Notifier(name, sink, "c1", self.world.ledger, self.feed, self.settings, batch_max)
        self.feed.on_told(made.told)
        self.notifiers.append(made)
        return made, sink

    def gain(self, partitions: Sequence[int] = range(PARTITIONS)) -> None:
        owned = self.feed.gained(partitions)
        for notifier in self.notifiers:
            notifier.gained(owned)

    def tell(self, partition: int, *names: str) -> None:
        """Commit notifications of these event types."""

        def decide(change: Change) -> None:
            for name in names:
                change.notify(Notification(event_type=name))

        self.world.ledger.commit(partition, [], decide, timeout_ms=2000)

    def close(self) -> None:
        for notifier in self.notifiers:
            notifier.stop()
        self.feed.stop()
        self.world.close()


def names(told: Sequence[Told]) -> list[str]:
    return [unpack(each.body, Notification).event_type for each in told]
