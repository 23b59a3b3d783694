"""What operators ask of the root about cells: create, open, close, delete, look. Decided at the owner of ``global``."""

import logging
import time
from collections.abc import Callable
from typing import Any

import gevent
from msgspec.structs import replace

from zcompute.bus.errors import Forbidden, InvalidRequest
from zcompute.conductor.change import Change, Keys
from zcompute.conductor.enrolment.decisions import COUNTER_ID, put_enrolments
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.root.capacities import Capacities
from zcompute.conductor.root.cell_states import check_deletable, check_name, create_cell, delete_cell, living, set_state
from zcompute.conductor.root.cells import CellsFeed
from zcompute.conductor.root.settings import RootSettings
from zcompute.db.tables import BUILD_REQUESTS, CELLS, CROSS_MOVES, ENROLMENTS, MAPPINGS, TableCodec
from zcompute.failpoints import failpoint
from zcompute.objects.cell import ROOT_CELL, CellInfo
from zcompute.objects.cross_move import CROSS_RUNNING
from zcompute.objects.interface import Method
from zcompute.objects.messages.topology import (
    CellCreateRequest,
    CellDeleteRequest,
    CellMappingsReply,
    CellMappingsRequest,
    CellReply,
    CellStateRequest,
    CellStatus,
    CellStatusRequest,
)
from zcompute.objects.methods import (
    CELL_CREATE,
    CELL_DELETE,
    CELL_MAPPINGS,
    CELL_STATE,
    CELL_STATUS,
)
from zcompute.objects.partition import GLOBAL_KEY, partition_of

log = logging.getLogger(__name__)

CONDUCTOR, OPERATOR = "conductor", "operator"
ENROLLED_MAX = 1000  # tokens of one cell that its end revokes; the cell's rows count for nothing afterwards anyway


