"""The seam between the API and the region behind it: who is asked, without how. The bus is one implementation."""

import logging
from typing import Any, Protocol

import gevent
import msgspec

from zcompute import bus
from zcompute.api.settings import LIMITS
from zcompute.cells.directory import CellDirectory
from zcompute.config import Config
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import SERVICE_ERRORS
from zcompute.objects.interface import Method
from zcompute.objects.lowering import attributes, lowering_for
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.methods import CELL_LIST, TOPIC_CELLS, TOPIC_MAP
from zcompute.objects.partition import ConductorInfo

log = logging.getLogger(__name__)

CELL_LIST_MS = 2_000
CELL_LIST_PAUSE_S = 0.25


class Region(Protocol):
    """What the API can ask. All calls raise the bus' errors or the registered service errors."""

    def ask_owner(self, key: str, method: Method, request: msgspec.Struct, timeout_ms: int) -> Any:
        """Ask the root's owner of a key."""

    def ask(self, cell: str, method: Method, request: msgspec.Struct, timeout_ms: int) -> Any:
        """Ask any conductor of a cell (the root's is ROOT_CELL)."""

    def cells(self) -> list[str] | None:
        """Names of all cells but the root; None until the root has said which there are."""

    def linked(self, cell: str) -> bool:
        """Whether a conductor of the cell is linked."""


class BusRegion:
    """The region over the bus: dials the root's conductors, then those of every cell that the root names."""

    def __init__(self, config: Config, identity: bus.Identity) -> None:
        for error in SERVICE_ERRORS:
            bus.register_error(error)
        self._endpoint = bus.Endpoint(
            identity, topics=[TOPIC_MAP, TOPIC_CELLS], attributes=attributes, lowering=lowering_for
        )
        seeds = [
            ConductorInfo(service_id=peer.id, incarnation="", address=peer.address, public_key=peer.public_key)
            for peer in config.bus.root
        ]
        self._directory = CellDirectory(self._endpoint, seeds)
        self._cells_known = False
        self._learning: gevent.Greenlet[Any] | None = None

    def start(self) -> None:
        """Dial; returns at once."""
        self._directory.start()
        self._learning = gevent.spawn(self._learn_cells)

    def stop(self) -> None:
        """Hang up everything."""
        if self._learning is not None:
            self._learning.kill()
        self._endpoint.close()

    def ask_owner(self, key: str, method: Method, request: msgspec.Struct, timeout_ms: int) -> Any:
        """Ask the root's owner of a key; retried by the router within the time."""
        return self._directory.root.call(key, method, request, timeout_ms=timeout_ms)

    def ask(self, cell: str, method: Method, request: msgspec.Struct, timeout_ms: int) -> Any:
        """Ask any conductor of a cell; a cell without any link is given less time."""
        if not self.linked(cell):
            timeout_ms = min(timeout_ms, LIMITS.unlinked_ms_max)
        return self._directory.router(cell).call_any(method, request, timeout_ms=timeout_ms)

    def cells(self) -> list[str] | None:
        """Names of all cells but the root; None until the root has said which there are."""
        return self._directory.cells() if self._cells_known else None

    def linked(self, cell: str) -> bool:
        """Whether a conductor of the cell is linked."""
        return self._directory.linked(cell)

    def _learn_cells(self) -> None:
        """Ask the root once which cells there are: pushes alone would not say when the list is whole."""
        while not self._cells_known:
            try:
                reply = self._directory.root.call_any(CELL_LIST, Empty(), timeout_ms=CELL_LIST_MS)
            except bus.BusError as error:
                log.info("cells not known yet reason=%s", error)
                gevent.sleep(CELL_LIST_PAUSE_S)
                continue
            for info in reply.cells:
                if info.name != ROOT_CELL:
                    self._directory.update(info)
            self._cells_known = True
            log.info("cells known cells=%s", ",".join(self._directory.cells()))
