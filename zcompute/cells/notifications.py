"""Following a cell's notifications over the bus: every one, in order per partition, from a cursor on.

The owner of a partition streams what commits; what lies between a cursor and the beginning of a stream is read from
the cell's table, page by page, through any conductor. Every conductor is followed for every partition, so that nothing
need be known of who owns what: only owners publish.
"""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gevent
import msgspec
from gevent.lock import BoundedSemaphore

from zcompute.bus import Endpoint, Event, Link
from zcompute.bus.errors import BusError, LinkDown
from zcompute.bus.following import StreamEvents, StreamSkip
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.instances import NotificationHeadsReply, NotificationsReply, NotificationsRequest
from zcompute.objects.methods import NOTIFICATION_HEADS, NOTIFICATION_READ, STREAM_NOTIFICATIONS, TOPIC_MAP
from zcompute.objects.partition import PARTITIONS, PartitionMap

log = logging.getLogger(__name__)

PAGES_AT_ONCE = 8
PAGE_ROWS = 100
CALL_MS_MAX = 5000
RETRY_MS_MIN = 50
RETRY_MS_MAX = 2000

Take = Callable[[int, int, bytes], None]
Gap = Callable[[int, int, int], None]


class NotificationTail:
    """``take(partition, n, body)`` and ``gap(partition, first, last)`` are called in order for each partition, and may
    block. ``cursor`` is the last n by partition; missing ones are 0. ``seen`` is where to go on from another time.
    """

    def __init__(self, endpoint: Endpoint, cell: str, cursor: Mapping[int, int], take: Take, gap: Gap) -> None:
        self.cell = cell
        self.seen = {partition: cursor.get(partition, 0) for partition in range(PARTITIONS)}
        self.repeated = 0
        self._endpoint = endpoint
        self._take = take
        self._gap = gap
        self._locks = [BoundedSemaphore() for _ in range(PARTITIONS)]
        self._pages = BoundedSemaphore(PAGES_AT_ONCE)
        self._map_version = -1
        self._dialled: dict[str, tuple[tuple[str, str], Link]] = {}

    def start(self) -> None:
        """Follow at every conductor of the cell that is linked, and at those that come."""
        start_tails(self._endpoint, [self])

    def begin(self) -> None:
        """For start_tails."""
        endpoint = self._endpoint
        endpoint.on_link_up(self._follow)
        for link in endpoint.links(role="conductor", cell=self.cell):
            self._follow(link)

    def _follow(self, link: Link) -> None:
        peer = link.peer
        if peer is None or (peer.role, peer.cell) != ("conductor", self.cell):
            return
        for partition, n in self.seen.items():
            link.follow(STREAM_NOTIFICATIONS, str(partition), n + 1)

    def mapped(self, link: Link, event: Event) -> None:
        """For start_tails. Dial conductors that joined, at the place that the map names."""
        if link.peer is None or link.peer.cell != self.cell or event.version <= self._map_version:
            return
        self._map_version = event.version
        known = {each.peer.service_id for each in self._endpoint.links(cell=self.cell) if each.peer is not None}
        for info in _decode_map(event.payload).conductors.values():
            place = (info.address, info.public_key)
            former = self._dialled.get(info.service_id)
            if former is None and info.service_id in known:
                continue
            if former is not None and former[0] != place:
                self._endpoint.hang_up(former[1])
            if former is None or former[0] != place:
                try:
                    self._dialled[info.service_id] = (place, self._endpoint.dial(*place))
                except BusError as error:
                    log.warning("conductor not dialled peer=%s error=%s", info.service_id, error)

    # -- what comes -------------------------------------------------------------------------------------------------

    def happened(self, happening: StreamEvents | StreamSkip) -> None:
        """For start_tails."""
        partition = int(happening.key)
        with self._locks[partition]:
            if isinstance(happening, StreamSkip):
                self._catch_up(partition, happening.end - 1)
                return
            for n, body in enumerate(happening.payloads, happening.cursor):
                self._catch_up(partition, n - 1)
                if n > self.seen[partition]:
                    self._give(partition, n, body)
                else:
                    self.repeated += 1

    def _give(self, partition: int, n: int, body: bytes) -> None:
        self._take(partition, n, body)
        self.seen[partition] = n

    def _catch_up(self, partition: int, upto: int) -> None:
        """From the table, until ``upto`` was given or is known to be gone."""
        while self.seen[partition] < upto:
            with self._pages:
                page = self._page(partition, self.seen[partition])
            for row in page.rows:
                if row.n > self.seen[partition] + 1:
                    self._skip(partition, row.n - 1)
                self._give(partition, row.n, row.body)
            if not page.rows:
                if page.last_n > self.seen[partition]:
                    self._skip(partition, page.last_n)
                else:
                    gevent.sleep(RETRY_MS_MIN / 1000)  # a conductor whose database has not got so far

    def _skip(self, partition: int, last: int) -> None:
        self._gap(partition, self.seen[partition] + 1, last)
        self.seen[partition] = last

    def _page(self, partition: int, after_n: int) -> NotificationsReply:
        """Asks until somebody answers."""
        request = NotificationsRequest(partition=partition, after_n=after_n, limit=PAGE_ROWS)
        pause_ms = RETRY_MS_MIN
        while True:
            try:
                reply: NotificationsReply = ask_any(self._endpoint, self.cell, NOTIFICATION_READ, request, CALL_MS_MAX)
                return reply
            except BusError as error:
                log.info("notifications not read partition=%s error=%s", partition, error)
            gevent.sleep(pause_ms * random.uniform(0.5, 1.0) / 1000)
            pause_ms = min(pause_ms * 2, RETRY_MS_MAX)


def start_tails(endpoint: Endpoint, tails: Sequence[NotificationTail]) -> None:
    """Follow several cells over one endpoint, one tail each."""
    of_cell = {tail.cell: tail for tail in tails}

    def happened(link: Link, happening: StreamEvents | StreamSkip) -> None:
        tail = None if link.peer is None else of_cell.get(link.peer.cell)
        if tail is not None:
            tail.happened(happening)

    def mapped(link: Link, event: Event) -> None:
        for tail in tails:
            tail.mapped(link, event)

    endpoint.on_stream(STREAM_NOTIFICATIONS, happened)
    endpoint.on_event(TOPIC_MAP, mapped)
    for tail in tails:
        tail.begin()


def heads(endpoint: Endpoint, cell: str, timeout_ms: int) -> dict[int, int]:
    """The present end of every partition. Raises BusError."""
    reply: NotificationHeadsReply = ask_any(endpoint, cell, NOTIFICATION_HEADS, Empty(), timeout_ms)
    return dict(enumerate(reply.last_n))


def ask_any(endpoint: Endpoint, cell: str, method: Any, request: Any, timeout_ms: int) -> Any:
    """Ask any linked conductor of the cell. Raises BusError; LinkDown when none is linked."""
    links = [link for link in endpoint.links(role="conductor", cell=cell) if link.up]
    if not links:
        raise LinkDown(f"no conductor of cell {cell} is linked")
    return random.choice(links).call(method, request, timeout_ms=timeout_ms)


_decode_map = msgspec.msgpack.Decoder(PartitionMap).decode
