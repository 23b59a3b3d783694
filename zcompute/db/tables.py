"""How each object becomes a row and back: one codec a table.

Rows hold primitives only (None, int, float, str, bytes, bool), key columns first, then ``partition_id``, then the
rest in the schema's order. Objects inside objects are packed with their version (zcompute.objects.base.pack).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, Generic, Protocol, TypeVar

from zcompute.db.fields import (
    STRING_MAP,
    STRINGS,
    Field,
    amounts,
    blob,
    flags,
    packed,
    packed_alike,
    packed_list,
    plain,
)
from zcompute.objects.archive import ArchivedRow
from zcompute.objects.base import VersionedObject, pack
from zcompute.objects.build_request import BuildRequest, InstanceMapping, Operation, Usage
from zcompute.objects.cell import CellInfo, OutboxEntry
from zcompute.objects.cross_move import CrossMove, CrossMoveBody
from zcompute.objects.enrolment import EnrolledKey, Enrolment
from zcompute.objects.flavor import Flavor
from zcompute.objects.group import GroupPlacement, GroupStanding, ServerGroup
from zcompute.objects.history import InstanceAction, InstanceActionEvent
from zcompute.objects.host import Claim, Host
from zcompute.objects.image import Image, ImageOutcome
from zcompute.objects.instance import Fault, Instance, Move, ServerSpec
from zcompute.objects.notification import NotifierCursor, StoredNotification, UsageAudit
from zcompute.objects.partition import GLOBAL_KEY, ConductorInfo, partition_of
from zcompute.objects.quota import ProjectUsage, Quota, QuotaClass
from zcompute.objects.stored import Pack
from zcompute.objects.task import Task, TaskBody

T = TypeVar("T", bound=VersionedObject)
P = TypeVar("P")
Made = TypeVar("Made", covariant=True)
Row = tuple[Any, ...]
Key = tuple[Any, ...]
Reader = tuple[str, int, int, Callable[..., Any] | None]

PARTITION_COLUMN = "partition_id"
REVISION_COLUMN = "revision"


class TableCodec(Generic[T]):
    """Turns objects of one kind into rows of one table and back.

    ``update_columns`` are those that an Update may set (revision, the row guard, among them); empty for tables whose
    rows are only inserted and deleted. ``partition_key`` None: the objects name their partition themselves.
    ``derived``: no table at all, but what the database computes of another one: rows are read and kept like others,
    and never written.
    """

    def __init__(
        self,
        name: str,
        kind: type[T],
        key: tuple[str, ...],
        fields: tuple[Field, ...],
        partition_key: Callable[[T], str] | None,
        *,
        insert_only: bool = False,
        derived: bool = False,
    ) -> None:
        self.name = name
        self.derived = derived
        self.kind = kind
        self.key_columns = key
        self.partition_key = partition_key
        columns = [column for field in fields for column in field.columns]
        own = () if partition_key is None else (PARTITION_COLUMN,)
        self.columns: tuple[str, ...] = (*columns[: len(key)], *own, *columns[len(key) :])
        if self.columns[: len(key)] != key:
            raise ValueError(f"{name}: the key columns {key} must come first, found {self.columns[: len(key)]}")
        self.partition_at = self.columns.index(PARTITION_COLUMN)
        self.revisioned = REVISION_COLUMN in self.columns  # claims are not: they are only inserted and deleted
        self.update_columns: tuple[str, ...] = () if insert_only else self.columns[len(key) + len(own) :]
        self._width = len(key)
        self._values = attrgetter(*(path for field in fields for path in field.paths))
        self._encoders: list[tuple[int, Callable[[Any, Pack], Any]]] = []
        self.encoders: dict[str, Callable[[Any, Pack], Any]] = {}  # by column: how packed columns are packed
        self._path_of = {
            column: path for field in fields for column, path in zip(field.columns, field.paths, strict=True)
        }
        self.readers: list[Reader] = []
        self._key_of = attrgetter(*key)
        at = 0
        for field in fields:
            if field.encode is not None:
                self._encoders.append((at, field.encode))
                self.encoders[field.columns[0]] = field.encode
            # In a row every column after the key is one further, for a partition_id that is no field.
            start = at if at < len(key) else at + len(own)
            self.readers.append((field.attribute, start, start + len(field.columns), field.decode))
            at += len(field.columns)

    def __repr__(self) -> str:
        return f"TableCodec({self.name})"

    def key_of(self, stored: T) -> Key:
        """The primary key, as a tuple in the order of ``key_columns``."""
        key = self._key_of(stored)
        return key if self._width > 1 else (key,)

    def home_of(self, stored: T) -> int:
        """The partition to which the object belongs: by its key, or as it says itself."""
        if self.partition_key is not None:
            return partition_of(self.partition_key(stored))
        home: int = getattr(stored, PARTITION_COLUMN)
        return home

    def to_row(self, stored: T, partition_id: int, packed: Pack = pack) -> Row:
        """The whole row, in the order of ``columns``; objects inside as ``packed`` writes them (pack_at a level)."""
        values = list(self._values(stored))
        for index, encode in self._encoders:
            values[index] = encode(values[index], packed)
        if self.partition_key is not None:
            values.insert(self._width, partition_id)
        return tuple(values)

    def update_row(self, stored: T, columns: tuple[str, ...] | None = None) -> Row:
        """The row of an Update that sets ``columns`` (default: all update_columns): key columns, then those."""
        row = self.to_row(stored, 0)
        return row[: self._width] + self.picker(columns or self.update_columns)(row)

    def values(self, columns: tuple[str, ...]) -> Callable[[T], Row]:
        """A function that takes these columns from an object, as a tuple; packed columns as the objects they hold."""
        return self.getter(tuple(self._path_of[column] for column in columns))

    @staticmethod
    def getter(paths: tuple[str, ...]) -> Callable[[T], Row]:
        """A function that takes these attributes from an object, as a tuple."""
        if len(paths) > 1:
            return attrgetter(*paths)
        return lambda stored: tuple([attrgetter(path)(stored) for path in paths])

    def picker(self, columns: tuple[str, ...]) -> Callable[[Row], Row]:
        """A function that takes these columns out of a whole row, as a tuple."""
        indexes = [self.columns.index(column) for column in columns]
        if len(indexes) == 1:
            only = indexes[0]
            return lambda row: (row[only],)
        return itemgetter(*indexes)

    def from_row(self, row: Row) -> T:
        """The object of a whole row. Raises StoredObjectInvalid or ObjectVersionUnsupported for packed columns."""
        fields: dict[str, Any] = {}
        for attribute, start, end, decode in self.readers:
            if decode is None:
                fields[attribute] = row[start]
            elif end - start == 1:
                fields[attribute] = decode(row[start])
            else:
                fields[attribute] = decode(*row[start:end])
        return self.kind(**fields)


class RowForm(Protocol[Made]):
    """What a driver needs of rows to make objects of them: a TableCodec, or a Projection."""

    def __hash__(self) -> int:
        """How to read a row is worked out once a form."""

    @property
    def name(self) -> str:
        """The table's."""

    @property
    def kind(self) -> Callable[..., Made]:
        """What is made, of its attributes."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is selected, in this order."""

    @property
    def readers(self) -> Sequence[Reader]:
        """Which attribute comes of which columns: name, first, one behind the last, decoder."""

    def from_row(self, row: Row) -> Made:
        """The object of these columns' values."""


