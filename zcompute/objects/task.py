"""Journaled tasks: long operations that any conductor can carry on."""

import msgspec

from zcompute.objects.base import VersionedObject
from zcompute.objects.command import StepArguments
from zcompute.objects.instance import Fault

TASK_BUILD = "build"
TASK_DELETE = "delete"
TASK_ACT = "act"
TASK_MIGRATE = "migrate"
TASK_RESIZE = "resize"
TASK_LIVE_MIGRATE = "live_migrate"
TASK_EVACUATE = "evacuate"
TASK_CONFIRM_RESIZE = "confirm_resize"
TASK_REVERT_RESIZE = "revert_resize"
TASK_EXPORT = "export"
TASK_IMPORT = "import"
CROSSING_KINDS = frozenset({TASK_EXPORT, TASK_IMPORT})
"""The two sides of a move to another cell: the root says what they do."""
TASK_SHELVE = "shelve"  # and offload, at once
TASK_SHELVE_HERE = "shelve_here"  # it stays on its host for a while
TASK_SHELVE_OFFLOAD = "shelve_offload"
TASK_UNSHELVE = "unshelve"  # of one that is on no host
TASK_UNSHELVE_HERE = "unshelve_here"

TASK_RUNNING = "running"
TASK_PARKED = "parked"


class ClaimName(msgspec.Struct, frozen=True, kw_only=True):
    """Names one claim: (task, attempt) on a host."""

    host: str
    task_id: str
    attempt: int


class TaskBody(VersionedObject):
    """What the steps of a task have learnt so far. ``candidates`` are hosts not yet tried, best first; ``host`` is
    the host of the attempt under way; ``named_hosts`` every host that a command or claim of this task may have
    reached: a new owner adopts the instance at those that were commanded; ``destroyed`` those of them that have
    answered that nothing is left; ``release`` are claims to be released before the end; ``reschedules`` counts how
    often all candidates were used up; ``refused`` says why, by host; ``step_began_at_us`` is of the present step and
    attempt, ``failures`` how often the present step has failed.

    ``action`` is what was asked for (a key of zcompute.objects.actions), with its ``arguments``;
    ``former_vm_state`` where a task that is rolled back returns to, ``fault`` then of before; ``result``: why it is.
    Of a move ``source`` is the host it leaves, ``host`` the one it goes to, ``destination`` the one that was asked for
    by name; ``answers`` is what steps had to say to later ones, by the step's name; ``complete``: a live migration is
    to come to its end, whatever that takes."""

    host: str | None = None
    candidates: list[str] = msgspec.field(default_factory=list)
    named_hosts: list[str] = msgspec.field(default_factory=list)
    refused: dict[str, str] = msgspec.field(default_factory=dict)
    release: list[ClaimName] = msgspec.field(default_factory=list)
    destroyed: list[str] = msgspec.field(default_factory=list)
    reschedules: int = 0
    result: str = ""
    fault: Fault | None = None
    step_began_at_us: int = 0
    failures: int = 0
    action: str = ""
    arguments: StepArguments = StepArguments()
    former_vm_state: str = ""
    source: str | None = None
    destination: str | None = None
    answers: dict[str, dict[str, str]] = msgspec.field(default_factory=dict)
    complete: bool = False


class Task(VersionedObject):
    """A task's row: at most one an instance. ``attempt`` rises with each try on another host (and names its claim),
    ``deadline_at_us`` is the primary's UTC time by which the present step ends or the task parks."""

    id: str
    instance_uuid: str
    kind: str
    step: str
    state: str = TASK_RUNNING
    attempt: int = 0
    deadline_at_us: int = 0
    operation_id: str = ""
    request_id: str = ""
    body: TaskBody = msgspec.field(default_factory=TaskBody)
    created_at_us: int = 0
    updated_at_us: int = 0
    revision: int = 1
