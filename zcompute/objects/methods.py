"""Every interface and method of every service: declared once, here, for both sides of the wire.

Role names are those of keys: api, conductor, compute, scheduler, operator. Pools, which are also priority classes:
``control`` (short, before all else), ``leaf`` (calls nobody, so owners cannot deadlock), ``calls``, ``reads``.

A change of anything that an interface carries (a method, a field of a request, reply, event or report) raises the
interface's minor version; one that an older peer would misread and no rule can lower (zcompute.objects.lowering) raises
its major. Objects inside have versions of their own. tests/upgrade/fingerprints.json holds all to it.
"""

from zcompute.objects.cell import CellCapacity, CellInfo
from zcompute.objects.command import (
    AdoptRequest,
    CommandReply,
    DestroyRequest,
    DomainsReply,
    DomainsRequest,
    ForgetRequest,
    SpawnRequest,
    StepRequest,
)
from zcompute.objects.conductor_stat import ConductorStat, ConductorStatRequest
from zcompute.objects.host import HostState
from zcompute.objects.interface import Interface, Method
from zcompute.objects.messages.cluster import Empty, HostEpoch, MapReply, PartitionSnapshotDone
from zcompute.objects.messages.crossing import (
    CrossMoveGetRequest,
    CrossMoveReply,
    CrossMoveRequest,
    CrossOrder,
    CrossReply,
)
from zcompute.objects.messages.groups import (
    GroupCreateRequest,
    GroupHostsReply,
    GroupHostsRequest,
    GroupListReply,
    GroupListRequest,
    GroupRequest,
    GroupView,
    PlacementReleaseRequest,
    ReserveReply,
    ReserveRequest,
)
from zcompute.objects.messages.hosts import (
    ClaimReply,
    ClaimRequest,
    HostAttachRequest,
    HostBeat,
    HostBeginReply,
    HostBeginRequest,
    HostEnableReply,
    HostEnableRequest,
    HostForceDownReply,
    HostForceDownRequest,
    HostGrantsReply,
    HostGrantsRequest,
    LeftBehindRequest,
    ReleaseRequest,
    SelectReply,
    SelectRequest,
)
from zcompute.objects.messages.images import (
    ImageCreateRequest,
    ImageDeleteRequest,
    ImageGetRequest,
    ImageListReply,
    ImageListRequest,
    ImageReply,
    ImageUpdateRequest,
)
from zcompute.objects.messages.instances import (
    BuildRequestMessage,
    InstanceActionRequest,
    InstanceActionsReply,
    InstanceBriefsReply,
    InstanceCountReply,
    InstanceCountRequest,
    InstanceDeleteRequest,
    InstanceGetRequest,
    InstanceListReply,
    InstanceQuery,
    InstanceReply,
    NotificationHeadsReply,
    NotificationsReply,
    NotificationsRequest,
    ServiceListReply,
)
from zcompute.objects.messages.quotas import (
    QuotaDefaultReply,
    QuotaDefaultSetRequest,
    QuotaReconcileReply,
    QuotaReconcileRequest,
    QuotaReply,
    QuotaRequest,
    QuotaSetRequest,
    QuotaUsageReply,
    QuotaUsageRequest,
    ServerAmount,
    StandingReply,
    StandingRequest,
)
from zcompute.objects.messages.region import (
    CellListReply,
    CellRegisterRequest,
    FlavorGetRequest,
    FlavorListReply,
    FlavorReply,
    LocateReply,
    LocateRequest,
    MappingReleaseRequest,
    PendingReply,
    ServerDeleteReply,
    ServerDeleteRequest,
    ServersCreateReply,
    ServersCreateRequest,
)
from zcompute.objects.messages.tasks import TaskListReply, TaskListRequest, TaskOrder, TaskReply
from zcompute.objects.messages.topology import (
    CellCreateRequest,
    CellDeleteRequest,
    CellMappingsReply,
    CellMappingsRequest,
    CellReply,
    CellStateRequest,
    CellStatus,
    CellStatusRequest,
    CensusReply,
    CensusRequest,
    EnrolmentCreateRequest,
    EnrolmentListReply,
    EnrolmentListRequest,
    EnrolmentReply,
    EnrolmentRevokeRequest,
    EnrolReply,
    EnrolRequest,
    HostListReply,
    HostListRequest,
    RemapReply,
    RemapRequest,
)
from zcompute.objects.messages.upkeep import MigrateDataReply, SchemaReply, UpkeepReply, UpkeepRequest
from zcompute.objects.partition import PartitionMap, PartitionMapDelta
from zcompute.objects.relay import FindReply, FindRequest, RelayedBeat, RelayedBegin, RelayedReport
from zcompute.objects.report import Observation, StepResult