@dataclass(frozen=True)
class Projection(Generic[P]):
    """Some columns of a table, as objects that have fields of their names. None of them is packed."""

    name: str
    kind: type[P]
    columns: tuple[str, ...]

    @property
    def readers(self) -> Sequence[Reader]:
        """As TableCodec.readers."""
        return [(column, at, at + 1, None) for at, column in enumerate(self.columns)]

    def from_row(self, row: Row) -> P:
        """The object of these columns' values."""
        return self.kind(**dict(zip(self.columns, row, strict=True)))


def _of_global(_: VersionedObject) -> str:
    return GLOBAL_KEY


INSTANCES: TableCodec[Instance] = TableCodec(
    "instances",
    Instance,
    ("uuid",),
    (
        *plain("uuid", "project_id", "user_id", "name"),
        *packed_alike("flavor", Flavor),
        *packed("spec", ServerSpec),
        *plain("mapping_generation", "created_at_us", "updated_at_us", "launched_at_us", "deleted_at_us"),
        *plain("vm_state", "task_state", "power_state", "progress", "host", "claim", "task_id"),
        *packed("fault", Fault),
        *plain("generation", "command_generation", "agent_epoch", "observed_seq", "decided"),
        *plain("soft_deleted_at_us", "resized_at_us", "shelved_at_us", "shelved_image_ref"),
        *flags("locked", "locked_by_admin"),
        *plain("locked_reason"),
        *packed("move", Move),
        *plain("crossing", "revision"),
    ),
    attrgetter("uuid"),
)

