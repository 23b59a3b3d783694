"""The WSGI application: routes, and what is done for every request."""

import logging
from typing import Any

import falcon

from zcompute.api import context, errors, versions
from zcompute.api.actions import ServerActions
from zcompute.api.auth import Authenticator
from zcompute.api.deadline import Deadline
from zcompute.api.flavors import FlavorCollection, FlavorItem
from zcompute.api.image_lookup import ImageLookup
from zcompute.api.images import ImageCollection, ImageItem
from zcompute.api.instance_actions import InstanceActionItem, InstanceActions
from zcompute.api.listing import Listing
from zcompute.api.locate import Servers
from zcompute.api.migrations import Migrations, ServerMigration, ServerMigrationAction, ServerMigrations
from zcompute.api.quotas import LimitsItem, QuotaSet, QuotaSetDefaults, QuotaSetDetail
from zcompute.api.region import Region
from zcompute.api.server_groups import ServerGroupCollection, ServerGroupItem
from zcompute.api.servers import ServerCollection, ServerDetails, ServerItem
from zcompute.api.services import ServiceCollection
from zcompute.bus.context import request_id
from zcompute.cells.room import Room
from zcompute.config import ApiConfig
from zcompute.objects.cell import ROOT_CELL

log = logging.getLogger(__name__)

PUBLIC_PATHS = frozenset({"/", "/v2.1", "/healthz"})


class EveryRequest:
    """Request id, deadline, microversion, caller; and the headers of every response."""

    def __init__(self, authenticator: Authenticator, deadline_ms: int) -> None:
        self._authenticator = authenticator
        self._deadline_ms = deadline_ms

    def process_request(self, req: Any, _resp: Any) -> None:
        """Before the resource. Raises Unauthorized, BadRequest, NotAcceptable."""
        given = req.context
        given.request_id = context.new_request_id(req.get_header("X-Openstack-Request-Id"))
        request_id.set(given.request_id)
        given.deadline = Deadline(self._deadline_ms)
        path = req.path.rstrip("/") or "/"
        if path in PUBLIC_PATHS:
            return
        given.caller = self._authenticator.authenticate(req.get_header("X-Auth-Token"), context.base_url_of(req))
        versions.check_microversion(req.get_header(versions.HEADER), req.get_header(versions.LEGACY_HEADER))

    def process_response(self, req: Any, resp: Any, _resource: Any, _req_succeeded: bool) -> None:
        """After the resource, also after errors."""
        resp.set_header("x-openstack-request-id", getattr(req.context, "request_id", "-"))
        if req.path.startswith("/v2.1"):
            resp.set_header("x-compute-request-id", getattr(req.context, "request_id", "-"))
            resp.set_header(versions.HEADER, f"compute {versions.API_VERSION}")
            resp.set_header(versions.LEGACY_HEADER, versions.API_VERSION)
            resp.set_header("Vary", f"{versions.HEADER}, {versions.LEGACY_HEADER}")


class VersionList:
    """GET /"""

    def on_get(self, req: Any, resp: Any) -> None:
        """The versions served."""
        context.answer(resp, versions.version_list(context.base_url_of(req)))


class VersionDocument:
    """GET /v2.1/"""

    def on_get(self, req: Any, resp: Any) -> None:
        """The one version served."""
        context.answer(resp, versions.version_document(context.base_url_of(req)))


