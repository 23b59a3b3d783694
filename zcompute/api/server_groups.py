"""/os-server-groups: create, list, show, delete, as Nova 2.1 shows them.

``policies`` takes one of all four policies: the soft ones are Nova's 2.15, which clients cannot ask for yet.
"""

import logging
import uuid
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta

from zcompute.api import context
from zcompute.api.creation import check_name
from zcompute.api.errors import BadRequest, ItemNotFound
from zcompute.api.queries import first_values, limit_of, whole_number
from zcompute.api.region import Region
from zcompute.api.schemas import Name, decode
from zcompute.api.settings import LIMITS
from zcompute.api.uuids import canonical_uuid
from zcompute.config import ApiConfig
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.errors import ServerGroupNotFound
from zcompute.objects.group import POLICIES, ServerGroup
from zcompute.objects.messages.groups import (
    GroupCreateRequest,
    GroupListReply,
    GroupListRequest,
    GroupRequest,
    GroupView,
)
from zcompute.objects.methods import GROUP_CREATE, GROUP_DELETE, GROUP_GET, GROUP_LIST

log = logging.getLogger(__name__)

UUID_CHARS_MAX = 80  # of an id that is repeated in an answer


class CreateServerGroup(msgspec.Struct, forbid_unknown_fields=True):
    """The ``server_group`` of POST /os-server-groups."""

    name: Name
    policies: Annotated[list[str], Meta(min_length=1, max_length=1)]


class CreateServerGroupBody(msgspec.Struct, forbid_unknown_fields=True):
    """The whole body."""

    server_group: CreateServerGroup


CREATE_SERVER_GROUP = msgspec.json.Decoder(CreateServerGroupBody)


def group_view(found: GroupView) -> dict[str, Any]:
    """As Nova 2.1 shows a group."""
    group: ServerGroup = found.group
    return {
        "id": group.uuid,
        "name": group.name,
        "policies": [group.policy],
        "members": found.members,
        "metadata": group.metadata,
    }


def policy_of(body: CreateServerGroup) -> str:
    """The one policy. Raises BadRequest."""
    policy = body.policies[0]
    if policy not in POLICIES:
        expected = ", ".join(repr(one) for one in POLICIES)
        raise BadRequest(
            f"Invalid input for field/attribute 0. Value: {policy[:40]}. {policy[:40]!r} is not one of [{expected}]"
        )
    return policy


class ServerGroupCollection:
    """GET and POST /os-server-groups."""

    def __init__(self, region: Region, config: ApiConfig) -> None:
        self._region = region
        self._config = config

    def on_post(self, req: Any, resp: Any) -> None:
        """A new group of the caller's project."""
        caller = context.caller_of(req)
        body: CreateServerGroupBody = decode(CREATE_SERVER_GROUP, context.read_body(req, self._config.body_bytes_max))
        check_name(body.server_group.name)
        request = GroupCreateRequest(
            uuid=str(uuid.uuid4()),
            project_id=caller.project_id,
            user_id=caller.user_id,
            name=body.server_group.name,
            policy=policy_of(body.server_group),
        )
        left_ms = context.deadline_of(req).left_ms
        made = cast(GroupView, self._region.ask_owner(caller.project_id, GROUP_CREATE, request, left_ms))
        context.answer(resp, {"server_group": group_view(made)})

    def on_get(self, req: Any, resp: Any) -> None:
        """The groups of the caller's project; for administrators, with all_projects, of every one."""
        caller = context.caller_of(req)
        values = first_values(context.query_of(req))
        everyone = caller.is_admin and "all_projects" in values
        request = GroupListRequest(
            project_id=None if everyone else caller.project_id,
            limit=limit_of(values, self._config.list_limit_max),
            offset=whole_number(values.get("offset", "0"), "offset"),
        )
        timeout_ms = context.deadline_of(req).left_at_most(LIMITS.list_ms_max)
        reply = cast(GroupListReply, self._region.ask(ROOT_CELL, GROUP_LIST, request, timeout_ms))
        context.answer(resp, {"server_groups": [group_view(found) for found in reply.groups]})


class ServerGroupItem:
    """GET and DELETE /os-server-groups/ID."""

    def __init__(self, region: Region) -> None:
        self._region = region

    def on_get(self, req: Any, resp: Any, group_id: str) -> None:
        """One group with its members."""
        context.answer(resp, {"server_group": group_view(self._find(req, group_id))})

    def on_delete(self, req: Any, resp: Any, group_id: str) -> None:
        """The definition goes; its members stay what and where they are."""
        group = self._find(req, group_id).group
        request = GroupRequest(uuid=group.uuid, project_id=group.project_id)
        left_ms = context.deadline_of(req).left_ms
        try:
            self._region.ask_owner(group.project_id, GROUP_DELETE, request, left_ms)
        except ServerGroupNotFound:
            raise _not_found(group_id) from None
        resp.status = "204 No Content"

    def _find(self, req: Any, group_id: str) -> GroupView:
        """Raises ItemNotFound: also for another project's, but for administrators."""
        caller = context.caller_of(req)
        uuid_text = canonical_uuid(group_id)
        if uuid_text is None:
            raise _not_found(group_id)
        request = GroupRequest(uuid=uuid_text, project_id=None if caller.is_admin else caller.project_id)
        timeout_ms = context.deadline_of(req).left_at_most(LIMITS.read_ms_max)
        try:
            return cast(GroupView, self._region.ask(ROOT_CELL, GROUP_GET, request, timeout_ms))
        except ServerGroupNotFound:
            raise _not_found(group_id) from None


def _not_found(group_id: str) -> ItemNotFound:
    return ItemNotFound(f"Instance group {group_id[:UUID_CHARS_MAX]} could not be found.")
