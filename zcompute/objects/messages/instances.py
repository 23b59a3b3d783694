"""Requests and replies about the instances of a cell, their notifications, and its services."""

import msgspec

from zcompute.objects.build_request import BuildRequest
from zcompute.objects.cell import ServiceInfo
from zcompute.objects.history import InstanceAction, InstanceActionEvent
from zcompute.objects.instance import Instance


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