class Topology:
    """The handlers of interface ``cell`` that operators call. Any root conductor takes them and hands them on."""

    def __init__(self, env: ConductorEnv, cells: CellsFeed, capacities: Capacities, settings: RootSettings) -> None:
        self._env = env
        self._cells = cells
        self._capacities = capacities
        self._settings = settings

    def handlers(self) -> list[tuple[Method, Handler]]:
        """What an operator asks about cells."""
        return [
            (CELL_CREATE, self.create),
            (CELL_STATE, self.set_state),
            (CELL_DELETE, self.delete),
            (CELL_STATUS, self.status),
            (CELL_MAPPINGS, self.mappings),
        ]

    def create(self, request: CellCreateRequest, context: Any) -> CellReply:
        """Raises InvalidRequest, Forbidden, NotOwner."""
        check_name(request.name)
        return self._change(
            request.name, lambda change: create_cell(change, request.name), CELL_CREATE, request, context
        )

    def set_state(self, request: CellStateRequest, context: Any) -> CellReply:
        """Raises CellNotFound, InvalidRequest, Forbidden, NotOwner."""
        return self._change(
            request.name, lambda change: set_state(change, request.name, request.state), CELL_STATE, request, context
        )

    def delete(self, request: CellDeleteRequest, context: Any) -> CellReply:
        """Refused with what is left: mappings, servers being handed off, conductors that are linked.

        A closed cell gets nothing new once every root conductor has read that it is closed; that is waited for before
        anything is counted. Raises CellNotFound, CellRefused, Forbidden, NotOwner.
        """
        require_operator(context)
        look_again_ms = 2 * self._settings.cells_poll_ms
        if self._env.forwarding.needed(GLOBAL_KEY, context):
            reply: CellReply = self._env.forwarding.call(
                GLOBAL_KEY, CELL_DELETE, request, context, lasts_ms=look_again_ms
            )
            return reply
        cell = self._env.store.fetch(CELLS, [(request.name,)]).get((request.name,))
        if cell is not None and cell.deleted_at_us:
            return CellReply(cell=cell)
        cell = living(cell, request.name)
        check_deletable(cell, self._left(cell.name))
        gevent.sleep(look_again_ms / 1000)
        check_deletable(cell, self._left(cell.name))
        failpoint("cell.delete.counted")
        looked_at = cell
        enrolled = [row.id for row in self._env.store.scan(ENROLMENTS, where={"cell": cell.name}, limit=ENROLLED_MAX)]

        def decide(change: Change) -> CellReply:
            reply = delete_cell(change, looked_at)
            if reply.changed and not request.dry_run:
                rows = [change.get(ENROLMENTS, (enrolment_id,)) for enrolment_id in enrolled]
                put_enrolments(change, [replace(row, revoked=True) for row in rows if row is not None])
            return reply

        more: Keys = [(ENROLMENTS, (enrolment_id,)) for enrolment_id in [COUNTER_ID, *enrolled]]
        return self._change(request.name, decide, CELL_DELETE, request, context, more)

    def status(self, request: CellStatusRequest, context: Any) -> CellStatus:
        """As this very conductor sees the cell. Raises CellNotFound."""
        require_operator(context)
        name = request.name
        cell = living(self._env.store.fetch(CELLS, [(name,)]).get((name,)), name)
        keyring = self._env.endpoint.keyring
        entries = keyring.entries() if keyring is not None else []
        return CellStatus(
            cell=cell,
            mappings=self._count(MAPPINGS, name),
            pending=self._count(BUILD_REQUESTS, name),
            counted_max=self._settings.counted_max,
            linked=self._linked(name),
            capacity=self._capacities.of(name, time.monotonic()),
            keys={e.name: e.public_key for e in entries if (e.role, e.cell) == (CONDUCTOR, name)},
        )

    def mappings(self, request: CellMappingsRequest, context: Any) -> CellMappingsReply:
        """A page of what the root knows of a cell's servers. Raises InvalidRequest for too large a page."""
        require_operator(context)
        limit_max = self._settings.mappings_rows_max
        if not 1 <= request.limit <= limit_max or len(request.uuids) > limit_max:
            raise InvalidRequest(
                f"expected 1 to {limit_max} rows, found {max(request.limit, len(request.uuids))}", field="limit"
            )
        store = self._env.store
        if request.uuids:
            found = list(store.fetch(MAPPINGS, [(uuid,) for uuid in request.uuids]).values())
        else:
            after = (request.after,) if request.after else None
            found = store.scan(MAPPINGS, where={"cell": request.cell}, limit=request.limit, after=after)
        uuids = request.uuids or [mapping.uuid for mapping in found]
        pending = store.fetch(BUILD_REQUESTS, [(uuid,) for uuid in uuids])
        return CellMappingsReply(mappings=found, build_requests=list(pending.values()))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _left(self, name: str) -> list[str]:
        """What keeps the cell from being deleted, in words."""
        most = self._settings.counted_max
        left = []
        for table, what in ((MAPPINGS, "servers are mapped to it"), (BUILD_REQUESTS, "servers are being handed to it")):
            count = self._count(table, name)
            if count:
                left.append(f"{'at least ' if count >= most else ''}{count} {what}")
        coming = {"target_cell": name, "state": CROSS_RUNNING}
        if self._env.store.scan(CROSS_MOVES, where=coming, limit=1):
            left.append("servers are being moved to it")
        linked = self._linked(name)
        if linked:
            left.append(f"conductors still run: {', '.join(linked)}")
        return left

    def _count(self, table: TableCodec[Any], cell: str) -> int:
        return len(self._env.store.scan(table, where={"cell": cell}, limit=self._settings.counted_max))

    def _linked(self, cell: str) -> list[str]:
        links = self._env.endpoint.links(role=CONDUCTOR, cell=cell)
        return sorted({link.peer.service_id for link in links if link.peer is not None})

    def _change(
        self,
        name: str,
        decide: Callable[[Change], CellReply],
        method: Method,
        request: Any,
        context: Any,
        more: Keys = (),
    ) -> CellReply:
        """Decide at the owner of ``global``; push what has changed. A dry run decides and writes nothing."""
        require_operator(context)
        if self._env.forwarding.needed(GLOBAL_KEY, context):
            forwarded: CellReply = self._env.forwarding.call(GLOBAL_KEY, method, request, context)
            return forwarded

        def decided(change: Change) -> CellReply:
            reply = decide(change)
            if reply.changed and not request.dry_run:
                change.put(CELLS, reply.cell)
            return reply

        timeout_ms = max(1, min(self._settings.commit_ms_max, context.remaining_ms()))
        reply: CellReply = self._env.ledger.commit(
            partition_of(GLOBAL_KEY), [(CELLS, (name,)), *more], decided, timeout_ms=timeout_ms
        )
        if reply.changed and not request.dry_run:
            failpoint(f"cell.{method.name}.committed")
            _tell(reply.cell, method, context)
            self._cells.refresh()
        return reply


def _tell(cell: CellInfo, method: Method, context: Any) -> None:
    log.warning("audit: cell %s cell=%s state=%s by=%s", method.name, cell.name, cell.state, context.peer.service_id)


def require_operator(context: Any) -> None:
    """Operators of the region, and root conductors that hand their calls on. Raises Forbidden."""
    if context.peer.role not in (OPERATOR, CONDUCTOR) or context.peer.cell != ROOT_CELL:
        raise Forbidden(f"a {context.peer.role} of cell {context.peer.cell} does not manage cells")
