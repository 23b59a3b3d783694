"""A page of servers from every cell and from the root at once, under one deadline."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from zcompute.api.deadline import Deadline
from zcompute.api.errors import BadRequest, ServiceUnavailable
from zcompute.api.locate import Servers
from zcompute.api.merge import merge_pages
from zcompute.api.queries import ServerList, canonical_uuid
from zcompute.api.region import Region
from zcompute.api.settings import LIMITS, Limits
from zcompute.bus.errors import BusError
from zcompute.cells.gather import Gathered, gather
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import InstanceNotFound, ServiceError
from zcompute.objects.instance import Instance
from zcompute.objects.interface import Method
from zcompute.objects.messages.instances import InstanceListReply, InstanceQuery
from zcompute.objects.messages.region import PendingReply
from zcompute.objects.methods import INSTANCE_LIST, SERVERS_PENDING

log = logging.getLogger(__name__)

PENDING_STATUSES = frozenset({"BUILD", "ERROR"})


@dataclass(frozen=True)
class Page:
    """Servers, newest first, and the cells (the root among them) that did not answer."""

    instances: list[Instance] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class Listing:
    """Lists servers. The root's build requests are read before the cells are: a server leaves the root only after its
    cell has committed it, so in this order none is missed on its way."""

    def __init__(self, region: Region, servers: Servers, limits: Limits = LIMITS) -> None:
        self._region = region
        self._servers = servers
        self._limits = limits

    def page(self, wanted: ServerList, scope: str | None, deadline: Deadline) -> Page:
        """One page. ``scope``: the project in which a marker must be, None for any.

        Raises BadRequest for an unknown marker, ServiceUnavailable when no cell answers (or is known yet).
        """
        if wanted.nothing:
            return Page()
        cells = known_cells(self._region)
        query = self._from_marker(wanted, scope, deadline)
        pending, root_missing = self._pending(query, deadline)
        gathered: Gathered[InstanceListReply] = ask_all(
            self._region, cells, INSTANCE_LIST, query, deadline.left_at_most(self._limits.list_ms_max)
        )
        if cells and not gathered.results:
            raise ServiceUnavailable(f"No cell answered: {', '.join(cells[:10])}.")
        missing = sorted(gathered.missing)
        pages = [reply.instances for reply in gathered.results.values()]
        return Page(merge_pages(pages, pending, query.limit), [*missing, *root_missing])

    def _from_marker(self, wanted: ServerList, scope: str | None, deadline: Deadline) -> InstanceQuery:
        if wanted.marker is None:
            return wanted.query
        marker = canonical_uuid(wanted.marker)
        try:
            if marker is None:
                raise InstanceNotFound("not a uuid", uuid=wanted.marker)
            found = self._servers.show(marker, scope, deadline)
        except InstanceNotFound:
            raise BadRequest(f"marker [{wanted.marker[:80]}] not found") from None
        return msgspec.structs.replace(wanted.query, marker_created_at_us=found.created_at_us, marker_uuid=found.uuid)

    def _pending(self, query: InstanceQuery, deadline: Deadline) -> tuple[list[BuildRequest], list[str]]:
        if query.host is not None or (query.statuses and PENDING_STATUSES.isdisjoint(query.statuses)):
            return [], []  # a build request is on no host, and nothing but in BUILD or ERROR
        timeout_ms = deadline.left_at_most(self._limits.list_ms_max // 2)
        try:
            reply: PendingReply = self._region.ask(ROOT_CELL, SERVERS_PENDING, query, timeout_ms)
        except (BusError, ServiceError) as error:
            log.warning("list without the root reason=%s", error)
            return [], [ROOT_CELL]
        return reply.build_requests, []


def known_cells(region: Region) -> list[str]:
    """All cells but the root. Raises ServiceUnavailable until the root has said which there are."""
    cells = region.cells()
    if cells is None:
        raise ServiceUnavailable("It is not known yet which cells there are. Please try again.")
    return cells


def ask_all(
    region: Region, cells: list[str], method: Method, request: msgspec.Struct, timeout_ms: int
) -> Gathered[Any]:
    """Ask one conductor of each cell at once."""
    calls: dict[str, Callable[[], Any]] = {
        cell: partial(region.ask, cell, method, request, timeout_ms) for cell in cells
    }
    return gather(calls, timeout_ms)