HOSTS: TableCodec[Host] = TableCodec(
    "hosts",
    Host,
    ("name",),
    (
        *plain("name", "service_id"),
        *amounts("total", "total_"),
        *amounts("used", "used_"),
        *plain("instances", "hypervisor_type", "hypervisor_hostname", "availability_zone", "agent_epoch", "state"),
        *flags("forced_down", "disabled"),
        *plain("disabled_reason", "created_at_us", "updated_at_us", "revision"),
    ),
    attrgetter("name"),
)

CLAIMS: TableCodec[Claim] = TableCodec(
    "claims",
    Claim,
    ("instance_uuid", "task_id", "attempt"),
    (
        *plain("instance_uuid", "task_id", "attempt", "host"),
        *amounts("amounts", ""),
        *plain("created_at_us"),
    ),
    attrgetter("host"),
    insert_only=True,
)

GROUP_PLACEMENTS: TableCodec[GroupPlacement] = TableCodec(
    "group_placements",
    GroupPlacement,
    ("group_uuid", "instance_uuid", "task_id", "attempt"),
    plain("group_uuid", "instance_uuid", "task_id", "attempt", "host", "created_at_us"),
    attrgetter("group_uuid"),
    insert_only=True,
)

GROUP_STANDINGS: TableCodec[GroupStanding] = TableCodec(
    "group_standings",
    GroupStanding,
    ("group_uuid",),
    (*plain("group_uuid"), *packed_list("placements", GroupPlacement), *plain("revision")),
    attrgetter("group_uuid"),
    derived=True,
)

TASKS: TableCodec[Task] = TableCodec(
    "tasks",
    Task,
    ("id",),
    (
        *plain("id", "instance_uuid", "kind", "step", "state", "attempt", "deadline_at_us"),
        *plain("operation_id", "request_id"),
        *packed("body", TaskBody),
        *plain("created_at_us", "updated_at_us", "revision"),
    ),
    attrgetter("instance_uuid"),
)

ROOT_OUTBOX: TableCodec[OutboxEntry] = TableCodec(
    "root_outbox",
    OutboxEntry,
    ("instance_uuid", "kind", "generation"),
    (
        *plain("instance_uuid", "kind", "generation", "project_id", "reason"),
        *packed("build_request", BuildRequest),
        *packed("image", ImageOutcome),
        *plain("request_id", "created_at_us", "revision"),
    ),
    attrgetter("instance_uuid"),
    insert_only=True,
)

BUILD_REQUESTS: TableCodec[BuildRequest] = TableCodec(
    "build_requests",
    BuildRequest,
    ("uuid",),
    (
        *plain("uuid", "project_id", "user_id", "name"),
        *packed_alike("flavor", Flavor),
        *packed("spec", ServerSpec),
        *plain("operation_id", "request_id", "created_at_us", "state", "cell", "generation"),
        *flags("delete_requested"),
        *packed("fault", Fault),
        *plain("revision"),
    ),
    attrgetter("project_id"),
)

