"""Reads rows on first touch: all keys wanted since the last read go into one fetch a table."""

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from gevent.event import Event

from zcompute.conductor.cache import RowKey
from zcompute.conductor.settings import LedgerLimits
from zcompute.db.errors import ConnectionLost, DatabaseBusy
from zcompute.db.store import Store
from zcompute.db.tables import Key, TableCodec
from zcompute.log import REPEATED

log = logging.getLogger(__name__)


class Loaded:
    """The answer for one table: rows by key (absent keys are missing), and the keys that cannot be read."""

    __slots__ = ("failed", "rows", "table", "wanted")

    def __init__(self, table: TableCodec[Any], wanted: dict[Key, set[object]]) -> None:
        self.table = table
        self.wanted = wanted
        self.rows: dict[Key, Any] = {}
        self.failed: dict[Key, Exception] = {}


class Loader:
    """``token`` says for whom a key is wanted (an ownership of a partition); it comes back with the rows, so that
    what was read for an ownership that has ended is thrown away.

    One read at a time, and only of rows that are ``missing`` when it begins: such a row cannot come into the cache,
    change, commit and be evicted before the read ends, so what was read is never older than what was committed.
    """

    def __init__(
        self,
        store: Store,
        limits: LedgerLimits,
        missing: Callable[[object, RowKey], bool],
        loaded: Callable[[list[Loaded]], None],
    ) -> None:
        self._store = store
        self._limits = limits
        self._missing = missing
        self._loaded = loaded
        self._wanted: dict[str, tuple[TableCodec[Any], dict[Key, set[object]]]] = {}
        self._wake = Event()
        self.lost_since_s = 0.0  # since when the database has answered no read; 0.0: it does

    def want(self, token: object, table: TableCodec[Any], key: Key) -> None:
        """Read this row with the next fetch, if it is still missing then."""
        wanted = self._wanted.get(table.name)
        if wanted is None:
            wanted = self._wanted[table.name] = (table, {})
        wanted[1].setdefault(key, set()).add(token)
        self._wake.set()

    def run(self) -> None:
        """The greenlet: fetch what is wanted, hand it over, again."""
        while True:
            self._wake.wait()
            self._wake.clear()
            wanted, self._wanted = self._wanted, {}
            results = [Loaded(table, self._still_missing(table, keys)) for table, keys in wanted.values()]
            for result in results:
                keys = list(result.wanted)
                for start in range(0, len(keys), self._limits.fetch_keys_max):
                    self._fetch(result, keys[start : start + self._limits.fetch_keys_max])
            self._loaded(results)

    def _still_missing(self, table: TableCodec[Any], keys: dict[Key, set[object]]) -> dict[Key, set[object]]:
        missing: dict[Key, set[object]] = {}
        for key, tokens in keys.items():
            left = {token for token in tokens if self._missing(token, (table.name, key))}
            if left:
                missing[key] = left
        return missing

    def _fetch(self, result: Loaded, keys: Sequence[Key]) -> None:
        pause_ms = float(self._limits.retry_ms_min)
        while True:
            try:
                result.rows.update(self._store.fetch(result.table, keys))
                self.lost_since_s = 0.0
                return
            except (ConnectionLost, DatabaseBusy) as error:
                self.lost_since_s = self.lost_since_s or time.monotonic()
                log.info("rows not read table=%s keys=%s error=%s", result.table.name, len(keys), error, extra=REPEATED)
                gevent.sleep(pause_ms / 1000 * random.uniform(0.5, 1.0))
                pause_ms = min(pause_ms * 2, self._limits.retry_ms_max)
            except Exception as error:  # one unreadable row must not hide the others: narrow it down
                if len(keys) == 1:
                    log.exception("row cannot be read table=%s key=%s", result.table.name, keys[0])
                    result.failed[keys[0]] = error
                    return
                middle = len(keys) // 2
                self._fetch(result, keys[:middle])
                self._fetch(result, keys[middle:])
                return
