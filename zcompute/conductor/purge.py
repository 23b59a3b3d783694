"""Rows that have outlived their retention go, in bounded batches, through the lane of whoever owns their partition."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import gevent

from zcompute.bus.errors import BusError
from zcompute.conductor.change import Change
from zcompute.conductor.ledger import Ledger
from zcompute.db.store import Store
from zcompute.db.tables import Key, TableCodec
from zcompute.objects.base import VersionedObject

log = logging.getLogger(__name__)

T = TypeVar("T", bound=VersionedObject)


@dataclass(frozen=True)
class PurgeSettings:
    """A round reads the owned rows in pages of ``page_rows``, ``page_pause_ms`` apart, and begins every ``round_s``."""

    round_s: float = 600.0
    page_rows: int = 500
    page_pause_ms: int = 200
    commit_ms_max: int = 10_000


class Purge(Generic[T]):
    """``made_at_us`` says when a row's retention began; rows of the last ``retention_s`` stay."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        table: TableCodec[T],
        made_at_us: Callable[[T], float],
        retention_s: float,
        settings: PurgeSettings = PurgeSettings(),
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._table = table
        self._made_at_us = made_at_us
        self._retention_us = int(retention_s * 1e6)
        self._settings = settings
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Begin; the first round comes after ``round_s``."""
        self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        """End."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _loop(self) -> None:
        while True:
            gevent.sleep(self._settings.round_s)
            try:
                purged = self.round()
            except Exception as error:  # noqa: BLE001  # the database may be away: the next round tries again
                log.info("purge broken off table=%s error=%s: %s", self._table.name, type(error).__name__, error)
                continue
            if purged:
                log.info("rows purged table=%s count=%s", self._table.name, purged)

    def round(self) -> int:
        """All pages of the owned rows; returns how many went. Raises StoreError."""
        purged = 0
        after: Key | None = None
        rows = self._settings.page_rows
        while owned := self._ledger.owned():
            page = self._store.scan(self._table, partitions=owned, limit=rows, after=after)
            purged += self._purge(page)
            if len(page) < rows:
                break
            after = self._table.key_of(page[-1])
            gevent.sleep(self._settings.page_pause_ms / 1000)
        return purged

    def _purge(self, page: list[T]) -> int:
        oldest_us = self._ledger.now_us() - self._retention_us
        keys: dict[int, list[Key]] = {}
        for row in page:
            if self._made_at_us(row) < oldest_us:
                keys.setdefault(self._table.home_of(row), []).append(self._table.key_of(row))
        return sum(self._delete(partition, wanted, oldest_us) for partition, wanted in keys.items())

    def _delete(self, partition: int, keys: list[Key], oldest_us: int) -> int:
        """One decision: each row is looked at once more, as the owner knows it."""

        def decide(change: Change) -> int:
            expired = [key for key in keys if self._expired(change, key, oldest_us)]
            for key in expired:
                change.delete(self._table, key)
            return len(expired)

        named = [(self._table, key) for key in keys]
        try:
            return self._ledger.commit(partition, named, decide, timeout_ms=self._settings.commit_ms_max)
        except BusError as error:  # lost, or busy: the next round finds what is left
            log.info("rows not purged table=%s partition=%s error=%s", self._table.name, partition, error)
            return 0

    def _expired(self, change: Change, key: Key, oldest_us: int) -> bool:
        """Whether the row goes, as the owner knows it."""
        row = change.get(self._table, key)
        return row is not None and self._made_at_us(row) < oldest_us
