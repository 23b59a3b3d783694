"""The seam between the API and the region behind it: who is asked, without how. The bus is one implementation."""

import logging
import time
from collections.abc import Iterable
from typing import Any, Protocol

import gevent
import msgspec

from zcompute import bus
from zcompute.api.settings import LIMITS
from zcompute.bus.errors import BusError, Busy, DeadlineExceeded, Unavailable
from zcompute.cells.directory import CellDirectory
from zcompute.cells.gate import Gate
from zcompute.config import Config
from zcompute.log import REPEATED
from zcompute.measure import Measure
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import SERVICE_ERRORS
from zcompute.objects.interface import Method
from zcompute.objects.lowering import attributes, lowering_for
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.instances import InstanceQuery
from zcompute.objects.methods import CELL_LIST, INSTANCE_LIST, SERVERS_PENDING, TOPIC_CELLS, TOPIC_MAP
from zcompute.objects.partition import ConductorInfo

log = logging.getLogger(__name__)

CELL_LIST_MS = 2_000
CELL_LIST_PAUSE_S = 0.25
DOUBT_MS = 1_000
PROBE_MS = 2_000
PROBE_PAUSE_S = 0.25
PROBE = InstanceQuery(project_id="", limit=1)  # nobody's servers: through every part of a read, and nothing to read


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
        self._gates: dict[str, Gate] = {}
        self._probing: dict[str, gevent.Greenlet[Any]] = {}

    def start(self) -> None:
        """Dial; returns at once."""
        self._directory.start()
        self._learning = gevent.spawn(self._learn_cells)

    def stop(self) -> None:
        """Hang up everything."""
        if self._learning is not None:
            self._learning.kill()
        for probing in self._probing.values():
            probing.kill()
        self._endpoint.close()

    def ask_owner(self, key: str, method: Method, request: msgspec.Struct, timeout_ms: int) -> Any:
        """Ask the root's owner of a key; retried by the router within the time."""
        return self._directory.root.call(key, method, request, timeout_ms=timeout_ms)

    def ask(self, cell: str, method: Method, request: msgspec.Struct, timeout_ms: int) -> Any:
        """Ask any conductor of a cell; a cell without any link is given less time.

        One that has not answered is not asked again until a probe has come back: Unavailable at once.
        """
        gate = self._gates.get(cell)
        if gate is None:
            router = self._directory.router(cell)  # raises for a cell that there is not
            gate = self._gates[router.cell] = Gate()
        began_s = time.monotonic()
        if not gate.enter(began_s):
            if gate.silent:
                raise Unavailable(f"cell {cell} does not answer")
            raise Busy(f"cell {cell} has {gate.open} questions to answer", retry_after_ms=LIMITS.busy_ms)
        if gate.in_doubt(began_s):
            self._begin_probing(cell, gate)
        try:
            answer = self._ask(cell, method, request, timeout_ms)
        except DeadlineExceeded as error:
            if gate.was_late(began_s, time.monotonic()):
                log.warning("cell does not answer cell=%s reason=%s", cell, error)
                self._begin_probing(cell, gate)
            raise
        except BusError:
            raise
        except Exception:
            gate.answered(time.monotonic())
            raise
        finally:
            gate.leave()
        gate.answered(time.monotonic())
        return answer

    def _ask(self, cell: str, method: Method, request: msgspec.Struct, timeout_ms: int) -> Any:
        if not self.linked(cell):
            timeout_ms = min(timeout_ms, LIMITS.unlinked_ms_max)
        return self._directory.router(cell).call_any(method, request, timeout_ms=timeout_ms)

    def _begin_probing(self, cell: str, gate: Gate) -> None:
        probing = self._probing.get(cell)
        if probing is None or probing.dead:
            self._probing[cell] = gevent.spawn(self._probe, cell, gate)

    def _probe(self, cell: str, gate: Gate) -> None:
        """Whether it answers at all; if not, until it does: then it is asked again. A deleted one is forgotten."""
        if not gate.silent:
            self._look(cell, gate)
        while gate.silent:
            gevent.sleep(PROBE_PAUSE_S)
            if cell not in (ROOT_CELL, *self._directory.cells()):
                self._gates.pop(cell, None)
                return
            reason = self._probed(cell, PROBE_MS)
            if reason:
                log.info("cell still does not answer cell=%s reason=%s", cell, reason, extra=REPEATED)
                continue
            gate.answered(time.monotonic())
            log.info("cell answers again cell=%s after_s=%.1f", cell, time.monotonic() - gate.silent_since_s)

    def _look(self, cell: str, gate: Gate) -> None:
        """One probe of a cell in doubt."""
        began_s = time.monotonic()
        reason = self._probed(cell, DOUBT_MS)
        if not reason:
            gate.answered(time.monotonic())
        elif gate.was_not_answered(began_s, time.monotonic()):
            log.warning("cell does not answer cell=%s reason=%s", cell, reason)

    def _probed(self, cell: str, timeout_ms: int) -> str:
        """Why a probe has not come back, "" where it has."""
        try:
            self._ask(cell, SERVERS_PENDING if cell == ROOT_CELL else INSTANCE_LIST, PROBE, timeout_ms)
        except BusError as error:
            return str(error) or type(error).__name__
        except Exception:  # its own error: an answer, if an odd one
            log.exception("probe failed cell=%s", cell)
        return ""

    def measures(self) -> Iterable[Measure]:
        """By cell: whether it answers, and what was not asked because it does not."""
        for cell in (ROOT_CELL, *self._directory.cells()):
            yield from (self._gates.get(cell) or Gate()).measures(cell)

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
