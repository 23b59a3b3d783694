"""Every interface and method of every service: declared once, here, for both sides of the wire.

Role names are those of keys: api, conductor, compute, scheduler, operator. Pools, which are also priority classes:
``control`` (short, before all else), ``leaf`` (calls nobody, so owners cannot deadlock), ``calls``, ``reads``.

A change of anything that an interface carries (a method, a field of a request, reply, event or report) raises the
interface's minor version; one that an older peer would misread and no rule can lower (zcompute.objects.lowering) raises
its major. Objects inside have versions of their own. tests/upgrade/fingerprints.json holds all to it.
"""

import msgspec

from zcompute.objects.build_request import BuildRequest, InstanceMapping
from zcompute.objects.cell import CellCapacity, CellInfo, ServiceInfo
from zcompute.objects.command import AdoptRequest, CommandReply, DestroyRequest, ForgetRequest, SpawnRequest
from zcompute.objects.conductor_stat import ConductorStat as ConductorStat
from zcompute.objects.conductor_stat import ConductorStatRequest as ConductorStatRequest
from zcompute.objects.flavor import Amounts, Flavor
from zcompute.objects.history import InstanceAction, InstanceActionEvent
from zcompute.objects.host import Host, HostInventory, HostState
from zcompute.objects.instance import Instance, ServerSpec
from zcompute.objects.interface import Interface as Interface
from zcompute.objects.interface import Method as Method
from zcompute.objects.partition import PartitionMap, PartitionMapDelta
from zcompute.objects.relay import FindReply as FindReply
from zcompute.objects.relay import FindRequest as FindRequest
from zcompute.objects.relay import RelayedBeat as RelayedBeat
from zcompute.objects.relay import RelayedBegin as RelayedBegin
from zcompute.objects.relay import RelayedReport as RelayedReport
from zcompute.objects.report import Observation, StepResult

TOPIC_MAP = "map"  # state; key: cell; payload: PartitionMap
TOPIC_MAP_DELTAS = "map_deltas"  # state; key: cell; payload: PartitionMapDelta, instead of the map
TOPIC_CELLS = "cells"  # state, from the root; key: cell; payload: CellInfo
TOPIC_HOSTS = "hosts"  # state, to schedulers; key: host; payload: HostState
TOPIC_PARTITIONS = "partitions"  # state, to schedulers; key: partition; payload: PartitionSnapshotDone
STREAM_NOTIFICATIONS = "notifications"  # stream; key: partition; cursor: n; payload: a packed Notification
TOPIC_EPOCHS = "epochs"  # state, between conductors of a cell, and to a superseded agent; key: host; payload: HostEpoch


class Empty(msgspec.Struct):
    """Nothing but success."""


class HostEpoch(msgspec.Struct, kw_only=True):
    """A host's present agent epoch, and whether it is forced down, as committed. The event's version is the row's
    revision."""

    host: str
    agent_epoch: int
    forced_down: bool = False


class PartitionSnapshotDone(msgspec.Struct, kw_only=True):
    """The sender owns ``partition`` since ``owner_epoch`` and has sent all its ``hosts`` (their number).

    Events of different keys may overtake one another: the snapshot is complete when so many hosts have arrived.
    """

    partition: int
    owner_epoch: int
    hosts: int = 0


# -- cluster: any conductor ---------------------------------------------------------------------------------------


class MapReply(msgspec.Struct, kw_only=True):
    map: PartitionMap


# -- hosts: compute -> conductor ----------------------------------------------------------------------------------


class HostBeginRequest(msgspec.Struct, kw_only=True):
    """A new agent takes up its host, at the owner of the host's partition.

    ``in_doubt``: its state directory does not hold all that a former agent of the host has learnt.
    """

    inventory: HostInventory
    service_id: str
    in_doubt: bool = False


class HostBeginReply(msgspec.Struct, kw_only=True):
    """The committed epoch of the host, one above any former one.

    ``owner_epochs``, to an agent in doubt: those of all partitions, read at the primary after the commit, so none that
    a former agent can have heard of is higher. Empty otherwise, and for a host that never had an agent.
    """

    agent_epoch: int
    owner_epochs: list[int] = msgspec.field(default_factory=list)


