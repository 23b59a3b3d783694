"""Rows that have outlived their retention go, in bounded batches, through the lane of whoever owns their partition."""

import logging
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
    """A round, every ``round_s``, reads what is to go partition by partition, in pages of ``page_rows``,
    ``page_pause_ms`` apart, ``pages_max`` of a partition; what is more goes in the next."""

    round_s: float = 600.0
    page_rows: int = 500
    page_pause_ms: int = 200
    pages_max: int = 20
    commit_ms_max: int = 10_000


class Purge(Generic[T]):
    """``column`` is the time at which a row's retention began, None while it has not; the store has an index for it.
    Rows of the last ``retention_s`` stay."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        table: TableCodec[T],
        column: str,
        retention_s: float,
        settings: PurgeSettings = PurgeSettings(),
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._table = table
        self._column = column
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
        """What is to go of the owned partitions; returns how many rows went. Raises StoreError."""
        return sum(self._purge(partition) for partition in self._ledger.owned() if self._ledger.owns(partition))

    def _purge(self, partition: int) -> int:
        oldest_us = self._ledger.now_us() - self._retention_us
        rows = self._settings.page_rows
        purged = 0
        for _ in range(self._settings.pages_max):
            page = self._store.expired(self._table, partition, self._column, oldest_us, rows)
            if not page:
                break
            gone = self._delete(partition, [self._table.key_of(row) for row in page], oldest_us)
            purged += gone
            if gone < rows:  # it was the last page, or what is left of it must wait for the next round
                break
            gevent.sleep(self._settings.page_pause_ms / 1000)
        return purged

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
        began_us = None if row is None else getattr(row, self._column)
        return began_us is not None and began_us < oldest_us
