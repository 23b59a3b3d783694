"""Requests and replies about server groups: definitions at the root, placements in cells."""

import msgspec

from zcompute.objects.group import GroupRule, ServerGroup


class GroupCreateRequest(msgspec.Struct, kw_only=True):
    """``uuid`` is chosen by the caller: a repeat finds the group of the first time."""

    uuid: str
    project_id: str
    user_id: str
    name: str
    policy: str
    max_server_per_host: int = 1


class GroupView(msgspec.Struct, kw_only=True):
    """A group and the uuids of its members: servers that are not deleted, in the order of their uuids."""

    group: ServerGroup
    members: list[str]


class GroupRequest(msgspec.Struct, kw_only=True):
    """One group of a project; project_id None: of any (administrators)."""

    uuid: str
    project_id: str | None = None


class GroupListRequest(msgspec.Struct, kw_only=True):
    """The groups of a project, or of all; in the order of their uuids, ``limit`` behind the first ``offset``."""

    project_id: str | None = None
    limit: int = 1000
    offset: int = 0


class GroupListReply(msgspec.Struct, kw_only=True):
    groups: list[GroupView]


class ReserveRequest(msgspec.Struct, kw_only=True):
    """A member's place on a host, for one attempt of one task."""

    rule: GroupRule
    instance_uuid: str
    task_id: str
    attempt: int
    host: str


class ReserveReply(msgspec.Struct, kw_only=True):
    """granted, or refused with the reason."""

    granted: bool
    reason: str = ""


class PlacementReleaseRequest(msgspec.Struct, kw_only=True):
    """Release a placement by its name; one that is not there counts as released."""

    group_uuid: str
    instance_uuid: str
    task_id: str
    attempt: int


class GroupHostsRequest(msgspec.Struct, kw_only=True):
    """Where do the other members stand?"""

    group_uuid: str
    instance_uuid: str


class GroupHostsReply(msgspec.Struct, kw_only=True):
    """How many other members have a placement, by host."""

    members: dict[str, int]
