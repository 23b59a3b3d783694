"""One notifier: gives each owned partition's notifications to its sink, in order, and keeps the cursor.

The cursor goes through the lane after the sink's success, so a delivery is repeated after a loss and never left out. A
sink that fails holds up the partition whose delivery failed; others go on, as far as they have workers.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Iterable

import gevent
import msgspec

from zcompute.bus.errors import NotOwner
from zcompute.conductor.change import Change
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.notifiers.feed import Feed
from zcompute.conductor.notifiers.settings import NotifierSettings
from zcompute.conductor.notifiers.sink import Sink
from zcompute.db.tables import NOTIFIER_CURSORS
from zcompute.objects.base import unpack
from zcompute.objects.notification import Notification, NotifierCursor

log = logging.getLogger(__name__)


class _Place:
    """How far a partition is. ``n`` None: the cursor has not been read."""

    __slots__ = ("body", "failures", "n", "partition", "queued", "saved_at", "saved_n", "waiting")

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.n: int | None = None
        self.body = b""  # the first of the delivery under way, the last of one that is done
        self.saved_n = 0
        self.saved_at = 0.0
        self.failures = 0
        self.queued = False
        self.waiting = False  # for its next try


class Lag(msgspec.Struct):
    """How far a notifier is behind what has committed, in the partitions owned here."""

    partitions: int = 0
    failing: int = 0  # partitions whose last delivery failed
    notifications: int = 0  # not taken by the sink yet
    seconds: float = 0.0  # age of the oldest of them, as far as one is known here


class Notifier:
    """``delivered``, ``failed`` and ``gaps`` count since the start."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        cell: str,
        ledger: Ledger,
        feed: Feed,
        settings: NotifierSettings,
        batch_max: int,
    ) -> None:
        self.name = name
        self.delivered = 0
        self.failed = 0
        self.gaps = 0
        self._sink = sink
        self._cell = cell
        self._ledger = ledger
        self._feed = feed
        self._settings = settings
        self._batch_max = batch_max
        self._places: dict[int, _Place] = {}
        self._queue: deque[_Place] = deque()
        self._workers: set[gevent.Greenlet] = set()
        self._timers: dict[_Place, gevent.Greenlet] = {}
        self._stopped = False

    def gained(self, partitions: Iterable[int]) -> None:
        """Go on from these partitions' cursors."""
        for partition in partitions:
            place = self._places[partition] = _Place(partition)
            self._queue_up(place)

    def lost(self, partitions: Iterable[int]) -> None:
        """Others go on."""
        for partition in partitions:
            self._places.pop(partition, None)

    def told(self, partition: int) -> None:
        """There is something new."""
        place = self._places.get(partition)
        if place is not None and not place.waiting:
            self._queue_up(place)

    def lag(self) -> Lag:
        """Computed now, from memory alone."""
        lag = Lag(partitions=len(self._places))
        now_us = self._ledger.now_us()
        for place in self._places.values():
            lag.failing += bool(place.failures)
            head = self._feed.head(place.partition)
            if head is None or place.n is None or place.n >= head:
                continue
            lag.notifications += head - place.n
            body = self._feed.peek(place.partition, place.n + 1) or place.body
            if body:
                since_us = unpack(body, Notification).created_at_us
                lag.seconds = max(lag.seconds, (now_us - since_us) / 1e6)
        return lag

    def stop(self) -> None:
        """End where it is."""
        self._stopped = True
        self._places.clear()
        self._queue.clear()
        gevent.killall([*self._workers, *self._timers.values()], block=False)
        self._sink.close()

    # -- workers ----------------------------------------------------------------------------------------------------

    def _queue_up(self, place: _Place) -> None:
        if self._stopped or place.queued:
            return
        place.queued = True
        self._queue.append(place)
        if len(self._workers) < self._settings.workers_max:
            self._workers.add(gevent.spawn(self._work))

    def _work(self) -> None:
        try:
            while self._queue:
                place = self._queue.popleft()
                if self._places.get(place.partition) is place:
                    self._work_on(place)
        finally:  # without a yield since the queue was empty: whoever queues up now starts another
            self._workers.discard(gevent.getcurrent())

    def _work_on(self, place: _Place) -> None:
        try:
            with gevent.Timeout(self._settings.deliver_s_max):
                more = self._turn(place)
        except NotOwner:
            if self._places.get(place.partition) is place:
                del self._places[place.partition]
        except (Exception, gevent.Timeout) as error:  # noqa: BLE001  # a sink may raise anything: it comes again
            self._put_off(place, error)
        else:
            place.failures = 0
            place.queued = False
            if more:
                self._queue_up(place)

    def _put_off(self, place: _Place, error: BaseException) -> None:
        """News do not shorten the pause."""
        self.failed += 1
        settings = self._settings
        pause_ms = min(settings.retry_ms_max, settings.retry_ms_min << min(place.failures, 12))
        place.failures += 1
        log.log(
            logging.INFO if place.failures < 3 else logging.WARNING,
            "delivery failed notifier=%s partition=%s after_n=%s failures=%s retry_ms=%s error=%s: %s",
            self.name, place.partition, place.n, place.failures, pause_ms, type(error).__name__, error,
        )  # fmt: skip
        place.queued, place.waiting = False, True
        timer = gevent.spawn_later(pause_ms * random.uniform(0.7, 1.0) / 1000, self._try_again, place)
        self._timers[place] = timer
        timer.rawlink(lambda _: self._timers.pop(place, None))

    def _try_again(self, place: _Place) -> None:
        place.waiting = False
        if self._places.get(place.partition) is place:
            self._queue_up(place)

    # -- one turn of a partition ------------------------------------------------------------------------------------

    def _turn(self, place: _Place) -> bool:
        """Deliver the next batch; True when there is more. Raises what the sink raises, NotOwner, StoreError."""
        partition = place.partition
        if place.n is None:
            place.n = place.saved_n = self._read_cursor(partition)
        head = self._feed.head(partition)
        if head is None:
            return False
        if place.n < head:
            self._deliver(place, place.n, head)
        head = self._feed.head(partition) or 0
        more = place.n < head
        now = time.monotonic()
        if place.n > place.saved_n and (not more or now - place.saved_at >= self._settings.cursor_save_s):
            self._save_cursor(partition, place.n)
            place.saved_n, place.saved_at = place.n, now
        return more or place.n < (self._feed.head(partition) or 0)

    def _deliver(self, place: _Place, after_n: int, head: int) -> None:
        batch = self._feed.read(place.partition, after_n, self._batch_max)
        upto = batch[0].n - 1 if batch else head
        if upto > after_n:
            log.warning("gap notifier=%s partition=%s from=%s to=%s", self.name, place.partition, after_n + 1, upto)
            self._sink.gap(self._cell, place.partition, after_n + 1, upto)
            self.gaps += 1
            place.n = upto
        if batch:
            place.body = batch[0].body
            self._sink.deliver(batch)
            place.body = batch[-1].body
            self.delivered += len(batch)
            place.n = batch[-1].n

    def _read_cursor(self, partition: int) -> int:
        """A new notifier begins with what is told from now on; that is kept at once."""

        def decide(change: Change) -> int:
            row = change.get(NOTIFIER_CURSORS, (partition, self.name))
            if row is None:
                row = NotifierCursor(
                    partition_id=partition,
                    notifier=self.name,
                    n=self._ledger.last_n(partition),
                    updated_at_us=change.now_us,
                )
                change.put(NOTIFIER_CURSORS, row)
            return row.n

        return self._ledger.commit(
            partition, [(NOTIFIER_CURSORS, (partition, self.name))], decide, timeout_ms=self._settings.commit_ms_max
        )

    def _save_cursor(self, partition: int, n: int) -> None:
        def decide(change: Change) -> None:
            row = change.get(NOTIFIER_CURSORS, (partition, self.name))
            if row is not None and row.n < n:
                change.put(NOTIFIER_CURSORS, msgspec.structs.replace(row, n=n, updated_at_us=change.now_us))

        self._ledger.commit(
            partition, [(NOTIFIER_CURSORS, (partition, self.name))], decide, timeout_ms=self._settings.commit_ms_max
        )
