"""POST /servers/ID/action."""

import logging
import uuid
from dataclasses import replace
from typing import Any

import msgspec

from zcompute.api import action_bodies, context
from zcompute.api.action_bodies import Asked
from zcompute.api.auth import Caller
from zcompute.api.creation import operation_id_of
from zcompute.api.deadline import Deadline
from zcompute.api.errors import BadRequest, Forbidden, ItemNotFound
from zcompute.api.flavors import usable_flavor
from zcompute.api.image_lookup import ImageLookup
from zcompute.api.image_making import make_image
from zcompute.api.links import resource_links
from zcompute.api.locate import Servers
from zcompute.api.region import Region
from zcompute.api.uuids import canonical_uuid
from zcompute.api.views import server_view
from zcompute.config import ApiConfig
from zcompute.objects.actions import ACTIONS, DELETE, REBUILD, RESCUE
from zcompute.objects.errors import FlavorNotFound, InstanceNotFound

log = logging.getLogger(__name__)

# In Nova's words.
UNKNOWN_IMAGE = {
    REBUILD.key: "Cannot find image for rebuild",
    RESCUE.key: "Requested rescue image '{image}' is not supported",
}


class ServerActions:
    """Every action of one server: accepted once a commit says that it will be done."""

    def __init__(self, servers: Servers, region: Region, lookup: ImageLookup, config: ApiConfig) -> None:
        self._servers = servers
        self._region = region
        self._lookup = lookup
        self._config = config

    def on_post(self, req: Any, resp: Any, server_id: str) -> None:
        """One action; with the same Idempotency-Key it is done once, however often it is asked for."""
        caller = context.caller_of(req)
        wanted = canonical_uuid(server_id)
        key = req.get_header("Idempotency-Key")
        operation_id = str(uuid.uuid4()) if key is None else operation_id_of(key, caller.project_id)
        body = context.read_body(req, self._config.body_bytes_max)
        asked = action_bodies.read(body, caller, operation_id)
        action = DELETE if asked.deletes else ACTIONS[asked.action]
        if action.administrators and not caller.is_admin:
            raise Forbidden(f"Policy doesn't allow {action.name} to be performed.")
        if wanted is None:
            raise ItemNotFound(f"Instance {server_id[:80]} could not be found.")
        if asked.flavorid:
            asked = self._with_flavor(asked, caller, context.deadline_of(req))
        made, deadline = "", context.deadline_of(req)
        try:
            if asked.image_name or asked.image_suffix:
                made = make_image(self._region, self._servers, wanted, caller, asked, operation_id, deadline)
            elif asked.deletes:
                self._servers.delete(wanted, caller, operation_id, deadline, force=True)
            else:
                self._check_image(wanted, caller, asked, deadline)
                self._servers.act(wanted, caller, asked, operation_id, deadline)
        except InstanceNotFound:
            raise ItemNotFound(f"Instance {wanted} could not be found.") from None
        log.info("action accepted instance=%s action=%s operation=%s", wanted, asked.action, operation_id)
        if asked.shown_with is not None:
            self._show(req, resp, wanted, asked.shown_with)
        elif asked.answer is not None:
            context.answer(resp, asked.answer)
        else:
            resp.status = asked.status
        if made and asked.image_name:
            resp.set_header("Location", resource_links(context.base_url_of(req), "images", made)[0].href)

    def _check_image(self, server: str, caller: Caller, asked: Asked, deadline: Deadline) -> None:
        """Of what is booted or made anew. Raises BadRequest, InstanceNotFound."""
        image_ref, unknown = asked.arguments.image_ref, UNKNOWN_IMAGE.get(asked.action)
        if unknown is None or not image_ref:
            return
        scope = None if caller.is_admin else caller.project_id
        unknown = unknown.format(image=image_ref[:80])
        self._lookup.check(
            image_ref, lambda: self._servers.show(server, scope, deadline).flavor, caller, deadline, unknown
        )

    def _with_flavor(self, asked: Asked, caller: Caller, deadline: Deadline) -> Asked:
        try:
            flavor = usable_flavor(self._region, asked.flavorid, caller, deadline)
        except FlavorNotFound:
            raise BadRequest(f"Flavor {asked.flavorid[:80]} could not be found.") from None
        return replace(asked, arguments=msgspec.structs.replace(asked.arguments, flavor=flavor))

    def _show(self, req: Any, resp: Any, server: str, password: str) -> None:
        """The server as it is now, with its password."""
        caller = context.caller_of(req)
        scope = None if caller.is_admin else caller.project_id
        instance = self._servers.show(server, scope, context.deadline_of(req))
        view = server_view(instance, context.base_url_of(req), is_admin=caller.is_admin)
        view.admin_pass = password
        context.answer(resp, {"server": view}, "202 Accepted")
        resp.set_header("Location", resource_links(context.base_url_of(req), "servers", server)[0].href)
