"""The instance: one server, as its cell knows it."""

from typing import ClassVar

import msgspec

from zcompute.objects.base import VersionedObject
from zcompute.objects.flavor import Flavor

VM_BUILDING = "building"
VM_ACTIVE = "active"
VM_ERROR = "error"
VM_DELETED = "deleted"

TASK_SCHEDULING = "scheduling"
TASK_SPAWNING = "spawning"
TASK_DELETING = "deleting"

POWER_NOSTATE = 0
POWER_RUNNING = 1
POWER_PAUSED = 3
POWER_SHUTDOWN = 4


class Fault(VersionedObject):
    """Why an instance is in ERROR, as Nova's ``fault``. ``code`` is an HTTP-like number, 500 unless told."""

    message: str
    code: int = 500
    details: str = ""
    created_at_us: int = 0


class ServerSpec(VersionedObject):
    """What the client asked for and what does not change afterwards; stored as one column."""

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


class Instance(VersionedObject):
    """One server. The agent owns observations (power_state, progress); its partition's owner decides the rest.

    ``generation`` is the reporter generation: it rises with each change of host. (``generation``, ``agent_epoch``,
    ``observed_seq``) is the watermark of what was observed, ``decided`` counts the owner's decisions, ``revision``
    rises with every committed change of the row (the row guard). ``command_generation`` orders the commands to agents.
    ``claim`` names the claim in force ("task/attempt"). Times are UTC microseconds.
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