TOPIC_MAP = "map"  # state; key: cell; payload: PartitionMap
TOPIC_MAP_DELTAS = "map_deltas"  # state; key: cell; payload: PartitionMapDelta, instead of the map
TOPIC_CELLS = "cells"  # state, from the root; key: cell; payload: CellInfo
TOPIC_HOSTS = "hosts"  # state, to schedulers; key: host; payload: HostState
TOPIC_PARTITIONS = "partitions"  # state, to schedulers; key: partition; payload: PartitionSnapshotDone
STREAM_NOTIFICATIONS = "notifications"  # stream; key: partition; cursor: n; payload: a packed Notification
TOPIC_EPOCHS = "epochs"  # state, between conductors of a cell, and to a superseded agent; key: host; payload: HostEpoch

_ANY = frozenset({"api", "conductor", "compute", "scheduler", "operator"})
_CONDUCTOR = frozenset({"conductor"})
_COMPUTE = frozenset({"compute"})
_API = frozenset({"api"})
_OPERATOR = frozenset({"operator"})
_ENROLLING = frozenset({"enrolling", "conductor"})
_ALL_CALLERS = frozenset({"api", "conductor", "operator"})
_OPERATOR_OR_CONDUCTOR = frozenset({"operator", "conductor"})
_API_OR_CONDUCTOR = frozenset({"api", "conductor"})
_API_OPERATOR_OR_CONDUCTOR = frozenset({"api", "conductor", "operator"})
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
IMAGE_INTERFACE = Interface("image")
CELL_INTERFACE = Interface("cell")
MAPPING_INTERFACE = Interface("mapping")
UPKEEP_INTERFACE = Interface("upkeep")
ENROLMENT_INTERFACE = Interface("enrolment")
QUOTA_INTERFACE = Interface("quota")
TASK_INTERFACE = Interface("task")
GROUP_INTERFACE = Interface("group")

MAP_GET = CLUSTER_INTERFACE.method("map_get", Empty, MapReply, _ANY, "control")

CONDUCTOR_STAT = CONDUCTOR_INTERFACE.method("stat", ConductorStatRequest, ConductorStat, _FOLLOWERS, "control")

HOST_BEGIN = HOST_INTERFACE.method("begin", HostBeginRequest, HostBeginReply, _COMPUTE, "calls")
HOST_GRANTS = HOST_INTERFACE.method("grants", HostGrantsRequest, HostGrantsReply, _COMPUTE, "reads")
HOST_ATTACH = HOST_INTERFACE.method("attach", HostAttachRequest, Empty, _COMPUTE, "control")
HOST_FORCE_DOWN = HOST_INTERFACE.method(
    "force_down", HostForceDownRequest, HostForceDownReply, _OPERATOR_OR_CONDUCTOR, "calls"
)
HOST_ENABLE = HOST_INTERFACE.method("enable", HostEnableRequest, HostEnableReply, _OPERATOR_OR_CONDUCTOR, "calls")
HOST_LIST = HOST_INTERFACE.method("list", HostListRequest, HostListReply, _OPERATOR, "reads")
HOST_BEAT = HOST_INTERFACE.method("beat", HostBeat, None, _COMPUTE, "control")

CLAIM = CLAIM_INTERFACE.method("claim", ClaimRequest, ClaimReply, _CONDUCTOR, "leaf")
RELEASE = CLAIM_INTERFACE.method("release", ReleaseRequest, Empty, _CONDUCTOR, "leaf")

SELECT_DESTINATIONS = SCHEDULER_INTERFACE.method("select_destinations", SelectRequest, SelectReply, _CONDUCTOR)

