"""Cells and services."""

import msgspec

from zcompute.objects.base import VersionedObject
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.flavor import Amounts
from zcompute.objects.image import ImageOutcome
from zcompute.objects.partition import ConductorInfo

ROOT_CELL = "root"

CELL_ENABLED = "enabled"
CELL_DISABLED = "disabled"
CELL_DRAINING = "draining"
CELL_DELETED = "deleted"


class CellInfo(VersionedObject):
    """A cell as the root keeps it and pushes it on topic ``cells`` (key: name, version: revision).

    ``term`` and ``map_version`` are those of the cell's map that names these conductors: an older registration that
    comes late changes nothing. ``disabled`` and ``draining`` cells take no new servers. A deleted cell's row stays, so
    that no conductor of it can bring it back; an operator creates it again.
    """

    name: str
    conductors: list[ConductorInfo] = msgspec.field(default_factory=list)
    disabled: bool = False
    draining: bool = False
    deleted_at_us: int = 0
    term: int = 0
    map_version: int = 0
    created_at_us: int = 0
    revision: int = 1

    @property
    def state(self) -> str:
        """CELL_ENABLED takes new servers, the others do not."""
        if self.deleted_at_us:
            return CELL_DELETED
        if self.draining:
            return CELL_DRAINING
        return CELL_DISABLED if self.disabled else CELL_ENABLED


class ZoneCapacity(VersionedObject):
    """What is free in one availability zone."""

    zone: str
    free: Amounts
    largest_free: Amounts
    hosts: int = 0


class CellCapacity(VersionedObject):
    """What is free on the enabled, living hosts of one conductor's partitions; soft state, never stored.

    ``zones`` are the parts of it by availability zone (``zones_max`` at most, see the sender's settings).
    """

    cell: str
    service_id: str
    free: Amounts
    largest_free: Amounts
    hosts: int = 0
    zones: list[ZoneCapacity] = msgspec.field(default_factory=list)


class ServiceInfo(VersionedObject):
    """One line of os-services."""

    service_id: str
    binary: str
    host: str
    cell: str
    state: str
    status: str = "enabled"
    disabled_reason: str | None = None
    forced_down: bool = False
    availability_zone: str = "internal"
    updated_at_us: int = 0


class OutboxEntry(VersionedObject):
    """What a cell owes the root, written in the transaction of the change itself and sent until acknowledged.

    kind ``deleted``: the server is gone, release mapping and usage. kind ``refused``: the cell definitely did not
    build it (``reason``), another cell may: the whole ``build_request`` goes back. kind ``imaged``: what has become of
    an ``image`` of it; its generation is the time, since a server has many. Keyed by (instance_uuid, kind, generation);
    partition of the instance.
    """

    instance_uuid: str
    project_id: str
    kind: str
    generation: int
    reason: str = ""
    build_request: BuildRequest | None = None
    image: ImageOutcome | None = None
    request_id: str = ""
    created_at_us: int = 0
    revision: int = 1
