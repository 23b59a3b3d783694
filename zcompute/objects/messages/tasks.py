"""Requests and replies about tasks, for operators."""

import msgspec

from zcompute.objects.task import Task


class TaskListRequest(msgspec.Struct, kw_only=True):
    """A page of a cell's tasks in the order of their ids, behind ``after``; only those that match what is named.
    ``found``: a task's id or its instance's uuid."""

    after: str = ""
    limit: int = 500
    state: str | None = None
    kind: str | None = None
    instance_uuid: str | None = None
    found: str | None = None


class TaskListReply(msgspec.Struct, kw_only=True):
    """``next`` is where the next page begins, None behind the last. ``faults`` says, by instance, why a parked task is
    parked."""

    tasks: list[Task]
    next: str | None = None
    faults: dict[str, str] = msgspec.field(default_factory=dict)


class TaskOrder(msgspec.Struct, kw_only=True):
    """An operator's word on one task, at its instance's owner. Repeated under the same ``operation_id`` it changes
    nothing more."""

    instance_uuid: str
    task_id: str
    operation_id: str


class TaskReply(msgspec.Struct, kw_only=True):
    """The task after the commit, None when it has ended. ``changed`` False: the operation was accepted before."""

    task: Task | None
    changed: bool
