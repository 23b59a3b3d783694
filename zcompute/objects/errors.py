"""Errors of the data model, and those that services answer to one another.

The second sort crosses the wire by ``wire_name`` with a message and a few details (zcompute.bus registers them; this
package imports nothing of ours).
"""

from typing import Any, ClassVar


class ObjectError(Exception):
    """Root of this package's errors."""


class StoredObjectInvalid(ObjectError):
    """Stored bytes are not the object that was expected."""


class ObjectVersionUnsupported(ObjectError):
    """A stored object is of a major version that this release does not read."""


class CannotLower(ObjectError, ValueError):
    """An object holds what the version that its reader knows cannot say."""


class ServiceError(ObjectError):
    """An answer other than success, known on both sides of the wire."""

    wire_name: ClassVar[str] = "ServiceError"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InstanceNotFound(ServiceError):
    """No such instance here. details: uuid."""

    wire_name = "InstanceNotFound"


class FlavorNotFound(ServiceError):
    """No flavor with this id. details: flavor."""

    wire_name = "FlavorNotFound"


class ImageNotFound(ServiceError):
    """No image with this id that this caller may see. details: image."""

    wire_name = "ImageNotFound"


class HostNotFound(ServiceError):
    """No such host in this cell. details: host."""

    wire_name = "HostNotFound"


class HostNotClean(ServiceError):
    """The host may have what is elsewhere, or deleted, by now. details: host, servers (the first of them)."""

    wire_name = "HostNotClean"


class FenceFailed(ServiceError):
    """The fence command did not say that the host is off, or there is none. details: host."""

    wire_name = "FenceFailed"


class ServerGroupNotFound(ServiceError):
    """The project has no such server group. details: group."""

    wire_name = "ServerGroupNotFound"


class CellNotFound(ServiceError):
    """The root knows no such cell. details: cell."""

    wire_name = "CellNotFound"


class CellRefused(ServiceError):
    """The cell's state does not allow this. details: cell, state, left (what is still there)."""

    wire_name = "CellRefused"


class EnrolmentRefused(ServiceError):
    """The token lets nobody in, or not this one. details: reason (expired | used | revoked | unknown | foreign)."""

    wire_name = "EnrolmentRefused"


class MarkerNotFound(ServiceError):
    """The marker of a list is not an instance that this caller sees. details: marker."""

    wire_name = "MarkerNotFound"


class OperationConflict(ServiceError):
    """The operation id was used before for another request. details: operation_id."""

    wire_name = "OperationConflict"


class InstanceBusy(ServiceError):
    """The instance's task_state or vm_state does not allow this. details: uuid, vm_state, task_state."""

    wire_name = "InstanceBusy"


class InstanceLocked(InstanceBusy):
    """A lock keeps all but administrators from this: waiting does not help. details: as InstanceBusy."""

    wire_name = "InstanceLocked"


class ActionForbidden(ServiceError):
    """Only administrators may do this. details: uuid, action."""

    wire_name = "ActionForbidden"


class ActionInvalid(ServiceError):
    """What was asked for makes no sense for this server, in Nova's words. details: uuid, action."""

    wire_name = "ActionInvalid"


class QuotaExceeded(ServiceError):
    """The project's quota does not allow this. details: resource, limit, used, requested."""

    wire_name = "QuotaExceeded"


class NoValidHost(ServiceError):
    """No host passes the filters. details: reason."""

    wire_name = "NoValidHost"


class SchedulerStale(ServiceError):
    """The scheduler has not yet (or no longer) a picture of all partitions. details: missing (count)."""

    wire_name = "SchedulerStale"


class TaskNotFound(ServiceError):
    """No such task is under way here. details: task_id."""

    wire_name = "TaskNotFound"


class TaskRefused(ServiceError):
    """The task's kind, step or state does not allow this. details: task_id, kind, step, state."""

    wire_name = "TaskRefused"


class CommandRefused(ServiceError):
    """An agent refused a command of an older owner or generation. details: reason (stale_owner | stale_generation)."""

    wire_name = "CommandRefused"


class EpochRefused(ServiceError):
    """An agent's epoch is not the host's current one. details: host, epoch, verdict (superseded | invalid)."""

    wire_name = "EpochRefused"


SERVICE_ERRORS: tuple[type[ServiceError], ...] = (
    InstanceNotFound,
    FlavorNotFound,
    ImageNotFound,
    HostNotFound,
    FenceFailed,
    HostNotClean,
    ServerGroupNotFound,
    CellNotFound,
    CellRefused,
    EnrolmentRefused,
    MarkerNotFound,
    OperationConflict,
    InstanceBusy,
    InstanceLocked,
    ActionForbidden,
    ActionInvalid,
    QuotaExceeded,
    NoValidHost,
    SchedulerStale,
    TaskNotFound,
    TaskRefused,
    CommandRefused,
    EpochRefused,
)
