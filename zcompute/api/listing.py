"""A page of servers, or how many there are, from every cell and from the root, under one deadline."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, cast

import msgspec
from msgspec.structs import replace

from zcompute.api.crossing import Whereabouts
from zcompute.api.deadline import Deadline
from zcompute.api.errors import BadRequest, ServiceUnavailable
from zcompute.api.locate import Servers
from zcompute.api.merge import Ask, Listed, Merge
from zcompute.api.queries import ServerList
from zcompute.api.region import Region
from zcompute.api.settings import LIMITS, Limits
from zcompute.api.uuids import canonical_uuid
from zcompute.bus.errors import BusError, DeadlineExceeded
from zcompute.cells.gather import Gathered, gather
from zcompute.cells.room import Room, Share
from zcompute.log import REPEATED
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import InstanceNotFound, ServiceError
from zcompute.objects.instance import VM_BUILDING, VM_ERROR, Instance
from zcompute.objects.interface import Method
from zcompute.objects.messages.instances import (
    InstanceBriefsReply,
    InstanceCountReply,
    InstanceCountRequest,
    InstanceGetRequest,
    InstanceListReply,
    InstanceQuery,
    InstanceReply,
)
from zcompute.objects.messages.region import PendingReply
from zcompute.objects.methods import INSTANCE_BRIEFS, INSTANCE_COUNT, INSTANCE_GET, INSTANCE_LIST, SERVERS_PENDING
from zcompute.objects.server_list import Order, order_of
from zcompute.objects.server_status import states_of

log = logging.getLogger(__name__)

L = TypeVar("L", covariant=True)
RowsReply = InstanceListReply | InstanceBriefsReply

PENDING_STATES = frozenset({VM_BUILDING, VM_ERROR})
PENDING_PAGE = 1_000
MISSING_CHARS_MAX = 4_000  # of a header; clients take some 8,000
PENDING_SHARE = 2  # the root has one part in so many of the time: the cells are to have the rest


@dataclass(frozen=True)
class Page(Generic[L]):
    """Servers in order, and the cells (the root among them) that did not answer."""

    instances: list[L] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    more: bool = False  # fewer servers than asked for, since they are so large, and there are more


@dataclass(frozen=True)
class Count:
    """How many servers there are, but for those of the cells that did not answer."""

    servers: int = 0
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Found:
    """Rows of a cell, and which of them are of servers that are in another one."""

    reply: RowsReply
    elsewhere: frozenset[str]


def new_room(limits: Limits = LIMITS) -> Room:
    """Room for the lists of one process."""
    return Room(limits.list_rows_in_flight_max, limits.lists_in_flight_max, limits.list_wait_ms_max, limits.busy_ms)


class Listing:
    """Lists servers. The root's build requests are read before the cells are: a server leaves the root only after its
    cell has committed it, so in this order none is missed on its way."""

    def __init__(self, region: Region, servers: Servers, limits: Limits = LIMITS, room: Room | None = None) -> None:
        self._region = region
        self._servers = servers
        self._limits = limits
        self._room = new_room(limits) if room is None else room

    def briefs(self, wanted: ServerList, scope: str | None, deadline: Deadline) -> Page[Listed]:
        """A page as ``page`` has it, of which only ids and names are shown: a tenth of the bytes, a fifth of the
        work. Raises the same."""
        return self._page(INSTANCE_BRIEFS, wanted, scope, deadline)

    def page(self, wanted: ServerList, scope: str | None, deadline: Deadline) -> Page[Instance]:
        """One page. ``scope``: the project in which a marker must be, None for any.

        Raises BadRequest for an unknown marker, Busy where too many lists are under way, ServiceUnavailable when no
        cell answers (or is known yet).
        """
        return cast(Page[Instance], self._page(INSTANCE_LIST, wanted, scope, deadline))

    def _page(self, method: Method, wanted: ServerList, scope: str | None, deadline: Deadline) -> Page[Listed]:
        if wanted.nothing or not wanted.query.limit:
            return Page()
        cells = known_cells(self._region)
        ours = Deadline(deadline.left_at_most(self._limits.list_ms_max))
        with self._room.held(wanted.query.limit, ours.left_ms) as share:
            order = order_of(wanted.query)
            query = self._from_marker(wanted, order, scope, cells, ours)
            pending = self._pending(query, ours)
            found = [] if pending is None else pending.build_requests
            merge = Merge(order, query.limit, cells, found, pending_cut=pending is not None and pending.cut)
            silent = self._fill(merge, method, query, share, ours)
        if cells and len(silent) == len(cells) and not merge.page:
            raise ServiceUnavailable(f"No cell answered: {', '.join(cells[:10])}.")
        return Page(merge.page, _named(silent, pending), merge.more)

    def count(self, wanted: ServerList, deadline: Deadline) -> Count:
        """How many servers a list without a limit would have. Raises as ``page``, and Busy for more build requests than
        can be told from the cells' rows."""
        if wanted.nothing:
            return Count()
        cells = known_cells(self._region)
        ours = Deadline(deadline.left_at_most(self._limits.list_ms_max))
        query = replace(wanted.query, limit=PENDING_PAGE, after=None, sort=[])
        order = order_of(query)
        pending = self._pending(query, ours)
        uuids: list[str] = []
        while pending is not None and pending.build_requests:
            uuids += [each.uuid for each in pending.build_requests]
            if len(pending.build_requests) < PENDING_PAGE and not pending.cut:
                break
            if len(uuids) >= self._limits.count_pending_max:
                raise ServiceUnavailable(f"More than {len(uuids)} servers are being built; they cannot be counted.")
            pending = self._pending(replace(query, after=order.values(pending.build_requests[-1])), ours)
        request = InstanceCountRequest(query=query, without=uuids)
        gathered: Gathered[InstanceCountReply] = ask_all(self._region, cells, INSTANCE_COUNT, request, ours.left_ms)
        if cells and not gathered.results:
            raise ServiceUnavailable(f"No cell answered: {', '.join(cells[:10])}.")
        servers = len(uuids) + sum(reply.count for reply in gathered.results.values())
        return Count(servers, _named(gathered.missing, pending))

    def _fill(self, merge: Merge, method: Method, query: InstanceQuery, share: Share, ours: Deadline) -> set[str]:
        """Ask cells until the page is done; the cells that did not answer."""
        silent: set[str] = set()
        whereabouts = Whereabouts(self._region, ours)
        for _ in range(self._limits.merge_rounds_max):
            asks = merge.asks()
            if not asks:
                return silent
            asked_rows = sum(ask.rows for ask in asks.values())

            def add(cell: str, found: _Found, asks: dict[str, Ask] = asks) -> None:
                nonlocal asked_rows
                merge.add(cell, found.reply.instances, asks[cell], cut=found.reply.cut, without=found.elsewhere)
                asked_rows -= asks[cell].rows
                share.shrink_to(merge.rows_held + asked_rows)

            missing = set(asks) if not ours.left_ms else self._ask(asks, method, query, add, whereabouts, ours)
            for cell in missing:
                merge.drop(cell)
            silent |= missing
        log.warning("list not finished rounds=%d: the cells' rows come in no order", self._limits.merge_rounds_max)
        return silent | set(merge.asks())

    def _ask(
        self,
        asks: dict[str, Ask],
        method: Method,
        query: InstanceQuery,
        add: Callable[[str, "_Found"], None],
        whereabouts: Whereabouts,
        ours: Deadline,
    ) -> set[str]:
        timeout_ms = _before(ours.left_ms)
        calls: dict[str, Callable[[], _Found]] = {}
        for cell, ask in asks.items():
            after = query.after if ask.after is None else ask.after
            request = replace(query, limit=ask.rows, after=after)
            calls[cell] = partial(self._of_cell, cell, method, request, timeout_ms, whereabouts)
        gathered = gather(calls, ours.left_ms, on_result=add)
        return set(gathered.missing)

    def _of_cell(
        self, cell: str, method: Method, request: InstanceQuery, timeout_ms: int, whereabouts: Whereabouts
    ) -> "_Found":
        reply = cast(RowsReply, self._region.ask(cell, method, request, timeout_ms))
        return _Found(reply, whereabouts.elsewhere(cell, reply.instances))

    def _from_marker(
        self, wanted: ServerList, order: Order, scope: str | None, cells: list[str], ours: Deadline
    ) -> InstanceQuery:
        """The query from its marker on. A server that was deleted meanwhile still marks its place until it is
        archived, so that a walk over the pages does not end with it."""
        if wanted.marker is None:
            return wanted.query
        marker = canonical_uuid(wanted.marker)
        if marker is None:
            raise _no_marker(wanted)
        time_for_it = Deadline(ours.left_at_most(self._limits.marker_ms_max))
        try:
            found = self._servers.show(marker, scope, time_for_it)
        except InstanceNotFound:
            found = self._deleted_marker(wanted, marker, scope, cells, time_for_it)
        return replace(wanted.query, after=order.values(found))

    def _deleted_marker(
        self, wanted: ServerList, marker: str, scope: str | None, cells: list[str], time_for_it: Deadline
    ) -> Instance:
        request = InstanceGetRequest(uuid=marker, project_id=scope, deleted=True)
        gathered: Gathered[InstanceReply] = ask_all(
            self._region, cells, INSTANCE_GET, request, time_for_it.left_at_most(self._limits.marker_ms_max)
        )
        for reply in gathered.results.values():
            return reply.instance
        silent = sorted(name for name in gathered.missing if not _is_denial(gathered.errors.get(name)))
        if silent:
            raise ServiceUnavailable(
                f"marker [{marker}] may be in a cell that does not answer: {', '.join(silent[:10])}."
            )
        raise _no_marker(wanted)

    def _pending(self, query: InstanceQuery, ours: Deadline) -> PendingReply | None:
        """The root's part of a list; None when it does not answer."""
        states = set(query.vm_states or PENDING_STATES)
        if query.statuses:
            asked = states_of(query.statuses)
            states &= asked.vm_states if asked.task_states is None else set()
        if query.host is not None or query.deleted is True or PENDING_STATES.isdisjoint(states):
            return PendingReply(build_requests=[])  # a build request is on no host, and nothing but in BUILD or ERROR
        try:
            timeout_ms = ours.left_at_most(self._limits.list_ms_max // PENDING_SHARE)
            return cast(PendingReply, self._region.ask(ROOT_CELL, SERVERS_PENDING, query, timeout_ms))
        except (BusError, ServiceError) as error:
            log.info("list without the root reason=%s", error, extra=REPEATED)
            return None


def _named(silent: Iterable[str], pending: PendingReply | None) -> list[str]:
    """The cells that did not answer, the root last."""
    return [*sorted(silent), *([ROOT_CELL] if pending is None else [])]


def named_in_header(cells: Sequence[str]) -> str:
    """Names of cells for a header: those that fit, and how many more there are (``c1,c2,+7``)."""
    text = ",".join(cells)
    if len(text) <= MISSING_CHARS_MAX:
        return text
    fitting = text[:MISSING_CHARS_MAX].rpartition(",")[0]
    return f"{fitting},+{len(cells) - fitting.count(',') - 1}"


def known_cells(region: Region) -> list[str]:
    """All cells but the root. Raises ServiceUnavailable until the root has said which there are."""
    cells = region.cells()
    if cells is None:
        raise ServiceUnavailable("It is not known yet which cells there are. Please try again.")
    return cells


def ask_all(
    region: Region, cells: list[str], method: Method, request: msgspec.Struct, timeout_ms: int
) -> Gathered[Any]:
    """Ask one conductor of each cell at once. Raises DeadlineExceeded when no time is left."""
    if timeout_ms <= 0:
        raise DeadlineExceeded("the request's deadline has passed")
    calls: dict[str, Callable[[], Any]] = {
        cell: partial(region.ask, cell, method, request, _before(timeout_ms)) for cell in cells
    }
    return gather(calls, timeout_ms)


def _before(timeout_ms: int) -> int:
    """The time of the calls that are gathered within a time: a little less, so that their own errors come before they
    are cut off."""
    return max(timeout_ms - LIMITS.grace_ms, timeout_ms // 2)


def _is_denial(error: Exception | None) -> bool:
    return isinstance(error, InstanceNotFound)


def _no_marker(wanted: ServerList) -> BadRequest:
    return BadRequest(f"marker [{(wanted.marker or '')[:80]}] not found")