class Health:
    """GET /healthz: whether this API can do its work; for load balancers, without a token."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def on_get(self, _req: Any, resp: Any) -> None:
        """200 when the root and at least one cell are linked, else 503 with what is missing."""
        cells = self._region.cells()
        missing = []
        if not self._region.linked(ROOT_CELL):
            missing.append(ROOT_CELL)
        if cells is None:
            missing.append("the list of cells")
        elif not any(self._region.linked(cell) for cell in cells):
            missing.append("any cell")
        status = "503 Service Unavailable" if missing else "200 OK"
        context.answer(resp, {"status": "unavailable" if missing else "ok", "missing": missing}, status)


def make_app(region: Region, authenticator: Authenticator, config: ApiConfig, room: Room | None = None) -> Any:
    """The application, over any region. ``room``: for its lists, to be measured by who has made it."""
    app = falcon.App(middleware=[EveryRequest(authenticator, config.deadline_ms)])
    app.req_options.strip_url_path_trailing_slash = True
    app.req_options.auto_parse_qs_csv = False
    _handle_errors(app)
    servers = Servers(region)
    lookup = ImageLookup(region, required=config.require_known_images)
    listing = Listing(region, servers, room=room)
    migrations = Migrations(servers, region)
    routes: dict[str, object] = {
        "/": VersionList(),
        "/healthz": Health(region),
        "/v2.1": VersionDocument(),
        "/v2.1/servers": ServerCollection(region, listing, lookup, config),
        "/v2.1/servers/detail": ServerDetails(listing, config),
        "/v2.1/servers/{server_id}": ServerItem(servers),
        "/v2.1/servers/{server_id}/action": ServerActions(servers, region, lookup, config),
        "/v2.1/servers/{server_id}/migrations": ServerMigrations(migrations),
        "/v2.1/servers/{server_id}/migrations/{migration_id}": ServerMigration(migrations),
        "/v2.1/servers/{server_id}/migrations/{migration_id}/action": ServerMigrationAction(migrations, config),
        "/v2.1/servers/{server_id}/os-instance-actions": InstanceActions(servers),
        "/v2.1/servers/{server_id}/os-instance-actions/{request_id}": InstanceActionItem(servers),
        "/v2.1/flavors": FlavorCollection(region, config, with_details=False),
        "/v2.1/flavors/detail": FlavorCollection(region, config, with_details=True),
        "/v2.1/flavors/{flavor_id}": FlavorItem(region),
        "/v2.1/images": ImageCollection(region, config, with_details=False),
        "/v2.1/images/detail": ImageCollection(region, config, with_details=True),
        "/v2.1/images/{image_id}": ImageItem(region),
        "/v2.1/limits": LimitsItem(region),
        "/v2.1/os-quota-sets/{project_id}": QuotaSet(region, config),
        "/v2.1/os-quota-sets/{project_id}/defaults": QuotaSetDefaults(region),
        "/v2.1/os-quota-sets/{project_id}/detail": QuotaSetDetail(region),
        "/v2.1/os-server-groups": ServerGroupCollection(region, config),
        "/v2.1/os-server-groups/{group_id}": ServerGroupItem(region),
        "/v2.1/os-services": ServiceCollection(region),
    }
    for path, resource in routes.items():
        app.add_route(path, resource)
    return app


def _handle_errors(app: Any) -> None:
    def respond(resp: Any, error: errors.ApiError) -> None:
        resp.status = error.status
        resp.content_type = context.JSON
        resp.data = error.body()
        for name, value in error.headers.items():
            resp.set_header(name, value)

    def on_error(req: Any, resp: Any, error: Exception, _params: Any) -> None:
        known = errors.api_error(error)
        if known is None:
            log.exception("request failed method=%s path=%s", req.method, req.path)
            known = errors.ComputeFault(f"Unexpected API Error. [{type(error).__name__}]")
        elif known.code >= 500:
            log.warning("request not served method=%s path=%s status=%d reason=%s", req.method, req.path, known.code,
                        error)  # fmt: skip
        respond(resp, known)

    def on_http_error(_req: Any, resp: Any, error: Any, _params: Any) -> None:
        respond(resp, _of_falcon(error))

    app.add_error_handler(Exception, on_error)
    app.add_error_handler(falcon.HTTPError, on_http_error)


def _of_falcon(error: Any) -> errors.ApiError:
    code = error.status_code
    if code == 404:
        return errors.ItemNotFound("The resource could not be found.")
    if code == 405:
        allowed = dict(error.headers or {}).get("Allow", "")
        return errors.BadMethod(f"The method is not allowed for this resource: expected {allowed}.",
                                headers={"Allow": allowed})  # fmt: skip
    if code < 500:
        return errors.BadRequest(str(error.description or error.title))
    return errors.ComputeFault("Unexpected API Error.")
