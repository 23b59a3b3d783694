"""/flavors: list, detail, show."""

from typing import Any, cast

import msgspec

from zcompute.api import context
from zcompute.api.auth import Caller
from zcompute.api.creation import boolean
from zcompute.api.deadline import Deadline
from zcompute.api.errors import BadRequest, ItemNotFound
from zcompute.api.links import Link, next_link, resource_links
from zcompute.api.queries import Query, first_values, limit_of, whole_number
from zcompute.api.region import Region
from zcompute.api.settings import LIMITS
from zcompute.config import ApiConfig
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import FlavorNotFound
from zcompute.objects.flavor import Flavor
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.region import FlavorGetRequest, FlavorListReply, FlavorReply
from zcompute.objects.methods import FLAVOR_GET, FLAVOR_LIST

FLAVOR_ID_CHARS_MAX = 255


class FlavorSummary(msgspec.Struct):
    """A flavor in a list without details."""

    id: str
    name: str
    links: list[Link]


class FlavorView(msgspec.Struct, kw_only=True):
    """A whole flavor, as Nova 2.1 shows it."""

    id: str
    name: str
    ram: int
    disk: int
    vcpus: int
    swap: int | str
    ephemeral: int = msgspec.field(name="OS-FLV-EXT-DATA:ephemeral")
    disabled: bool = msgspec.field(name="OS-FLV-DISABLED:disabled")
    is_public: bool = msgspec.field(name="os-flavor-access:is_public")
    rxtx_factor: float = 1.0
    links: list[Link]


def flavor_summary(flavor: Flavor, base_url: str) -> FlavorSummary:
    """For GET /flavors."""
    return FlavorSummary(flavor.flavorid, flavor.name, resource_links(base_url, "flavors", flavor.flavorid))


def flavor_view(flavor: Flavor, base_url: str) -> FlavorView:
    """For GET /flavors/detail and /flavors/ID. No swap is "", as it always was."""
    return FlavorView(
        id=flavor.flavorid,
        name=flavor.name,
        ram=flavor.memory_mb,
        disk=flavor.root_gb,
        vcpus=flavor.vcpus,
        swap=flavor.swap_mb or "",
        ephemeral=flavor.ephemeral_gb,
        disabled=flavor.disabled,
        is_public=flavor.is_public,
        links=resource_links(base_url, "flavors", flavor.flavorid),
    )


def select_flavors(flavors: list[Flavor], query: Query, caller: Caller, limit_max: int) -> tuple[list[Flavor], bool]:
    """The flavors of a page, by id, and whether the page is full. Raises BadRequest naming the parameter."""
    values = first_values(query)
    public: bool | None = True
    if caller.is_admin and "is_public" in values:
        public = None if values["is_public"].lower() == "none" else boolean(values["is_public"], "is_public")
    ram_min = whole_number(values.get("minRam", "0"), "minRam")
    disk_min = whole_number(values.get("minDisk", "0"), "minDisk")
    found = sorted(
        (
            flavor
            for flavor in flavors
            if public in (None, flavor.is_public) and flavor.memory_mb >= ram_min and flavor.root_gb >= disk_min
        ),
        key=lambda flavor: flavor.flavorid,
    )
    marker = values.get("marker")
    if marker:
        places = [index for index, flavor in enumerate(found) if flavor.flavorid == marker]
        if not places:
            raise BadRequest(f"marker [{marker[:80]}] not found")
        found = found[places[0] + 1 :]
    limit = limit_of(values, limit_max)
    return found[:limit], len(found) >= limit


class FlavorCollection:
    """GET /flavors and /flavors/detail."""

    def __init__(self, region: Region, config: ApiConfig, *, with_details: bool) -> None:
        self._region = region
        self._limit_max = config.list_limit_max
        self._with_details = with_details

    def on_get(self, req: Any, resp: Any) -> None:
        """A page of flavors."""
        base_url = context.base_url_of(req)
        query = context.query_of(req)
        timeout_ms = context.deadline_of(req).left_at_most(LIMITS.list_ms_max)
        reply = cast(FlavorListReply, self._region.ask(ROOT_CELL, FLAVOR_LIST, Empty(), timeout_ms))
        page, is_full = select_flavors(reply.flavors, query, context.caller_of(req), self._limit_max)
        body: dict[str, Any] = {}
        if self._with_details:
            body["flavors"] = [flavor_view(flavor, base_url) for flavor in page]
        else:
            body["flavors"] = [flavor_summary(flavor, base_url) for flavor in page]
        if is_full and page:
            body["flavors_links"] = [next_link(base_url, req.path, query, page[-1].flavorid)]
        context.answer(resp, body)


def flavor_of(region: Region, flavorid: str, deadline: Deadline) -> Flavor | None:
    """Any flavor, None where there is none. Raises the bus' errors."""
    if len(flavorid) > FLAVOR_ID_CHARS_MAX:
        return None
    request = FlavorGetRequest(flavorid=flavorid)
    timeout_ms = deadline.left_at_most(LIMITS.read_ms_max)
    try:
        return cast(FlavorReply, region.ask(ROOT_CELL, FLAVOR_GET, request, timeout_ms)).flavor
    except FlavorNotFound:
        return None


def usable_flavor(region: Region, flavorid: str, caller: Caller, deadline: Deadline) -> Flavor:
    """The flavor that a server of this caller may become. Raises FlavorNotFound: as Nova's, for a disabled one too."""
    flavor = flavor_of(region, flavorid, deadline)
    if flavor is None or flavor.disabled or not (flavor.is_public or caller.is_admin):
        raise FlavorNotFound("none for this caller", flavor=flavorid[:FLAVOR_ID_CHARS_MAX])
    return flavor


class FlavorItem:
    """GET /flavors/ID."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def on_get(self, req: Any, resp: Any, flavor_id: str) -> None:
        """One whole flavor; one that is not public is an administrator's."""
        not_found = ItemNotFound(f"Flavor {flavor_id[:80]} could not be found.")
        if len(flavor_id) > FLAVOR_ID_CHARS_MAX:
            raise not_found
        timeout_ms = context.deadline_of(req).left_at_most(LIMITS.read_ms_max)
        request = FlavorGetRequest(flavorid=flavor_id)
        try:
            reply = cast(FlavorReply, self._region.ask(ROOT_CELL, FLAVOR_GET, request, timeout_ms))
        except FlavorNotFound:
            raise not_found from None
        if not reply.flavor.is_public and not context.caller_of(req).is_admin:
            raise not_found
        context.answer(resp, {"flavor": flavor_view(reply.flavor, context.base_url_of(req))})