SPAWN = COMPUTE_INTERFACE.method("spawn", SpawnRequest, CommandReply, _CONDUCTOR)
DESTROY = COMPUTE_INTERFACE.method("destroy", DestroyRequest, CommandReply, _CONDUCTOR)
ADOPT = COMPUTE_INTERFACE.method("adopt", AdoptRequest, CommandReply, _CONDUCTOR)
STEP = COMPUTE_INTERFACE.method("step", StepRequest, CommandReply, _CONDUCTOR)
FORGET = COMPUTE_INTERFACE.method("forget", ForgetRequest, CommandReply, _CONDUCTOR)
DOMAINS = COMPUTE_INTERFACE.method("domains", DomainsRequest, DomainsReply, _CONDUCTOR, "reads")

RELAY_BEGIN = RELAY_INTERFACE.method("begin", RelayedBegin, HostBeginReply, _CONDUCTOR)
RELAY_GRANTS = RELAY_INTERFACE.method("grants", HostGrantsRequest, HostGrantsReply, _CONDUCTOR, "reads")
RELAY_BEAT = RELAY_INTERFACE.method("beat", RelayedBeat, None, _CONDUCTOR, "control")
RELAY_FIND = RELAY_INTERFACE.method("find", FindRequest, FindReply, _CONDUCTOR, "control")
RELAY_SPAWN = RELAY_INTERFACE.method("spawn", SpawnRequest, CommandReply, _CONDUCTOR)
RELAY_DESTROY = RELAY_INTERFACE.method("destroy", DestroyRequest, CommandReply, _CONDUCTOR)
RELAY_ADOPT = RELAY_INTERFACE.method("adopt", AdoptRequest, CommandReply, _CONDUCTOR)
RELAY_STEP = RELAY_INTERFACE.method("step", StepRequest, CommandReply, _CONDUCTOR)
RELAY_FORGET = RELAY_INTERFACE.method("forget", ForgetRequest, CommandReply, _CONDUCTOR)
RELAY_DOMAINS = RELAY_INTERFACE.method("domains", DomainsRequest, DomainsReply, _CONDUCTOR, "reads")

RELAYED_COMMANDS: dict[Method, Method] = {
    SPAWN: RELAY_SPAWN,
    DESTROY: RELAY_DESTROY,
    ADOPT: RELAY_ADOPT,
    STEP: RELAY_STEP,
    FORGET: RELAY_FORGET,
    DOMAINS: RELAY_DOMAINS,
}
"""What to ask another conductor for when no link reaches the host: every method that computes serve."""

INSTANCE_BUILD = INSTANCE_INTERFACE.method("build", BuildRequestMessage, Empty, _CONDUCTOR)
INSTANCE_GET = INSTANCE_INTERFACE.method("get", InstanceGetRequest, InstanceReply, _API_OR_CONDUCTOR, "reads")
INSTANCE_LIST = INSTANCE_INTERFACE.method("list", InstanceQuery, InstanceListReply, _API_OPERATOR_OR_CONDUCTOR, "reads")
INSTANCE_BRIEFS = INSTANCE_INTERFACE.method("briefs", InstanceQuery, InstanceBriefsReply, _API_OR_CONDUCTOR, "reads")
INSTANCE_COUNT = INSTANCE_INTERFACE.method(
    "count", InstanceCountRequest, InstanceCountReply, _API_OR_CONDUCTOR, "reads"
)
INSTANCE_DELETE = INSTANCE_INTERFACE.method("delete", InstanceDeleteRequest, Empty, _API_OR_CONDUCTOR)
INSTANCE_ACTION = INSTANCE_INTERFACE.method("action", InstanceActionRequest, Empty, _API_OPERATOR_OR_CONDUCTOR)
INSTANCE_HISTORY = INSTANCE_INTERFACE.method(
    "actions", InstanceGetRequest, InstanceActionsReply, _API_OPERATOR_OR_CONDUCTOR, "reads"
)
INSTANCE_CROSS = INSTANCE_INTERFACE.method("cross", CrossOrder, CrossReply, _CONDUCTOR)
INSTANCE_LEFT_BEHIND = INSTANCE_INTERFACE.method("left_behind", LeftBehindRequest, Empty, _CONDUCTOR)
INSTANCE_CENSUS = INSTANCE_INTERFACE.method("census", CensusRequest, CensusReply, _OPERATOR, "reads")
SERVICE_LIST = SERVICE_INTERFACE.method("list", Empty, ServiceListReply, _API_OR_CONDUCTOR, "reads")