class HostGrantsRequest(msgspec.Struct, kw_only=True):
    """Which instances of these partitions does the host report? Asked of their owner, page by page, behind ``after``
    (a uuid)."""

    host: str
    partitions: list[int]
    after: str = ""


class Grant(msgspec.Struct, kw_only=True):
    """The owner's word that the host reports this instance under ``reporter_generation``; ``generation`` is that of the
    newest command."""

    instance_uuid: str
    generation: int
    reporter_generation: int


class HostGrantsReply(msgspec.Struct, kw_only=True):
    """A page, in the order of uuids. ``owner_epochs``: for which of the partitions it holds, by partition, and since
    when they are the answering owner's. ``after``: how far it goes; empty when nothing is behind it."""

    grants: list[Grant]
    owner_epochs: dict[int, int]
    after: str = ""


class HostAttachRequest(msgspec.Struct, kw_only=True):
    """The epochs under which this link reports; checked against the primary once a link."""

    epochs: dict[str, int]


class HostBeat(msgspec.Struct, kw_only=True):
    """The agent's work loop is alive, for these hosts. The receiver hands on what it is not the owner of."""

    hosts: list[str]


class HostForceDownRequest(msgspec.Struct, kw_only=True):
    """An operator's word that a host is down for certain (or, with False, that it may work again). With ``dry_run``
    nothing is changed."""

    host: str
    forced_down: bool = True
    dry_run: bool = False


class HostForceDownReply(msgspec.Struct, kw_only=True):
    """The host's row, after the commit. ``changed`` False: it was so already; of a dry run: whether it would change."""

    host: Host
    changed: bool


# -- claims: conductor -> conductor of the same cell --------------------------------------------------------------


class ClaimRequest(msgspec.Struct, kw_only=True):
    instance_uuid: str
    task_id: str
    attempt: int
    host: str
    amounts: Amounts


class ClaimReply(msgspec.Struct, kw_only=True):
    """granted, or refused with the reason (in Nova's words: "insufficient memory_mb: ...")."""

    granted: bool
    reason: str = ""


class ReleaseRequest(msgspec.Struct, kw_only=True):
    """Release a claim by name; a claim that is not there counts as released."""

    instance_uuid: str
    task_id: str
    attempt: int
    host: str


# -- scheduler ----------------------------------------------------------------------------------------------------


class SelectRequest(msgspec.Struct, kw_only=True):
    """Which hosts for ``count`` instances of this size, with up to ``alternates`` more each."""

    instance_uuids: list[str]
    amounts: Amounts
    alternates: int = 2
    availability_zone: str | None = None
    ignore_hosts: list[str] = msgspec.field(default_factory=list)


class SelectReply(msgspec.Struct, kw_only=True):
    """Per instance, in order: the host and its alternates, best first. Empty for an instance without a valid host.

    ``reasons`` counts the hosts that each filter turned away, for the fault message.
    """

    hosts: list[list[str]]
    reasons: dict[str, int] = msgspec.field(default_factory=dict)


# -- instances: api or root conductor -> any conductor of the cell, forwarded to the owner -----------------------


class BuildRequestMessage(msgspec.Struct, kw_only=True):
    """The whole build request; acknowledged after the commit of the cell's instance and task."""

    build_request: BuildRequest


class InstanceGetRequest(msgspec.Struct, kw_only=True):
    uuid: str
    project_id: str | None = None


class InstanceReply(msgspec.Struct, kw_only=True):
    instance: Instance


class InstanceQuery(msgspec.Struct, kw_only=True):
    """A page of instances, newest first: order (created_at_us desc, uuid desc), those strictly after the marker.

    ``project_id`` None = all projects (administrators). ``name`` is a substring, ``statuses`` are Nova's (ACTIVE,
    BUILD, ERROR, ...), empty for all.
    """

    project_id: str | None
    limit: int
    marker_created_at_us: int | None = None
    marker_uuid: str | None = None
    statuses: list[str] = msgspec.field(default_factory=list)
    name: str | None = None
    host: str | None = None


class InstanceListReply(msgspec.Struct, kw_only=True):
    instances: list[Instance]


class InstanceActionsReply(msgspec.Struct, kw_only=True):
    """What was done with an instance, newest first: its operations, and the steps of them that have ended.

    ``under_way`` is the step of the operation that has not ended, its event without an end.
    """

    actions: list[InstanceAction]
    events: list[InstanceActionEvent]
    under_way: InstanceActionEvent | None = None


