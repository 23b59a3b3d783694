"""Which cells there are: registered by their conductors, pushed to every api that is linked."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import gevent

from zcompute.bus import Link
from zcompute.conductor.root.settings import RootSettings
from zcompute.db.errors import StoreError
from zcompute.db.tables import CELLS, TableCodec
from zcompute.log import REPEATED
from zcompute.objects.cell import CELL_ENABLED, CellInfo
from zcompute.objects.errors import ObjectError
from zcompute.objects.methods import TOPIC_CELLS

log = logging.getLogger(__name__)


class CellRows(Protocol):
    """What the feed reads: the store's scan."""

    def scan(self, table: TableCodec[CellInfo], *, limit: int) -> Sequence[CellInfo]: ...


class Publisher(Protocol):
    """What the feed speaks to: the bus' endpoint."""

    def publish(self, topic: str, key: str, version: int, payload: bytes | CellInfo) -> None: ...


class CellsFeed:
    """The cells table as this conductor last read it. Every root conductor reads it each second and pushes what
    changed, since a change may have been committed by another of them."""

    def __init__(self, store: CellRows, endpoint: Publisher, settings: RootSettings) -> None:
        self._store = store
        self._endpoint = endpoint
        self._settings = settings
        self._cells: dict[str, CellInfo] = {}
        self._poller: gevent.Greenlet | None = None

    def start(self) -> None:
        self._poller = gevent.spawn(self._poll)

    def stop(self) -> None:
        if self._poller is not None:
            self._poller.kill(block=False)
            self._poller = None

    def all(self) -> list[CellInfo]:
        """Every cell as last read, by name."""
        return [self._cells[name] for name in sorted(self._cells)]

    def closed(self) -> set[str]:
        """Cells that take no new servers: disabled, draining, deleted."""
        return {cell.name for cell in self._cells.values() if cell.state != CELL_ENABLED}

    def deleted(self, name: str) -> bool:
        """Whether the cell is known to be deleted: nothing is there, and nothing that is handed to it arrives."""
        cell = self._cells.get(name)
        return cell is not None and cell.deleted_at_us > 0

    def why_closed(self) -> str:
        """Why no cell at all takes new servers; "" while one does, or none is known yet."""
        left = [cell for cell in self._cells.values() if not cell.deleted_at_us]
        if not left or any(cell.state == CELL_ENABLED for cell in left):
            return ""
        return "No cell takes new servers: " + ", ".join(f"{cell.name} is {cell.state}" for cell in left[:5]) + "."

    def refresh(self) -> None:
        """Read the table; push what changed."""
        for cell in self._store.scan(CELLS, limit=self._settings.cells_max):
            known = self._cells.get(cell.name)
            if known is None or known.revision < cell.revision:
                self._cells[cell.name] = cell
                self._endpoint.publish(TOPIC_CELLS, cell.name, cell.revision, cell)

    def greet(self, link: Link) -> None:
        """A link came up: all cells to a peer that wants them."""
        if link.peer is None or TOPIC_CELLS not in link.peer.topics:
            return
        for cell in self.all():
            link.event(TOPIC_CELLS, cell.name, cell.revision, cell)

    def _poll(self) -> None:
        failing: Any = None
        while True:
            try:
                self.refresh()
                failing = None
            except (StoreError, ObjectError) as error:
                if failing is None:
                    log.info("cells not read error=%s", error, extra=REPEATED)
                failing = error
            gevent.sleep(self._settings.cells_poll_ms / 1000)