NOTIFICATION_HEADS = NOTIFICATION_INTERFACE.method("heads", Empty, NotificationHeadsReply, _FOLLOWERS, "reads")
NOTIFICATION_READ = NOTIFICATION_INTERFACE.method("read", NotificationsRequest, NotificationsReply, _FOLLOWERS, "reads")

SERVERS_CREATE = SERVERS_INTERFACE.method("create", ServersCreateRequest, ServersCreateReply, _API)
SERVERS_LOCATE = SERVERS_INTERFACE.method("locate", LocateRequest, LocateReply, _API_OR_CONDUCTOR, "reads")
SERVERS_PENDING = SERVERS_INTERFACE.method("pending", InstanceQuery, PendingReply, _API, "reads")
SERVERS_DELETE = SERVERS_INTERFACE.method("delete", ServerDeleteRequest, ServerDeleteReply, _API)

FLAVOR_LIST = FLAVOR_INTERFACE.method("list", Empty, FlavorListReply, _API_OR_CONDUCTOR, "reads")
FLAVOR_GET = FLAVOR_INTERFACE.method("get", FlavorGetRequest, FlavorReply, _API_OR_CONDUCTOR, "reads")

IMAGE_CREATE = IMAGE_INTERFACE.method("create", ImageCreateRequest, ImageReply, _API_OPERATOR_OR_CONDUCTOR)
IMAGE_GET = IMAGE_INTERFACE.method("get", ImageGetRequest, ImageReply, _API_OPERATOR_OR_CONDUCTOR, "reads")
IMAGE_LIST = IMAGE_INTERFACE.method("list", ImageListRequest, ImageListReply, _API_OPERATOR_OR_CONDUCTOR, "reads")
IMAGE_DELETE = IMAGE_INTERFACE.method("delete", ImageDeleteRequest, Empty, _API_OPERATOR_OR_CONDUCTOR)
IMAGE_UPDATE = IMAGE_INTERFACE.method("update", ImageUpdateRequest, Empty, _CONDUCTOR)

CELL_LIST = CELL_INTERFACE.method("list", Empty, CellListReply, _ALL_CALLERS, "reads")
CELL_CREATE = CELL_INTERFACE.method("create", CellCreateRequest, CellReply, _OPERATOR_OR_CONDUCTOR)
CELL_STATE = CELL_INTERFACE.method("state", CellStateRequest, CellReply, _OPERATOR_OR_CONDUCTOR)
CELL_DELETE = CELL_INTERFACE.method("delete", CellDeleteRequest, CellReply, _OPERATOR_OR_CONDUCTOR)
CELL_STATUS = CELL_INTERFACE.method("status", CellStatusRequest, CellStatus, _OPERATOR, "reads")
CELL_MAPPINGS = CELL_INTERFACE.method("mappings", CellMappingsRequest, CellMappingsReply, _OPERATOR, "reads")
CELL_REGISTER = CELL_INTERFACE.method("register", CellRegisterRequest, Empty, _CONDUCTOR)
CELL_CAPACITY = CELL_INTERFACE.method("capacity", CellCapacity, None, _CONDUCTOR, "control")
MAPPING_DELETED = MAPPING_INTERFACE.method("deleted", MappingReleaseRequest, Empty, _CONDUCTOR)
MAPPING_REFUSED = MAPPING_INTERFACE.method("refused", MappingReleaseRequest, Empty, _CONDUCTOR)
MAPPING_MOVE = MAPPING_INTERFACE.method("move", CrossMoveRequest, CrossMoveReply, _OPERATOR_OR_CONDUCTOR)
MAPPING_MOVED = MAPPING_INTERFACE.method("moved", CrossMoveGetRequest, CrossMoveReply, _OPERATOR, "reads")
MAPPING_REMAP = MAPPING_INTERFACE.method("remap", RemapRequest, RemapReply, _OPERATOR_OR_CONDUCTOR)

UPKEEP_ARCHIVE = UPKEEP_INTERFACE.method("archive", UpkeepRequest, UpkeepReply, _OPERATOR)
UPKEEP_PURGE = UPKEEP_INTERFACE.method("purge", UpkeepRequest, UpkeepReply, _OPERATOR)
UPKEEP_MIGRATE_DATA = UPKEEP_INTERFACE.method("migrate_data", UpkeepRequest, MigrateDataReply, _OPERATOR)
UPKEEP_SCHEMA = UPKEEP_INTERFACE.method("schema", Empty, SchemaReply, _OPERATOR, "reads")

