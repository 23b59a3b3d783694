"""What the audit compares: one reading of API, databases and hosts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from zcompute.compute.virt.fake_log import COMES, GOES, OP_SPAWN, DomainLine
from zcompute.db.store import ToldRow
from zcompute.objects.build_request import BuildRequest, InstanceMapping, Usage
from zcompute.objects.cell import ROOT_CELL, OutboxEntry
from zcompute.objects.cross_move import CrossMove
from zcompute.objects.group import GroupPlacement
from zcompute.objects.history import InstanceAction
from zcompute.objects.host import Claim, Host
from zcompute.objects.image import Image
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.notification import NotifierCursor
from zcompute.objects.quota import Amount
from zcompute.objects.task import Task


@dataclass(frozen=True)
class RootRows:
    """The root's database. ``now_us`` is its UTC time; ``cross_moves`` are those under way, ``images`` those
    that are awaited."""

    now_us: int = 0
    build_requests: list[BuildRequest] = field(default_factory=list)
    mappings: list[InstanceMapping] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)
    told: list[ToldRow] = field(default_factory=list)
    cursors: list[NotifierCursor] = field(default_factory=list)
    cross_moves: list[CrossMove] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)


@dataclass(frozen=True)
class CellRows:
    """One cell's database. ``now_us`` is its UTC time. Deleted instances are among the instances; ``actions`` are
    those under way."""

    now_us: int = 0
    instances: list[Instance] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    placements: list[GroupPlacement] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    outbox: list[OutboxEntry] = field(default_factory=list)
    actions: list[InstanceAction] = field(default_factory=list)
    told: list[ToldRow] = field(default_factory=list)
    cursors: list[NotifierCursor] = field(default_factory=list)

    def living(self) -> list[Instance]:
        """Those that are not deleted."""
        return [instance for instance in self.instances if instance.vm_state != VM_DELETED]


@dataclass(frozen=True)
class HostDomains:
    """One host's own log of what was done to its domains, oldest first."""

    lines: list[DomainLine] = field(default_factory=list)
    unreadable_lines: int = 0

    def powers(self) -> dict[str, int]:
        """The uuids whose domain is there, with its power state."""
        there: dict[str, int] = {}
        for line in self.lines:
            if line.op in GOES:
                there.pop(line.uuid, None)
            elif line.op in COMES or line.uuid in there:
                there[line.uuid] = line.power_state
        return there

    def running(self) -> set[str]:
        """The uuids whose domain is there, in whichever state."""
        return set(self.powers())

    def spawns(self) -> list[DomainLine]:
        return [line for line in self.lines if line.op == OP_SPAWN]


@dataclass(frozen=True)
class ApiServer:
    """One server as the API lists it to an administrator."""

    uuid: str
    status: str
    host: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """One reading of everything; its parts are some milliseconds apart, so a finding needs two readings.

    ``used`` is what projects are told that they use, of those for which it did not change under the reading."""

    root: RootRows = field(default_factory=RootRows)
    cells: Mapping[str, CellRows] = field(default_factory=dict)
    hosts: Mapping[str, HostDomains] = field(default_factory=dict)
    api: Mapping[str, ApiServer] = field(default_factory=dict)
    used: Mapping[str, Amount] = field(default_factory=dict)

    def tellers(self) -> Iterator[tuple[str, RootRows | CellRows]]:
        """Every database that has notifications, with its cell's name."""
        yield ROOT_CELL, self.root
        yield from self.cells.items()

    def counts(self) -> dict[str, int]:
        """How much was compared."""
        cells = self.cells.values()
        return {
            "servers": sum(len(cell.living()) for cell in cells),
            "api_servers": len(self.api),
            "build_requests": len(self.root.build_requests),
            "mappings": len(self.root.mappings),
            "usages": len(self.root.usages),
            "projects": len(self.used),
            "claims": sum(len(cell.claims) for cell in cells),
            "placements": sum(len(cell.placements) for cell in cells),
            "tasks": sum(len(cell.tasks) for cell in cells),
            "outbox_rows": sum(len(cell.outbox) for cell in cells),
            "notifications": sum(row.kept for _, rows in self.tellers() for row in rows.told),
            "hosts": len(self.hosts),
            "domains": sum(len(domains.running()) for domains in self.hosts.values()),
        }
