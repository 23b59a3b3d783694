"""Hosts: what an agent says of them, what their owner keeps, what a scheduler sees."""

from zcompute.objects.base import VersionedObject
from zcompute.objects.flavor import Amounts

HOST_UP = "up"
HOST_DOWN = "down"
HOST_UNKNOWN = "unknown"


class HostInventory(VersionedObject):
    """What a host has, as its agent says at ``host.begin``."""

    name: str
    total: Amounts
    hypervisor_type: str = "fake"
    hypervisor_hostname: str = ""
    availability_zone: str = "nova"


class Host(VersionedObject):
    """A host's row, owned by the partition of its name. ``used`` changes only by claims."""

    name: str
    service_id: str
    total: Amounts
    used: Amounts = Amounts()
    instances: int = 0
    hypervisor_type: str = "fake"
    hypervisor_hostname: str = ""
    availability_zone: str = "nova"
    agent_epoch: int = 0
    state: str = HOST_UNKNOWN
    forced_down: bool = False
    disabled: bool = False
    disabled_reason: str | None = None
    created_at_us: int = 0
    updated_at_us: int = 0
    revision: int = 1


class HostState(VersionedObject):
    """A host as a scheduler sees it; pushed as `state` events on topic ``hosts`` (key: name, version: revision)."""

    name: str
    partition: int
    total: Amounts
    used: Amounts
    instances: int
    state: str
    enabled: bool
    availability_zone: str
    revision: int


class Claim(VersionedObject):
    """A claim of one attempt of one task on one host, keyed (instance, task, attempt), with absolute amounts."""

    instance_uuid: str
    task_id: str
    attempt: int
    host: str
    amounts: Amounts
    created_at_us: int = 0

    @property
    def name(self) -> str:
        """As the instance's row names it: "task/attempt"."""
        return f"{self.task_id}/{self.attempt}"
