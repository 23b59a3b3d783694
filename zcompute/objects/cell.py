"""Cells and services."""

import msgspec

from zcompute.objects.base import VersionedObject
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.flavor import Amounts
from zcompute.objects.partition import ConductorInfo

ROOT_CELL = "root"


class CellInfo(VersionedObject):
    """A cell as the root keeps it and pushes it on topic ``cells`` (key: name, version: revision).

    ``term`` and ``map_version`` are those of the cell's map that names these conductors: an older registration that
    comes late changes nothing.
    """

    name: str
    conductors: list[ConductorInfo] = msgspec.field(default_factory=list)
    disabled: bool = False
    term: int = 0
    map_version: int = 0
    created_at_us: int = 0
    revision: int = 1


class CellCapacity(VersionedObject):
    """What is free on the enabled, living hosts of one conductor's partitions; soft state, never stored."""

    cell: str
    service_id: str
    free: Amounts
    largest_free: Amounts
    hosts: int = 0


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
    build it (``reason``), another cell may: the whole ``build_request`` goes back. Keyed by (instance_uuid, kind,
    generation); partition of the instance.
    """

    instance_uuid: str
    project_id: str
    kind: str
    generation: int
    reason: str = ""
    build_request: BuildRequest | None = None
    request_id: str = ""
    created_at_us: int = 0
    revision: int = 1