MAPPINGS: TableCodec[InstanceMapping] = TableCodec(
    "instance_mappings",
    InstanceMapping,
    ("uuid",),
    (
        *plain("uuid", "project_id", "cell", "generation"),
        *blob("tried_cells", STRINGS),
        *plain("group_uuid", "revision"),
    ),
    attrgetter("project_id"),
)

SERVER_GROUPS: TableCodec[ServerGroup] = TableCodec(
    "server_groups",
    ServerGroup,
    ("uuid",),
    (
        *plain("uuid", "project_id", "user_id", "name", "policy", "max_server_per_host"),
        *blob("metadata", STRING_MAP),
        *plain("cell", "created_at_us", "revision"),
    ),
    attrgetter("project_id"),
)

CROSS_MOVES: TableCodec[CrossMove] = TableCodec(
    "cross_moves",
    CrossMove,
    ("uuid",),
    (
        *plain("uuid", "project_id", "operation_id", "source_cell", "target_cell", "generation", "step", "state"),
        *plain("deadline_at_us", "created_at_us", "updated_at_us", "ended_at_us"),
        *packed("body", CrossMoveBody),
        *plain("revision"),
    ),
    attrgetter("project_id"),
)

USAGES: TableCodec[Usage] = TableCodec(
    "usages",
    Usage,
    ("uuid",),
    plain("uuid", "project_id", "cores", "ram_mb", "decided", "raised_at_us", "revision"),
    attrgetter("project_id"),
)

QUOTAS: TableCodec[Quota] = TableCodec(
    "quotas",
    Quota,
    ("project_id",),
    plain("project_id", "instances", "cores", "ram_mb", "revision"),
    attrgetter("project_id"),
)

QUOTA_CLASSES: TableCodec[QuotaClass] = TableCodec(
    "quota_classes", QuotaClass, ("name",), plain("name", "instances", "cores", "ram_mb", "revision"), _of_global
)

PROJECT_USAGES: TableCodec[ProjectUsage] = TableCodec(
    "project_usages",
    ProjectUsage,
    ("project_id",),
    plain("project_id", "instances", "cores", "ram_mb", "revision"),
    attrgetter("project_id"),
    derived=True,
)

OPERATIONS: TableCodec[Operation] = TableCodec(
    "operations",
    Operation,
    ("project_id", "operation_id"),
    (
        *plain("project_id", "operation_id", "kind", "digest"),
        *blob("uuids", STRINGS),
        *plain("reservation_id", "created_at_us", "revision"),
    ),
    attrgetter("project_id"),
    insert_only=True,
)

FLAVORS: TableCodec[Flavor] = TableCodec(
    "flavors",
    Flavor,
    ("flavorid",),
    (
        *plain("flavorid", "name", "vcpus", "memory_mb", "root_gb", "ephemeral_gb", "swap_mb"),
        *flags("is_public", "disabled"),
        *plain("description"),
        *blob("extra_specs", STRING_MAP),
        *plain("revision"),
    ),
    _of_global,
)

IMAGES: TableCodec[Image] = TableCodec(
    "images",
    Image,
    ("id",),
    (
        *plain("id", "project_id", "name", "user_id", "status", "visibility", "size_bytes", "checksum"),
        *plain("min_disk_gb", "min_ram_mb"),
        *blob("properties", STRING_MAP),
        *plain("server_uuid", "operation_id", "reason", "created_at_us", "updated_at_us", "deleted_at_us"),
        *plain("deleted_by", "revision"),
    ),
    attrgetter("id"),
)

