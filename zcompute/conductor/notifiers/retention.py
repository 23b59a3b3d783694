"""How long notifications are kept: by hours and by rows of a partition, deleted in bounded steps by the owner."""

import logging

import gevent

from zcompute.bus.errors import BusError
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.notifiers.settings import NotifierSettings
from zcompute.config import NotificationsConfig
from zcompute.db.errors import StoreError
from zcompute.db.store import Store
from zcompute.db.tables import NOTIFICATIONS
from zcompute.objects.notification import StoredNotification

log = logging.getLogger(__name__)

HOUR_US = 3_600_000_000


def last_to_go(page: list[StoredNotification], last_n: int, oldest_us: int, rows_max: int) -> int:
    """The last n of this page of the oldest that is not kept, 0 when all are. Pure."""
    gone = 0
    for row in page:
        if row.created_at_us >= oldest_us and last_n - row.n < rows_max:
            break
        gone = row.n
    return gone


class Retention:
    """The greenlet that deletes. Whoever is behind then is told a gap."""

    def __init__(self, ledger: Ledger, store: Store, config: NotificationsConfig, settings: NotifierSettings) -> None:
        self._ledger = ledger
        self._store = store
        self._config = config
        self._settings = settings
        self._greenlet: gevent.Greenlet | None = None
        self.purged = 0  # rows, since the start

    def start(self) -> None:
        """Begin."""
        self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        """End."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _loop(self) -> None:
        while True:
            gevent.sleep(self._config.purge_every_s)
            for partition in self._ledger.owned():
                try:
                    self.purge(partition)
                except (StoreError, BusError) as error:  # lost meanwhile, or the database is away: the next round
                    log.info("notifications not purged partition=%s error=%s", partition, error)

    def purge(self, partition: int) -> int:
        """Delete what is not kept of one partition, at most purge_steps_max steps; returns how many rows went.

        Raises StoreError, NotOwner, Busy, DeadlineExceeded.
        """
        purged = 0
        oldest_us = self._ledger.now_us() - int(self._config.retention_hours * HOUR_US)
        for _ in range(self._settings.purge_steps_max):
            rows = 1 if not purged else self._settings.purge_rows_max
            page = self._store.scan(NOTIFICATIONS, partitions=[partition], limit=rows)
            last = last_to_go(page, self._ledger.last_n(partition), oldest_us, self._config.retention_rows_max)
            if not last:
                break
            first = page[0].n
            self._ledger.commit(
                partition,
                [],
                lambda change, first=first, last=last: change.purge(first, last),  # type: ignore[misc]  # binds them
                timeout_ms=self._settings.commit_ms_max,
            )
            purged += last - first + 1
            self.purged += last - first + 1
            gevent.sleep(self._settings.purge_pause_ms / 1000)
        if purged:
            log.info("notifications purged partition=%s rows=%s", partition, purged)
        return purged
