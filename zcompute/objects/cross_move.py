"""A server's move to another cell, as the root's owner of its project journals it."""

import msgspec

from zcompute.objects.base import VersionedObject
from zcompute.objects.instance import Instance

CROSS_RUNNING = "running"
CROSS_ENDED = "ended"

KIND_CROSS_MOVE = "cross_move"
"""What it is called among the tasks."""


class CrossMoveBody(VersionedObject):
    """What the steps have learnt so far. ``instance`` is the server as its source was told to hold it, ``host`` the
    destination in the target cell and ``answers`` what that host's ``prepare`` said. ``arrived_at_us``: since when the
    target cell has a row of it. ``result``: why it is, or was, rolled back, or why the server is in
    ERROR where it has come to; "" for one that went well."""

    instance: Instance | None = None
    host: str = ""
    answers: dict[str, str] = msgspec.field(default_factory=dict)
    arrived_at_us: int = 0
    step_began_at_us: int = 0
    result: str = ""
    request_id: str = ""


class CrossMove(VersionedObject):
    """A row a server: its move that is under way, or its last. ``generation`` is the mapping's from the switch on, one
    above that of its beginning. ``deadline_at_us``: the primary's UTC time by which the switch has been committed, or
    the move is rolled back."""

    uuid: str
    project_id: str
    operation_id: str
    source_cell: str
    target_cell: str
    generation: int
    step: str
    state: str = CROSS_RUNNING
    deadline_at_us: int = 0
    created_at_us: int = 0
    updated_at_us: int = 0
    ended_at_us: int | None = None
    body: CrossMoveBody = msgspec.field(default_factory=CrossMoveBody)
    revision: int = 1
