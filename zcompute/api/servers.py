"""/servers: create, list, show, delete."""

import logging
import uuid
from typing import Any, cast

from gevent.lock import BoundedSemaphore

from zcompute.api import context
from zcompute.api.creation import admin_pass, boolean, create_request, operation_id_of
from zcompute.api.errors import BadRequest, ItemNotFound, ServiceUnavailable
from zcompute.api.image_lookup import ImageLookup
from zcompute.api.links import next_link, resource_links
from zcompute.api.listing import Listing, Page, named_in_header
from zcompute.api.locate import Servers
from zcompute.api.merge import Listed
from zcompute.api.queries import server_list
from zcompute.api.region import Region
from zcompute.api.schemas import CREATE_SERVER, CreateServerBody, decode
from zcompute.api.settings import LIMITS
from zcompute.api.uuids import canonical_uuid
from zcompute.api.views import server_summaries, server_view
from zcompute.config import ApiConfig
from zcompute.failpoints import failpoint
from zcompute.objects.errors import FlavorNotFound, InstanceNotFound
from zcompute.objects.messages.region import ServersCreateReply
from zcompute.objects.methods import SERVERS_CREATE

log = logging.getLogger(__name__)

MISSING_HEADER = "X-Zcompute-Missing-Cells"


class ServerCollection:
    """GET and POST /servers."""

    def __init__(self, region: Region, listing: Listing, lookup: ImageLookup, config: ApiConfig) -> None:
        self._region = region
        self._lookup = lookup
        self._listing = listing
        self._config = config

    def on_get(self, req: Any, resp: Any) -> None:
        """A page of ids, names and links."""
        respond_with_page(self._listing, self._config, req, resp, with_details=False)

    def on_post(self, req: Any, resp: Any) -> None:
        """Create one server or several: accepted once the root has committed the whole request."""
        caller = context.caller_of(req)
        body: CreateServerBody = decode(CREATE_SERVER, context.read_body(req, self._config.body_bytes_max))
        key = req.get_header("Idempotency-Key")
        operation_id = str(uuid.uuid4()) if key is None else operation_id_of(key, caller.project_id)
        request = create_request(body, caller, operation_id)
        deadline = context.deadline_of(req)
        self._lookup.check_for_new_server(request.spec.image_ref, request.flavorid, caller, deadline)
        failpoint("servers.before_create")
        try:
            reply = cast(
                ServersCreateReply,
                self._region.ask_owner(
                    caller.project_id, SERVERS_CREATE, request, deadline.left_at_most(self._config.deadline_ms)
                ),
            )
        except FlavorNotFound:
            raise BadRequest(
                f"Invalid input for field/attribute flavorRef. Flavor {request.flavorid} could not be found."
            ) from None
        failpoint("servers.after_create")
        log.info("servers accepted operation=%s instances=%s", operation_id, ",".join(reply.uuids[:10]))
        server = body.server
        if boolean(server.return_reservation_id, "return_reservation_id"):
            context.answer(resp, {"reservation_id": reply.reservation_id}, "202 Accepted")
            return
        links = resource_links(context.base_url_of(req), "servers", reply.uuids[0])
        view = {
            "id": reply.uuids[0],
            "links": links,
            "OS-DCF:diskConfig": server.disk_config,
            "adminPass": server.admin_pass or admin_pass(caller, operation_id),
            "security_groups": [{"name": group.name} for group in server.security_groups] or [{"name": "default"}],
        }
        context.answer(resp, {"server": view}, "202 Accepted")
        resp.set_header("Location", links[0].href)


class ServerDetails:
    """GET /servers/detail. So many at once and no more: details are the heaviest answers there are."""

    def __init__(self, listing: Listing, config: ApiConfig) -> None:
        self._listing = listing
        self._config = config
        self._in_flight = BoundedSemaphore(LIMITS.details_in_flight_max)

    def on_get(self, req: Any, resp: Any) -> None:
        """A page of whole servers."""
        if not self._in_flight.acquire(timeout=context.deadline_of(req).left_ms / 1000):
            raise ServiceUnavailable("Too many detailed lists are under way. Please try again.")
        try:
            respond_with_page(self._listing, self._config, req, resp, with_details=True)
        finally:
            self._in_flight.release()


class ServerItem:
    """GET and DELETE /servers/ID."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    def on_get(self, req: Any, resp: Any, server_id: str) -> None:
        """One whole server."""
        caller = context.caller_of(req)
        wanted = _uuid_of(server_id)
        try:
            instance = self._servers.show(
                wanted, None if caller.is_admin else caller.project_id, context.deadline_of(req)
            )
        except InstanceNotFound:
            raise _not_found(wanted) from None
        view = server_view(instance, context.base_url_of(req), is_admin=caller.is_admin)
        context.answer(resp, {"server": view})

    def on_delete(self, req: Any, resp: Any, server_id: str) -> None:
        """Delete: accepted once a commit says that it will be."""
        caller = context.caller_of(req)
        wanted = _uuid_of(server_id)
        try:
            self._servers.delete(wanted, caller, str(uuid.uuid4()), context.deadline_of(req))
        except InstanceNotFound:
            raise _not_found(wanted) from None
        log.info("delete accepted instance=%s", wanted)
        resp.status = "204 No Content"


def respond_with_page(listing: Listing, config: ApiConfig, req: Any, resp: Any, *, with_details: bool) -> None:
    """Answer a list, with the next page's link where this one is full, and the missing cells in the header."""
    caller = context.caller_of(req)
    base_url = context.base_url_of(req)
    query = context.query_of(req)
    wanted = server_list(query, caller, config.list_limit_max)
    scope, deadline = None if caller.is_admin else caller.project_id, context.deadline_of(req)
    body: dict[str, Any] = {}
    page: Page[Listed]
    if with_details:
        page = whole = listing.page(wanted, scope, deadline)
        body["servers"] = [server_view(found, base_url, is_admin=caller.is_admin) for found in whole.instances]
    else:
        page = listing.briefs(wanted, scope, deadline)
        body["servers"] = server_summaries(page.instances, base_url)
    if page.instances and (len(page.instances) == wanted.query.limit or page.more):
        body["servers_links"] = [next_link(base_url, req.path, query, page.instances[-1].uuid)]
    missing = set(page.missing)
    if wanted.with_count:
        counted = listing.count(wanted, context.deadline_of(req))
        body["count"] = counted.servers
        missing.update(counted.missing)
    if missing:
        resp.set_header(MISSING_HEADER, named_in_header(sorted(missing)))
    context.answer(resp, body)


def _uuid_of(server_id: str) -> str:
    wanted = canonical_uuid(server_id)
    if wanted is None:
        raise ItemNotFound(f"Instance {server_id[:80]} could not be found: the server id is not a UUID.")
    return wanted


def _not_found(server_uuid: str) -> ItemNotFound:
    return ItemNotFound(f"Instance {server_uuid} could not be found.")
