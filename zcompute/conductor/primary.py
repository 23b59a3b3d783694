"""The database of a conductor's cell: which of its servers is the primary, and the store and reads that are open on it.

The primary is whichever configured server takes writes in the cell's highest term (zcompute.db.failover.choice). It is
looked for all the time, more often while the present one does not answer. When it is another one, or the present one
turns out to be of a former term, the life on it ends at once, and the next begins on a store and reads of the new one.
"""

import logging
from collections.abc import Callable
from urllib.parse import urlsplit

import gevent

from zcompute.config import DatabaseConfig
from zcompute.db.drivers import named_targets, open_reading, open_store
from zcompute.db.durability import REPLICATED
from zcompute.db.failover.choice import Choice, Sighting, choose_primary
from zcompute.db.failover.looking import Servers
from zcompute.db.replicas.reading import Reading
from zcompute.db.store import Store
from zcompute.db.url import refuse, urls_of
from zcompute.log import REPEATED
from zcompute.objects.conductor_stat import ConductorDatabaseStat

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at the servers
HURRY_S = 0.1  # while the primary does not answer


class CellDatabase:
    """``store`` and ``reading`` are there after ``open``; ``reopen`` replaces them. Used by one service."""

    def __init__(
        self, config: DatabaseConfig, cell: str, reread: Callable[[], DatabaseConfig] | None,
        on_loss: Callable[[str], None],
    ) -> None:  # fmt: skip
        """``reread`` gives the configuration as it is now, for passwords; ``on_loss`` gets why the present store is
        not to be used any more. Raises InvalidUrl."""
        self._config = config
        self._cell = cell
        self._reread = reread
        self._on_loss = on_loss
        self._urls = urls_of(config)
        targets = named_targets(self._urls, self._url_now)
        self._names = list(targets) or [urlsplit(self._urls[0]).path]
        if config.durability == REPLICATED and not any(one.acknowledges for one in config.replicas):
            raise refuse(self._urls[0], "durability replicated: expected a replica that acknowledges, found none")
        self._servers = Servers(targets) if len(targets) > 1 else None
        self._watching: gevent.Greenlet | None = None
        self._choice = Choice(None, 0)
        self._seen: dict[str, Sighting] = {}
        self._present = self._names[0]
        self._lost = ""  # why the present one is not to be used
        self.store: Store = self._open_store()
        self.reading: Reading = self._open_reading()

    # -- for the service ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Find the primary, begin to read there, and go on looking."""
        if self._servers is not None:
            self._look(self._servers)
            self.reopen()
            self._watching = gevent.spawn(self._watch, self._servers)
        self.reading.start()

    def stop(self) -> None:
        """End what is open."""
        if self._watching is not None:
            self._watching.kill(block=False)
        if self._servers is not None:
            self._servers.close()
        self.reading.stop()
        self.store.close()

    def reopen(self) -> bool:
        """Before a life: be on the primary of now. False: there is none to be on; ask again."""
        name = self._choice.name
        if name is None or name == self._present:
            return not self._lost or name is not None
        reading = self._watching is not None
        self.reading.stop()
        self.store.close()
        log.warning("primary changed from=%s to=%s term=%s", self._present, name, self._choice.term)
        self._present, self._lost = name, ""
        self.store, self.reading = self._open_store(), self._open_reading()
        if reading:
            self.reading.start()
        return True

    @property
    def moved(self) -> bool:
        """Whether the primary is another one than the store's."""
        return self._choice.name not in (None, self._present)

    def stat(self) -> ConductorDatabaseStat:
        """What is known of the primary."""
        seen = self._seen.get(self._present)
        problem = self._lost or ("" if seen is None else seen.problem or self._unmet(seen))
        return ConductorDatabaseStat(
            primary=self._present,
            servers=len(self._names),
            term=0 if seen is None else seen.term,
            durability=self._config.durability,
            ackers=-1 if seen is None else seen.ackers,
            ackers_known=sum(one.acknowledges for one in self._config.replicas),
            problem=problem,
        )

    # -- the watch ----------------------------------------------------------------------------------------------------

    def _watch(self, servers: Servers) -> None:
        while True:
            seen = self._seen.get(self._present)
            well = seen is not None and not seen.problem and seen.writable and not self._lost
            gevent.sleep(LOOK_S if well else HURRY_S)
            try:
                self._look(servers)
            except Exception:  # the watch must go on
                log.exception("servers not looked at")

    def _look(self, servers: Servers) -> None:
        seen = servers.look()
        present = None if self._lost else self._present
        choice = choose_primary(seen, self._cell, self._choice.term, present)
        self._seen = {one.name: one for one in seen}
        self._choice = choice
        if choice.name == self._present:
            self._lost = ""
            return
        here = self._seen[self._present]
        if choice.name is not None or (not here.problem and here.term < choice.term):
            if not self._lost:
                log.warning("primary lost name=%s reason=%s", self._present, choice.reason)
                self._lost = choice.reason
                self._on_loss(choice.reason)
            self._lost = choice.reason
            return
        log.info("no primary yet reason=%s", choice.reason, extra=REPEATED)

    def _unmet(self, seen: Sighting) -> str:
        """What of ``replicated`` does not hold at the primary."""
        if self._config.durability != REPLICATED or not seen.writable:
            return ""
        if seen.unmet:
            return f"nothing is acknowledged: {seen.unmet}"
        if seen.ackers == 0:
            return "nothing is acknowledged: no replica that may acknowledge is connected"
        known = len(self._names) - 1 - sum(not one.acknowledges for one in self._config.replicas)
        if seen.ackers > known:
            return f"{seen.ackers} replicas may acknowledge, {known} are configured to: promote would not ask them all"
        return ""

    # -- stores and reads ---------------------------------------------------------------------------------------------

    def _url_now(self, at: int) -> str:
        """Raises ValueError for a configuration that has none."""
        if self._reread is None:
            return self._urls[at]
        found = urls_of(self._reread())
        if at >= len(found):
            raise ValueError("the server is not configured any more")
        return found[at]

    def _open_store(self) -> Store:
        at = self._names.index(self._present)
        reread = None if self._reread is None else lambda: self._url_now(at)
        return open_store(self._urls[at], self._config.driver, reread, self._config.durability)

    def _open_reading(self) -> Reading:
        at = self._names.index(self._present)
        others = [place for place in range(len(self._urls)) if place != at]

        def now() -> list[str]:
            return [self._url_now(place) for place in others]

        urls = [self._urls[place] for place in others]
        reread = None if self._reread is None else now
        return open_reading(self.store, self._urls[at], urls, self._config.replica_lag_ms_max, reread)
