"""/os-services: the services of all cells and the root, for administrators."""

import hashlib
import time
from typing import Any

import msgspec

from zcompute.api import context
from zcompute.api.errors import Forbidden, ServiceUnavailable
from zcompute.api.listing import ask_all, known_cells, named_in_header
from zcompute.api.queries import first_values
from zcompute.api.region import Region
from zcompute.api.servers import MISSING_HEADER
from zcompute.api.settings import LIMITS
from zcompute.cells.gather import Gathered
from zcompute.objects.cell import ROOT_CELL, ServiceInfo
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.instances import ServiceListReply
from zcompute.objects.methods import SERVICE_LIST


class ServiceView(msgspec.Struct):
    """A service as Nova 2.1 shows it."""

    id: int
    binary: str
    host: str
    zone: str
    status: str
    state: str
    updated_at: str | None
    disabled_reason: str | None


def service_view(service: ServiceInfo) -> ServiceView:
    """``id`` is a number that stays the same for the same service; ``state`` is up or down, unknown counts as down."""
    name = f"{service.cell}\n{service.binary}\n{service.host}\n{service.service_id}"
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1
    return ServiceView(
        id=number,
        binary=service.binary,
        host=service.host,
        zone=service.availability_zone,
        status=service.status,
        state="up" if service.state == "up" else "down",
        updated_at=_nova_time(service.updated_at_us),
        disabled_reason=service.disabled_reason,
    )


class ServiceCollection:
    """GET /os-services."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def on_get(self, req: Any, resp: Any) -> None:
        """All services, or those of ``host`` and ``binary``; cells that do not answer are named in the header."""
        if not context.caller_of(req).is_admin:
            raise Forbidden("Policy doesn't allow os_compute_api:os-services:list to be performed.")
        values = first_values(context.query_of(req))
        cells = [ROOT_CELL, *known_cells(self._region)]
        timeout_ms = context.deadline_of(req).left_at_most(LIMITS.list_ms_max)
        gathered: Gathered[ServiceListReply] = ask_all(self._region, cells, SERVICE_LIST, Empty(), timeout_ms)
        if not gathered.results:
            raise ServiceUnavailable(f"No cell answered: {', '.join(cells[:10])}.")
        found = [
            service
            for cell in cells
            if cell in gathered.results
            for service in gathered.results[cell].services
            if values.get("host") in (None, "", service.host) and values.get("binary") in (None, "", service.binary)
        ]
        if gathered.missing:
            resp.set_header(MISSING_HEADER, named_in_header(sorted(gathered.missing)))
        context.answer(resp, {"services": [service_view(service) for service in found]})


def _nova_time(time_us: int) -> str | None:
    if not time_us:
        return None
    seconds, rest_us = divmod(time_us, 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest_us:06d}"
