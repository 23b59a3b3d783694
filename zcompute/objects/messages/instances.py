"""Requests and replies about the instances of a cell, their notifications, and its services."""

from typing import ClassVar

import msgspec

from zcompute.objects.build_request import BuildRequest
from zcompute.objects.cell import ServiceInfo
from zcompute.objects.command import StepArguments
from zcompute.objects.history import InstanceAction, InstanceActionEvent
from zcompute.objects.instance import Instance


class BuildRequestMessage(msgspec.Struct, kw_only=True):
    """The whole build request; acknowledged after the commit of the cell's instance and task."""

    build_request: BuildRequest


class InstanceGetRequest(msgspec.Struct, kw_only=True):
    """``deleted``: one that was deleted and not archived yet is found too. ``operation_id``: of a history only what
    this operation did."""

    uuid: str
    project_id: str | None = None
    deleted: bool = False
    operation_id: str = ""


class InstanceReply(msgspec.Struct, kw_only=True):
    instance: Instance


class SortBy(msgspec.Struct, kw_only=True):
    """``key`` is one of zcompute.objects.server_list.SORT_KEYS."""

    key: str
    descending: bool = True


class InstanceQuery(msgspec.Struct, kw_only=True):
    """A page of instances, those strictly after ``after``, by all the filters that are set.

    ``sort`` empty: newest first. Where all keys are equal the uuid decides, in the direction of the first key.
    ``after`` has the values of the sort keys and then the uuid of the row behind which the page begins.
    ``project_id`` None = all projects (administrators). ``name_like`` is a LIKE pattern (objects.name_pattern).
    ``statuses`` are Nova's (ACTIVE, BUILD, ERROR, ...), like all lists of this kind empty for any. ``deleted`` None:
    the deleted ones too, True: only them. ``soft_deleted``: with those that wait to be reclaimed, whatever ``deleted``
    says. Changes are told by ``updated_at_us``, both ends included.
    """

    project_id: str | None
    limit: int
    sort: list[SortBy] = msgspec.field(default_factory=list)
    after: list[int | str | None] | None = None
    statuses: list[str] = msgspec.field(default_factory=list)
    vm_states: list[str] = msgspec.field(default_factory=list)
    task_states: list[str] = msgspec.field(default_factory=list)
    power_state: int | None = None
    uuids: list[str] = msgspec.field(default_factory=list)
    name_like: str | None = None
    host: str | None = None
    user_id: str | None = None
    flavorid: str | None = None
    image_ref: str | None = None
    reservation_id: str | None = None
    changes_since_us: int | None = None
    changes_before_us: int | None = None
    deleted: bool | None = False
    soft_deleted: bool = True


class InstanceListReply(msgspec.Struct, kw_only=True):
    """A page, without user data. ``cut``: it is shorter than asked for because of its bytes, and there is more."""

    instances: list[Instance]
    cut: bool = False


class InstanceBrief(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """A row of a list without details: its name, the values of the sort keys asked for, and what tells which of two
    rows of one server counts. Whatever else is at its default."""

    uuid: str
    name: str = ""
    mapping_generation: int = 1
    project_id: str = ""
    user_id: str = ""
    created_at_us: int = 0
    updated_at_us: int = 0
    launched_at_us: int | None = None
    deleted_at_us: int | None = None
    vm_state: str = ""
    task_state: str | None = None
    power_state: int = 0
    progress: int = 0
    host: str | None = None
    crossing: str = ""


class InstanceBriefsReply(msgspec.Struct, kw_only=True):
    """A page. Never cut: of 1,000 rows the names and all sort keys have 2 MB at most, and the bus carries 3."""

    cut: ClassVar[bool] = False
    instances: list[InstanceBrief]


class InstanceCountRequest(msgspec.Struct, kw_only=True):
    """How many instances a list without a limit would have, but for those named (which are counted elsewhere)."""

    query: InstanceQuery
    without: list[str] = msgspec.field(default_factory=list)


class InstanceCountReply(msgspec.Struct, kw_only=True):
    count: int


class InstanceActionsReply(msgspec.Struct, kw_only=True):
    """What was done with an instance, newest first: its operations, and the steps of them that have ended.

    ``under_way`` is the step of the operation that has not ended, its event without an end.
    """

    actions: list[InstanceAction]
    events: list[InstanceActionEvent]
    under_way: InstanceActionEvent | None = None


class InstanceDeleteRequest(msgspec.Struct, kw_only=True):
    """``administrator``: a lock does not keep the caller from it. ``force``: at once, where a delete could be taken
    back for a while."""

    uuid: str
    project_id: str
    operation_id: str
    administrator: bool = False
    force: bool = False


class InstanceActionRequest(msgspec.Struct, kw_only=True):
    """``action`` is a key of zcompute.objects.actions. ``administrator``: a lock does not keep the caller from it.

    ``vm_state``: what an administrator resets it to; ``reason``: of a lock; ``name`` and ``metadata``: what a rebuild
    changes besides, None to leave it.
    """

    uuid: str
    project_id: str
    operation_id: str
    action: str
    arguments: StepArguments = msgspec.field(default_factory=StepArguments)
    administrator: bool = False
    vm_state: str = ""
    reason: str | None = None
    name: str | None = None
    metadata: dict[str, str] | None = None


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
