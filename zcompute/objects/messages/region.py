"""Requests and replies of the root cell: servers, flavors, cells, mappings."""

import msgspec

from zcompute.objects.build_request import BuildRequest, InstanceMapping
from zcompute.objects.cell import CellInfo
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import ServerSpec


class ServersCreateRequest(msgspec.Struct, kw_only=True):
    """Create min_count to max_count servers in one operation; the operation id makes a repeat harmless.
    ``group_uuid``: all of them as members of this server group, "" for none."""

    operation_id: str
    digest: str
    project_id: str
    user_id: str
    name: str
    flavorid: str
    spec: ServerSpec
    min_count: int = 1
    max_count: int = 1
    group_uuid: str = ""


class ServersCreateReply(msgspec.Struct, kw_only=True):
    uuids: list[str]
    reservation_id: str


class LocateRequest(msgspec.Struct, kw_only=True):
    """Where is this server? project_id None = any project (administrators)."""

    uuid: str
    project_id: str | None = None


class LocateReply(msgspec.Struct, kw_only=True):
    """The mapping, and the build request while no cell has acknowledged it. Raises InstanceNotFound for neither."""

    mapping: InstanceMapping
    build_request: BuildRequest | None = None


class PendingReply(msgspec.Struct, kw_only=True):
    """Build requests that belong in a list (InstanceQuery's order and filters), without user data. ``cut``: there are
    more than go over the wire at once."""

    build_requests: list[BuildRequest]
    cut: bool = False


class ServerDeleteRequest(msgspec.Struct, kw_only=True):
    """Delete a server that is still a build request; answers in_cell when a cell has it."""

    uuid: str
    project_id: str
    operation_id: str


class ServerDeleteReply(msgspec.Struct, kw_only=True):
    """accepted: the root deals with it. Otherwise ``cell`` has the server: delete it there."""

    accepted: bool
    cell: str | None = None


class FlavorListReply(msgspec.Struct, kw_only=True):
    flavors: list[Flavor]


class FlavorGetRequest(msgspec.Struct, kw_only=True):
    flavorid: str


class FlavorReply(msgspec.Struct, kw_only=True):
    flavor: Flavor


class CellListReply(msgspec.Struct, kw_only=True):
    cells: list[CellInfo]


class CellRegisterRequest(msgspec.Struct, kw_only=True):
    """A cell's conductor tells the root which conductors its cell has (from its own map)."""

    cell: CellInfo


class MappingReleaseRequest(msgspec.Struct, kw_only=True):
    """A cell's outbox: the server is gone (kind deleted), or was definitely not built (kind refused, with the whole
    build request for another cell)."""

    uuid: str
    project_id: str
    cell: str
    generation: int
    reason: str = ""
    build_request: BuildRequest | None = None