CELLS: TableCodec[CellInfo] = TableCodec(
    "cells",
    CellInfo,
    ("name",),
    (
        *plain("name"),
        *packed_list("conductors", ConductorInfo),
        *flags("disabled", "draining"),
        *plain("deleted_at_us", "term", "map_version", "created_at_us", "revision"),
    ),
    _of_global,
)

ENROLMENTS: TableCodec[Enrolment] = TableCodec(
    "enrolments",
    Enrolment,
    ("id",),
    (
        *plain("id", "token_key", "role", "cell"),
        *blob("hosts", STRINGS),
        *plain("uses_max", "expires_at_us", "created_at_us", "created_by"),
        *flags("revoked"),
        *packed_list("enrolled", EnrolledKey),
        *plain("revision"),
    ),
    _of_global,
)

INSTANCE_ACTIONS: TableCodec[InstanceAction] = TableCodec(
    "instance_actions",
    InstanceAction,
    ("instance_uuid", "operation_id"),
    plain(
        "instance_uuid", "operation_id", "action", "request_id", "user_id", "project_id",
        "started_at_us", "finished_at_us", "result", "message", "revision",
    ),
    attrgetter("instance_uuid"),
)  # fmt: skip

INSTANCE_ACTION_EVENTS: TableCodec[InstanceActionEvent] = TableCodec(
    "instance_action_events",
    InstanceActionEvent,
    ("instance_uuid", "operation_id", "task_id", "event", "attempt"),
    plain(
        "instance_uuid", "operation_id", "task_id", "event", "attempt", "host",
        "started_at_us", "finished_at_us", "result", "message",
    ),
    attrgetter("instance_uuid"),
    insert_only=True,
)  # fmt: skip

USAGE_AUDITS: TableCodec[UsageAudit] = TableCodec(
    "usage_audits",
    UsageAudit,
    ("partition_id",),
    plain("partition_id", "period_at_us", "after_uuid", "revision"),
    None,
)

NOTIFICATIONS: TableCodec[StoredNotification] = TableCodec(
    "notifications",
    StoredNotification,
    ("partition_id", "n"),
    plain("partition_id", "n", "created_at_us", "event_type", "instance_uuid", "body"),
    None,
    insert_only=True,
)

NOTIFIER_CURSORS: TableCodec[NotifierCursor] = TableCodec(
    "notifier_cursors",
    NotifierCursor,
    ("partition_id", "notifier"),
    plain("partition_id", "notifier", "n", "updated_at_us", "revision"),
    None,
)

ARCHIVED_ROWS: TableCodec[ArchivedRow] = TableCodec(
    "archived_rows",
    ArchivedRow,
    ("partition_id", "archived_at_us", "source", "row_key"),
    plain("partition_id", "archived_at_us", "source", "row_key", "body"),
    None,
    insert_only=True,
)

# The one order in which a batch touches tables, so that two batches cannot deadlock.
CELL_TABLES: tuple[TableCodec[Any], ...] = (
    INSTANCES, HOSTS, CLAIMS, GROUP_PLACEMENTS, TASKS, ROOT_OUTBOX, INSTANCE_ACTIONS, INSTANCE_ACTION_EVENTS,
    USAGE_AUDITS,
)  # fmt: skip
ROOT_TABLES: tuple[TableCodec[Any], ...] = (
    BUILD_REQUESTS, MAPPINGS, CROSS_MOVES, SERVER_GROUPS, USAGES, OPERATIONS, FLAVORS, CELLS, QUOTAS, QUOTA_CLASSES,
    IMAGES,
)  # fmt: skip
SHARED_TABLES: tuple[TableCodec[Any], ...] = (ENROLMENTS, NOTIFIER_CURSORS, NOTIFICATIONS, ARCHIVED_ROWS)
_ALL = (*CELL_TABLES, *ROOT_TABLES, *SHARED_TABLES)
TABLE_ORDER: dict[str, int] = {table.name: at for at, table in enumerate(_ALL)}
CODECS: dict[str, TableCodec[Any]] = {table.name: table for table in _ALL}
