"""What the root cell keeps of servers: build requests, mappings, usage, operations. All keyed by the project."""

import msgspec

from zcompute.objects.base import VersionedObject
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import Fault, ServerSpec

BUILD_PENDING = "pending"
BUILD_ERROR = "error"


class BuildRequest(VersionedObject):
    """A server that no cell has taken yet: whole, so that the cell needs nothing else.

    ``cell`` is the one it is being handed to. state ``error`` means
    that none was left: it then stays here (Nova's cell0) with its fault until it is deleted. ``delete_requested``:
    shown as being deleted; the hand-off goes on until the cell has answered, then deletes there.
    """

    uuid: str
    project_id: str
    user_id: str
    name: str
    flavor: Flavor
    spec: ServerSpec
    operation_id: str
    request_id: str = ""
    created_at_us: int = 0
    state: str = BUILD_PENDING
    cell: str | None = None
    generation: int = 1
    delete_requested: bool = False
    fault: Fault | None = None
    revision: int = 1


class InstanceMapping(VersionedObject):
    """The only truth about which cell a server is in. ``generation`` rises with each change of cell,
    ``tried_cells`` are those that definitely refused to build it, ``group_uuid`` names the server's group."""

    uuid: str
    project_id: str
    cell: str | None = None
    generation: int = 1
    tried_cells: list[str] = msgspec.field(default_factory=list)
    group_uuid: str | None = None
    revision: int = 1


class Usage(VersionedObject):
    """What one server counts against its project's quota: a row per server, so nothing is counted twice.

    ``decided`` is the instance's count of decisions of which its cell spoke last; an older word changes nothing.
    ``raised_at_us``: when a resize raised it that has not ended, or not begun, as far as the root knows; else 0.
    """

    uuid: str
    project_id: str
    cores: int
    ram_mb: int
    decided: int = 0
    raised_at_us: int = 0
    revision: int = 1


class Operation(VersionedObject):
    """The first outcome of an accepted action, found again by its operation id. ``digest`` is of the request."""

    operation_id: str
    project_id: str
    kind: str
    digest: str
    uuids: list[str] = msgspec.field(default_factory=list)
    reservation_id: str = ""
    created_at_us: int = 0
    revision: int = 1