class InstanceDeleteRequest(msgspec.Struct, kw_only=True):
    uuid: str
    project_id: str
    operation_id: str


class NotificationHeadsReply(msgspec.Struct, kw_only=True):
    """The number of the last committed notification of each partition."""

    cell: str
    last_n: list[int]


class NotificationsRequest(msgspec.Struct, kw_only=True):
    """A page of one partition's notifications, those behind ``after_n``."""

    partition: int
    after_n: int
    limit: int = 100


class NumberedBody(msgspec.Struct, kw_only=True):
    """A notification under its number: ``body`` is a packed Notification."""

    n: int
    body: bytes


class NotificationsReply(msgspec.Struct, kw_only=True):
    """The page, in order, and the partition's last n as it was read before the page: an empty page below ``last_n``
    says that the retention has taken them all. ``last_n`` is -1 for a page that has rows."""

    cell: str
    last_n: int
    rows: list[NumberedBody]


class ServiceListReply(msgspec.Struct, kw_only=True):
    services: list[ServiceInfo]


# -- root: servers, flavors, cells -------------------------------------------------------------------------------


class ServersCreateRequest(msgspec.Struct, kw_only=True):
    """Create min_count to max_count servers in one operation; the operation id makes a repeat harmless."""

    operation_id: str
    digest: str
    project_id: str
    user_id: str
    name: str
    flavorid: str
    spec: ServerSpec
    min_count: int = 1
    max_count: int = 1


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
    """Build requests that belong in a list (InstanceQuery's order and filters)."""

    build_requests: list[BuildRequest]


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


# -- upkeep: operator -> any conductor, of the partitions that it owns ---------------------------------------------


class UpkeepRequest(msgspec.Struct, kw_only=True):
    """One bounded step over the partitions that the conductor owns, ``rows_max`` rows at most.

    ``before_us`` (primary's UTC time): what is older. With ``dry_run`` nothing is changed.
    """

    rows_max: int
    before_us: int = 0
    dry_run: bool = False


class UpkeepReply(msgspec.Struct, kw_only=True):
    """``rows`` that were (dry run: would be) changed, ``by_table``; ``more``: there is more to do here. ``partitions``
    are those that were looked through: what others own is theirs to do."""

    rows: int = 0
    more: bool = False
    partitions: list[int] = msgspec.field(default_factory=list)
    by_table: dict[str, int] = msgspec.field(default_factory=dict)


class MigrationProgress(msgspec.Struct, kw_only=True):
    """An online data migration: rows ``done`` by now and still ``remaining``, of ``total``."""

    name: str
    done: int
    total: int
    remaining: int


class MigrateDataReply(msgspec.Struct, kw_only=True):
    """``rows`` that this step has changed; where every registered migration stands in these ``partitions``."""

    rows: int = 0
    partitions: list[int] = msgspec.field(default_factory=list)
    progress: list[MigrationProgress] = msgspec.field(default_factory=list)


_ANY = frozenset({"api", "conductor", "compute", "scheduler", "operator"})
_CONDUCTOR = frozenset({"conductor"})
_COMPUTE = frozenset({"compute"})
_API = frozenset({"api"})
_OPERATOR = frozenset({"operator"})
_OPERATOR_OR_CONDUCTOR = frozenset({"operator", "conductor"})
_API_OR_CONDUCTOR = frozenset({"api", "conductor"})
_FOLLOWERS = frozenset({"api", "operator"})

TOPIC_ROLES: dict[str, frozenset[str]] = {
    TOPIC_MAP: _ANY,
    TOPIC_MAP_DELTAS: _ANY,
    TOPIC_CELLS: frozenset({"api", "conductor", "operator"}),
    TOPIC_HOSTS: frozenset({"scheduler"}),
    TOPIC_PARTITIONS: frozenset({"scheduler"}),
    TOPIC_EPOCHS: _CONDUCTOR,
}
"""Roles that may hear a topic: a hello that names another of these is refused."""

STREAM_ROLES: dict[str, frozenset[str]] = {STREAM_NOTIFICATIONS: _FOLLOWERS}
"""Roles that may follow a stream."""

