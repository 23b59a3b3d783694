"""Requests and replies about cells and who belongs to them: operators, and services that enrol."""

import msgspec

from zcompute.objects.build_request import BuildRequest, InstanceMapping
from zcompute.objects.cell import CellCapacity, CellInfo
from zcompute.objects.enrolment import Enrolment
from zcompute.objects.host import Host
from zcompute.objects.instance import Instance
from zcompute.objects.partition import ConductorInfo


class CellCreateRequest(msgspec.Struct, kw_only=True):
    """Make a cell's row, or bring a deleted cell back. Asked again for a cell that is there it changes nothing."""

    name: str
    dry_run: bool = False


class CellStateRequest(msgspec.Struct, kw_only=True):
    """Have a cell take new servers (enabled), or none (disabled; draining: until it is empty)."""

    name: str
    state: str
    dry_run: bool = False


class CellDeleteRequest(msgspec.Struct, kw_only=True):
    """Delete a closed cell that has nothing left, and revoke every key that was enrolled for it."""

    name: str
    dry_run: bool = False


class CellReply(msgspec.Struct, kw_only=True):
    """The cell as it is now (or would be, where the request was a dry run)."""

    cell: CellInfo
    changed: bool = False


class CellStatusRequest(msgspec.Struct, kw_only=True):
    name: str


class CellStatus(msgspec.Struct, kw_only=True):
    """A cell as the answering root conductor sees it.

    ``mappings`` and ``pending`` are counted up to ``counted_max``: as many means at least so many. ``linked`` are the
    cell's conductors that have a link with it, ``capacity`` what they reported lately, ``keys`` the public keys that it
    lets in as conductors of the cell, by name."""

    cell: CellInfo
    mappings: int = 0
    pending: int = 0
    counted_max: int = 0
    linked: list[str] = msgspec.field(default_factory=list)
    capacity: CellCapacity | None = None
    keys: dict[str, str] = msgspec.field(default_factory=dict)


class CellMappingsRequest(msgspec.Struct, kw_only=True):
    """A page of a cell's mappings in the order of uuids, behind ``after``; or those of ``uuids``, wherever they are."""

    cell: str
    after: str = ""
    limit: int = 500
    uuids: list[str] = msgspec.field(default_factory=list)


class CellMappingsReply(msgspec.Struct, kw_only=True):
    """``build_requests`` are those of the page's servers that no cell has acknowledged."""

    mappings: list[InstanceMapping]
    build_requests: list[BuildRequest] = msgspec.field(default_factory=list)


class CensusRequest(msgspec.Struct, kw_only=True):
    """A page of a cell's instances that are not deleted, in the order of uuids, behind ``after``; or of ``uuids``."""

    after: str = ""
    limit: int = 500
    uuids: list[str] = msgspec.field(default_factory=list)


class CensusReply(msgspec.Struct, kw_only=True):
    """``owed``: of these, those of which the cell still owes the root a word."""

    instances: list[Instance]
    owed: list[str] = msgspec.field(default_factory=list)


class HostListRequest(msgspec.Struct, kw_only=True):
    """A page of a cell's hosts in the order of names, behind ``after``; or the one named."""

    after: str = ""
    limit: int = 500
    name: str | None = None


class HostListReply(msgspec.Struct, kw_only=True):
    hosts: list[Host]


class EnrolmentCreateRequest(msgspec.Struct, kw_only=True):
    """Let whoever has the secret of ``token_key`` enrol keys of one role, as often as ``uses_max`` says.

    Asked again with the same id and key it changes nothing.
    """

    id: str
    token_key: str
    role: str
    cell: str
    hosts: list[str] = msgspec.field(default_factory=list)
    uses_max: int = 1
    lifetime_s: int = 3600
    dry_run: bool = False


class EnrolmentReply(msgspec.Struct, kw_only=True):
    enrolment: Enrolment
    changed: bool = False


class EnrolmentListRequest(msgspec.Struct, kw_only=True):
    """A page in the order of ids, behind ``after``."""

    after: str = ""
    limit: int = 500


class EnrolmentListReply(msgspec.Struct, kw_only=True):
    enrolments: list[Enrolment]


class EnrolmentRevokeRequest(msgspec.Struct, kw_only=True):
    """The token lets nobody in any more, and the keys that it let in are shut out."""

    id: str
    dry_run: bool = False


class EnrolRequest(msgspec.Struct, kw_only=True):
    """From a service whose link was made with the key of token ``id``: let this key in from now on, under this name."""

    id: str
    service_id: str
    public_key: str


class AcceptedKey(msgspec.Struct, kw_only=True):
    """A key that a new cell's conductors need to let in: who calls every cell."""

    name: str
    public_key: str
    role: str
    cell: str


class EnrolReply(msgspec.Struct, kw_only=True):
    """What the service is from now on, whom it dials, and (to a cell's first conductors) whom it is to let in."""

    role: str
    cell: str
    hosts: list[str] = msgspec.field(default_factory=list)
    conductors: list[ConductorInfo] = msgspec.field(default_factory=list)
    accepted: list[AcceptedKey] = msgspec.field(default_factory=list)


class RemapRequest(msgspec.Struct, kw_only=True):
    """Map to ``cell`` those of its servers, of one project, that the root has no mapping of.

    ``unconfirmed``: also those whose rows came back with a restore of the cell, and of which no host has spoken since.
    """

    cell: str
    project_id: str
    uuids: list[str]
    unconfirmed: bool = False
    dry_run: bool = False


class Remapped(msgspec.Struct, kw_only=True):
    """What became of one server: an outcome of zcompute.objects.remap."""

    uuid: str
    outcome: str
    detail: str = ""


class RemapReply(msgspec.Struct, kw_only=True):
    """In the order of the request. A dry run says what would become of them."""

    servers: list[Remapped]
