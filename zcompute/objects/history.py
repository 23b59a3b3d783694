"""An instance's history: what was asked of it, and the steps in which that was done."""

from zcompute.objects.base import VersionedObject

RESULT_SUCCESS = "Success"
RESULT_ERROR = "Error"


class InstanceAction(VersionedObject):
    """One operation on an instance, as Nova's instance action; unique by its operation id. Times are UTC
    microseconds; ``finished_at_us`` None: it is under way."""

    instance_uuid: str
    operation_id: str
    action: str
    request_id: str = ""
    user_id: str = ""
    project_id: str = ""
    started_at_us: int = 0
    finished_at_us: int | None = None
    result: str = ""
    message: str = ""
    revision: int = 1


class InstanceActionEvent(VersionedObject):
    """One step of an operation that has ended, as Nova's instance action event; written once, at its end.

    Unique by operation, task (an operation comes back as a new task when another cell refused it), step and attempt.
    """

    instance_uuid: str
    operation_id: str
    task_id: str
    event: str
    attempt: int = 0
    host: str = ""
    started_at_us: int = 0
    finished_at_us: int = 0
    result: str = ""
    message: str = ""