EVENTS: dict[str, type] = {
    TOPIC_MAP: PartitionMap,
    TOPIC_MAP_DELTAS: PartitionMapDelta,
    TOPIC_CELLS: CellInfo,
    TOPIC_HOSTS: HostState,
    TOPIC_PARTITIONS: PartitionSnapshotDone,
    TOPIC_EPOCHS: HostEpoch,
}
REPORTS: dict[str, type] = {"observation": Observation, "step_result": StepResult}
RELAYED_REPORTS: dict[str, type] = {"relayed_report": RelayedReport}

CONDUCTOR_INTERFACE = Interface("conductor")
CLUSTER_INTERFACE = Interface("cluster", carries=EVENTS)
HOST_INTERFACE = Interface("host", carries=REPORTS)
CLAIM_INTERFACE = Interface("claim")
SCHEDULER_INTERFACE = Interface("scheduler")
COMPUTE_INTERFACE = Interface("compute")
RELAY_INTERFACE = Interface("relay", carries=RELAYED_REPORTS)
INSTANCE_INTERFACE = Interface("instance")
SERVICE_INTERFACE = Interface("service")
NOTIFICATION_INTERFACE = Interface("notification")
SERVERS_INTERFACE = Interface("servers")
FLAVOR_INTERFACE = Interface("flavor")
CELL_INTERFACE = Interface("cell")
MAPPING_INTERFACE = Interface("mapping")
UPKEEP_INTERFACE = Interface("upkeep")

MAP_GET = CLUSTER_INTERFACE.method("map_get", Empty, MapReply, _ANY, "control")

CONDUCTOR_STAT = CONDUCTOR_INTERFACE.method("stat", ConductorStatRequest, ConductorStat, _FOLLOWERS, "control")

HOST_BEGIN = HOST_INTERFACE.method("begin", HostBeginRequest, HostBeginReply, _COMPUTE, "calls")
HOST_GRANTS = HOST_INTERFACE.method("grants", HostGrantsRequest, HostGrantsReply, _COMPUTE, "reads")
HOST_ATTACH = HOST_INTERFACE.method("attach", HostAttachRequest, Empty, _COMPUTE, "control")
HOST_FORCE_DOWN = HOST_INTERFACE.method(
    "force_down", HostForceDownRequest, HostForceDownReply, _OPERATOR_OR_CONDUCTOR, "calls"
)
HOST_BEAT = HOST_INTERFACE.method("beat", HostBeat, None, _COMPUTE, "control")

CLAIM = CLAIM_INTERFACE.method("claim", ClaimRequest, ClaimReply, _CONDUCTOR, "leaf")
RELEASE = CLAIM_INTERFACE.method("release", ReleaseRequest, Empty, _CONDUCTOR, "leaf")

SELECT_DESTINATIONS = SCHEDULER_INTERFACE.method("select_destinations", SelectRequest, SelectReply, _CONDUCTOR)

SPAWN = COMPUTE_INTERFACE.method("spawn", SpawnRequest, CommandReply, _CONDUCTOR)
DESTROY = COMPUTE_INTERFACE.method("destroy", DestroyRequest, CommandReply, _CONDUCTOR)
ADOPT = COMPUTE_INTERFACE.method("adopt", AdoptRequest, CommandReply, _CONDUCTOR)
FORGET = COMPUTE_INTERFACE.method("forget", ForgetRequest, CommandReply, _CONDUCTOR)

RELAY_BEGIN = RELAY_INTERFACE.method("begin", RelayedBegin, HostBeginReply, _CONDUCTOR)
RELAY_GRANTS = RELAY_INTERFACE.method("grants", HostGrantsRequest, HostGrantsReply, _CONDUCTOR, "reads")
RELAY_BEAT = RELAY_INTERFACE.method("beat", RelayedBeat, None, _CONDUCTOR, "control")
RELAY_FIND = RELAY_INTERFACE.method("find", FindRequest, FindReply, _CONDUCTOR, "control")
RELAY_SPAWN = RELAY_INTERFACE.method("spawn", SpawnRequest, CommandReply, _CONDUCTOR)
RELAY_DESTROY = RELAY_INTERFACE.method("destroy", DestroyRequest, CommandReply, _CONDUCTOR)
RELAY_ADOPT = RELAY_INTERFACE.method("adopt", AdoptRequest, CommandReply, _CONDUCTOR)
RELAY_FORGET = RELAY_INTERFACE.method("forget", ForgetRequest, CommandReply, _CONDUCTOR)