ENROLMENT_CREATE = ENROLMENT_INTERFACE.method("create", EnrolmentCreateRequest, EnrolmentReply, _OPERATOR_OR_CONDUCTOR)
ENROLMENT_LIST = ENROLMENT_INTERFACE.method("list", EnrolmentListRequest, EnrolmentListReply, _OPERATOR, "reads")
ENROLMENT_REVOKE = ENROLMENT_INTERFACE.method("revoke", EnrolmentRevokeRequest, EnrolmentReply, _OPERATOR_OR_CONDUCTOR)
ENROLMENT_ENROL = ENROLMENT_INTERFACE.method("enrol", EnrolRequest, EnrolReply, _ENROLLING)
QUOTA_GET = QUOTA_INTERFACE.method("get", QuotaRequest, QuotaReply, _API_OPERATOR_OR_CONDUCTOR)
QUOTA_SET = QUOTA_INTERFACE.method("set", QuotaSetRequest, QuotaReply, _API_OPERATOR_OR_CONDUCTOR)
QUOTA_DEFAULT = QUOTA_INTERFACE.method("default", Empty, QuotaDefaultReply, _API_OPERATOR_OR_CONDUCTOR, "reads")
QUOTA_SET_DEFAULT = QUOTA_INTERFACE.method(
    "set_default", QuotaDefaultSetRequest, QuotaDefaultReply, _OPERATOR_OR_CONDUCTOR
)
QUOTA_USAGE = QUOTA_INTERFACE.method("usage", QuotaUsageRequest, QuotaUsageReply, _API_OPERATOR_OR_CONDUCTOR, "reads")
QUOTA_RECONCILE = QUOTA_INTERFACE.method("reconcile", QuotaReconcileRequest, QuotaReconcileReply, _OPERATOR)
QUOTA_RAISE = QUOTA_INTERFACE.method("raise", ServerAmount, Empty, _CONDUCTOR)
QUOTA_SETTLE = QUOTA_INTERFACE.method("settle", ServerAmount, Empty, _CONDUCTOR)
QUOTA_STANDING = QUOTA_INTERFACE.method("standing", StandingRequest, StandingReply, _CONDUCTOR, "reads")

TASK_LIST = TASK_INTERFACE.method("list", TaskListRequest, TaskListReply, frozenset({"api", "operator"}), "reads")
TASK_RETRY = TASK_INTERFACE.method("retry", TaskOrder, TaskReply, _OPERATOR_OR_CONDUCTOR)
TASK_ABORT = TASK_INTERFACE.method("abort", TaskOrder, TaskReply, _API_OPERATOR_OR_CONDUCTOR)
TASK_COMPLETE = TASK_INTERFACE.method("complete", TaskOrder, TaskReply, _API_OPERATOR_OR_CONDUCTOR)

GROUP_CREATE = GROUP_INTERFACE.method("create", GroupCreateRequest, GroupView, _API)
GROUP_GET = GROUP_INTERFACE.method("get", GroupRequest, GroupView, _API, "reads")
GROUP_LIST = GROUP_INTERFACE.method("list", GroupListRequest, GroupListReply, _API, "reads")
GROUP_DELETE = GROUP_INTERFACE.method("delete", GroupRequest, Empty, _API)
GROUP_RESERVE = GROUP_INTERFACE.method("reserve", ReserveRequest, ReserveReply, _CONDUCTOR, "leaf")
GROUP_RELEASE = GROUP_INTERFACE.method("release", PlacementReleaseRequest, Empty, _CONDUCTOR, "leaf")
GROUP_HOSTS = GROUP_INTERFACE.method("hosts", GroupHostsRequest, GroupHostsReply, _CONDUCTOR, "leaf")

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
    IMAGE_INTERFACE,
    CELL_INTERFACE,
    MAPPING_INTERFACE,
    UPKEEP_INTERFACE,
    ENROLMENT_INTERFACE,
    QUOTA_INTERFACE,
    TASK_INTERFACE,
    GROUP_INTERFACE,
)
