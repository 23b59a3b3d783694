"""The owned partitions' newest notifications in memory, as streams on the bus; older ones are read from the table.

A stream's cursor is n, so a follower resumes by (partition, n) at whoever owns the partition then.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

from zcompute.bus import Endpoint
from zcompute.bus.errors import BusError, NotOwner
from zcompute.bus.streams import Stream
from zcompute.conductor.change import Note
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.notifiers.settings import NotifierSettings
from zcompute.conductor.notifiers.sink import Told
from zcompute.db.store import Store
from zcompute.db.tables import NOTIFICATIONS
from zcompute.objects.methods import STREAM_NOTIFICATIONS, STREAM_ROLES

log = logging.getLogger(__name__)


class Feed:
    """One an incarnation. ``on_told`` callbacks hear of each partition that has something new."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger, store: Store, cell: str, settings: NotifierSettings) -> None:
        self._endpoint = endpoint
        self._ledger = ledger
        self._store = store
        self._cell = cell
        self._settings = settings
        self._streams: dict[int, tuple[int, Stream]] = {}  # owner_epoch, stream
        self._listeners: list[Callable[[int], None]] = []
        self.told = 0  # since the start

    def start(self) -> None:
        """Hear what commits."""
        self._ledger.on_told(self._told)

    def stop(self) -> None:
        """Publish nothing any more."""
        self.lost(list(self._streams))

    def on_told(self, callback: Callable[[int], None]) -> None:
        """Call with a partition, without yielding, when it has something new."""
        self._listeners.append(callback)

    def gained(self, partitions: Iterable[int]) -> list[int]:
        """Publish these, from the next n on; returns those that are owned."""
        owned = []
        for partition in partitions:
            try:
                epoch, last_n = self._ledger.owner_epoch(partition), self._ledger.last_n(partition)
                known = self._streams.get(partition)
                if known is None or known[0] != epoch:
                    self.lost([partition])
                    self._streams[partition] = (epoch, self._publish(partition, last_n + 1))
                owned.append(partition)
            except NotOwner:
                continue
            except BusError as error:
                log.error("notifications not published partition=%s error=%s", partition, error)
        return owned

    def lost(self, partitions: Iterable[int]) -> None:
        """These are others' to publish."""
        for partition in partitions:
            known = self._streams.pop(partition, None)
            if known is not None:
                self._endpoint.withdraw_stream(known[1])

    def head(self, partition: int) -> int | None:
        """The last n that has committed, None for a partition that is not published here."""
        known = self._streams.get(partition)
        return None if known is None else known[1].next - 1

    def peek(self, partition: int, n: int) -> bytes | None:
        """A notification's body, None where it is not in memory (any more)."""
        known = self._streams.get(partition)
        if known is None or not known[1].first <= n < known[1].next:
            return None
        return known[1].slice(n, 1, 0)[0]

    @property
    def followers(self) -> int:
        """How many links follow; a tail follows every partition."""
        return max((stream.followers for _, stream in self._streams.values()), default=0)

    def read(self, partition: int, after_n: int, rows_max: int) -> list[Told]:
        """The next notifications behind ``after_n``, from memory where they are there. Raises StoreError."""
        known = self._streams.get(partition)
        if known is not None and known[1].first <= after_n + 1:
            payloads = known[1].slice(after_n + 1, rows_max, self._settings.page_bytes_max)
            return [Told(self._cell, partition, n, body) for n, body in enumerate(payloads, after_n + 1)]
        limit = min(rows_max, self._settings.page_rows_max)
        rows = self._store.scan(NOTIFICATIONS, partitions=[partition], limit=limit, after=(partition, after_n))
        return [Told(self._cell, partition, row.n, row.body) for row in rows]

    def _publish(self, partition: int, cursor: int) -> Stream:
        return self._endpoint.publish_stream(
            STREAM_NOTIFICATIONS,
            str(partition),
            roles=STREAM_ROLES[STREAM_NOTIFICATIONS],
            cursor=cursor,
            events_max=self._settings.recent_rows_max,
            bytes_max=self._settings.recent_bytes_max,
        )

    def _told(self, partition: int, first_n: int, notes: Sequence[Note]) -> None:
        known = self._streams.get(partition)
        if known is None:
            return
        self.told += len(notes)
        stream = known[1]
        if first_n > stream.next:  # should never be: what lies between is read from the table
            log.error("notifications skipped in memory partition=%s from=%s to=%s", partition, stream.next, first_n)
            self._endpoint.withdraw_stream(stream)
            stream = self._publish(partition, first_n)
            self._streams[partition] = (known[0], stream)
        for n, note in enumerate(notes, first_n):
            if n >= stream.next:
                stream.append(note.body)
        for callback in self._listeners:
            callback(partition)