RELAYED_COMMANDS: dict[Method, Method] = {
    SPAWN: RELAY_SPAWN,
    DESTROY: RELAY_DESTROY,
    ADOPT: RELAY_ADOPT,
    FORGET: RELAY_FORGET,
}
"""What to ask another conductor for when no link reaches the host: every method that computes serve."""

INSTANCE_BUILD = INSTANCE_INTERFACE.method("build", BuildRequestMessage, Empty, _CONDUCTOR)
INSTANCE_GET = INSTANCE_INTERFACE.method("get", InstanceGetRequest, InstanceReply, _API_OR_CONDUCTOR, "reads")
INSTANCE_LIST = INSTANCE_INTERFACE.method("list", InstanceQuery, InstanceListReply, _API_OR_CONDUCTOR, "reads")
INSTANCE_DELETE = INSTANCE_INTERFACE.method("delete", InstanceDeleteRequest, Empty, _API_OR_CONDUCTOR)
INSTANCE_HISTORY = INSTANCE_INTERFACE.method(
    "actions", InstanceGetRequest, InstanceActionsReply, _API_OR_CONDUCTOR, "reads"
)
SERVICE_LIST = SERVICE_INTERFACE.method("list", Empty, ServiceListReply, _API_OR_CONDUCTOR, "reads")

NOTIFICATION_HEADS = NOTIFICATION_INTERFACE.method("heads", Empty, NotificationHeadsReply, _FOLLOWERS, "reads")
NOTIFICATION_READ = NOTIFICATION_INTERFACE.method("read", NotificationsRequest, NotificationsReply, _FOLLOWERS, "reads")

SERVERS_CREATE = SERVERS_INTERFACE.method("create", ServersCreateRequest, ServersCreateReply, _API)
SERVERS_LOCATE = SERVERS_INTERFACE.method("locate", LocateRequest, LocateReply, _API_OR_CONDUCTOR, "reads")
SERVERS_PENDING = SERVERS_INTERFACE.method("pending", InstanceQuery, PendingReply, _API, "reads")
SERVERS_DELETE = SERVERS_INTERFACE.method("delete", ServerDeleteRequest, ServerDeleteReply, _API)

FLAVOR_LIST = FLAVOR_INTERFACE.method("list", Empty, FlavorListReply, _API_OR_CONDUCTOR, "reads")
FLAVOR_GET = FLAVOR_INTERFACE.method("get", FlavorGetRequest, FlavorReply, _API_OR_CONDUCTOR, "reads")

CELL_LIST = CELL_INTERFACE.method("list", Empty, CellListReply, _API_OR_CONDUCTOR, "reads")
CELL_REGISTER = CELL_INTERFACE.method("register", CellRegisterRequest, Empty, _CONDUCTOR)
CELL_CAPACITY = CELL_INTERFACE.method("capacity", CellCapacity, None, _CONDUCTOR, "control")
MAPPING_DELETED = MAPPING_INTERFACE.method("deleted", MappingReleaseRequest, Empty, _CONDUCTOR)
MAPPING_REFUSED = MAPPING_INTERFACE.method("refused", MappingReleaseRequest, Empty, _CONDUCTOR)

UPKEEP_ARCHIVE = UPKEEP_INTERFACE.method("archive", UpkeepRequest, UpkeepReply, _OPERATOR)
UPKEEP_PURGE = UPKEEP_INTERFACE.method("purge", UpkeepRequest, UpkeepReply, _OPERATOR)
UPKEEP_MIGRATE_DATA = UPKEEP_INTERFACE.method("migrate_data", UpkeepRequest, MigrateDataReply, _OPERATOR)

INTERFACES: tuple[Interface, ...] = (
    CLUSTER_INTERFACE,
    CONDUCTOR_INTERFACE,
    HOST_INTERFACE,
    CLAIM_INTERFACE,
    SCHEDULER_INTERFACE,
    COMPUTE_INTERFACE,
    RELAY_INTERFACE,
    INSTANCE_INTERFACE,
    SERVICE_INTERFACE,
    NOTIFICATION_INTERFACE,
    SERVERS_INTERFACE,
    FLAVOR_INTERFACE,
    CELL_INTERFACE,
    MAPPING_INTERFACE,
    UPKEEP_INTERFACE,
)
