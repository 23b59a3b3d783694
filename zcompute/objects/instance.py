"""The instance: one server, as its cell knows it."""

from typing import ClassVar

import msgspec

from zcompute.objects.base import VersionedObject
from zcompute.objects.flavor import Flavor
from zcompute.objects.group import GroupRule

VM_BUILDING = "building"
VM_ACTIVE = "active"
VM_ERROR = "error"
VM_DELETED = "deleted"
VM_STOPPED = "stopped"
VM_PAUSED = "paused"
VM_SUSPENDED = "suspended"
VM_RESCUED = "rescued"
VM_RESIZED = "resized"
VM_SHELVED = "shelved"
VM_SHELVED_OFFLOADED = "shelved_offloaded"
VM_SOFT_DELETED = "soft-delete"

TASK_SCHEDULING = "scheduling"
TASK_SPAWNING = "spawning"
TASK_DELETING = "deleting"
TASK_SOFT_DELETING = "soft-deleting"
TASK_RESTORING = "restoring"
TASK_POWERING_ON = "powering-on"
TASK_POWERING_OFF = "powering-off"
TASK_REBOOTING = "rebooting"
TASK_REBOOTING_HARD = "rebooting_hard"
TASK_PAUSING = "pausing"
TASK_UNPAUSING = "unpausing"
TASK_SUSPENDING = "suspending"
TASK_RESUMING = "resuming"
TASK_RESCUING = "rescuing"
TASK_UNRESCUING = "unrescuing"
TASK_IMAGE_SNAPSHOT = "image_snapshot"
TASK_REBUILDING = "rebuilding"
TASK_RESIZE_PREP = "resize_prep"
TASK_RESIZE_MIGRATING = "resize_migrating"
TASK_RESIZE_MIGRATED = "resize_migrated"
TASK_RESIZE_FINISH = "resize_finish"
TASK_RESIZE_REVERTING = "resize_reverting"
TASK_RESIZE_CONFIRMING = "resize_confirming"
TASK_MIGRATING = "migrating"
TASK_SHELVING = "shelving"
TASK_SHELVING_OFFLOADING = "shelving_offloading"
TASK_UNSHELVING = "unshelving"

ARRIVING = "arriving"
LEAVING = "leaving"
LEFT = "left"
"""What a cell's row is of a server that goes to another cell (Instance.crossing)."""

POWER_NOSTATE = 0
POWER_RUNNING = 1
POWER_PAUSED = 3
POWER_SHUTDOWN = 4
POWER_SUSPENDED = 7


class Fault(VersionedObject):
    """Why an instance is in ERROR, as Nova's ``fault``. ``code`` is an HTTP-like number, 500 unless told."""

    message: str
    code: int = 500
    details: str = ""
    created_at_us: int = 0


class ServerSpec(VersionedObject):
    """What the client asked for and what does not change afterwards; stored as one column. ``group``: the server group
    that it is a member of, for its whole life."""

    image_ref: str = ""
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    networks: list[dict[str, str]] | str = "auto"
    availability_zone: str | None = None
    key_name: str | None = None
    user_data: str | None = None
    config_drive: bool = False
    hostname: str = ""
    launch_index: int = 0
    reservation_id: str = ""
    group: GroupRule | None = None


class Move(VersionedObject):
    """What a finished resize or cold migration can go back to, until it is confirmed or reverted.

    ``kind`` as the move's task. ``former_claim`` ("task/attempt") stays in force at ``former_host``, where the stopped
    domain is kept. ``since_us``: UTC microseconds of the move's end, from which the automatic confirmation counts.
    ``operation_id`` is of whoever asked for the move.
    """

    kind: str
    former_host: str
    former_claim: str
    former_flavor: Flavor
    former_vm_state: str
    since_us: int
    operation_id: str = ""


class Instance(VersionedObject):
    """One server. The agent owns observations (power_state, progress); its partition's owner decides the rest.

    ``generation`` is the reporter generation: it rises with each change of host. (``generation``, ``agent_epoch``,
    ``observed_seq``) is the watermark of what was observed, ``decided`` counts the owner's decisions, ``revision``
    rises with every committed change of the row (the row guard). ``command_generation`` orders the commands to agents.
    ``claim`` names the claim in force ("task/attempt"); ``move.former_claim`` is in force beside it. ``locked`` refuses
    actions to all but administrators; ``locked_by_admin``: only they take that lock away.
    ``soft_deleted_at_us``: since when it could be reclaimed; ``resized_at_us``: since when a move of it could be
    confirmed, None unless it is RESIZED and without a task; ``shelved_at_us``: since when it could be offloaded, None
    unless it is SHELVED and without a task. ``shelved_image_ref``: the image that its disk was made into, as long as
    that is of use. Times are UTC microseconds.
    ``crossing``: of a server that goes to another cell. LEAVING and ARRIVING are its rows in both cells meanwhile: the
    root's mapping says which of them is the server. LEFT: deleted here, without the server being so.
    """

    VERSION: ClassVar[tuple[int, int]] = (1, 0)

    uuid: str
    project_id: str
    user_id: str
    name: str
    flavor: Flavor
    spec: ServerSpec
    mapping_generation: int = 1
    created_at_us: int = 0
    updated_at_us: int = 0
    launched_at_us: int | None = None
    deleted_at_us: int | None = None
    soft_deleted_at_us: int | None = None
    resized_at_us: int | None = None
    shelved_at_us: int | None = None
    vm_state: str = VM_BUILDING
    task_state: str | None = TASK_SCHEDULING
    power_state: int = POWER_NOSTATE
    progress: int = 0
    host: str | None = None
    claim: str | None = None
    task_id: str | None = None
    fault: Fault | None = None
    generation: int = 0
    command_generation: int = 0
    agent_epoch: int = 0
    observed_seq: int = 0
    decided: int = 0
    revision: int = 1
    locked: bool = False
    locked_by_admin: bool = False
    locked_reason: str | None = None
    move: Move | None = None
    crossing: str = ""
    shelved_image_ref: str | None = None
