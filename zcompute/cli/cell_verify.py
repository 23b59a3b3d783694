"""``zcompute cell verify``: does what the root knows of a cell agree with what the cell is? Asked over the bus.

Rows are compared in chunks by uuid, so memory is bounded; what differs is looked at again before it is reported, since
servers come and go meanwhile.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zcompute.bus import EndpointStat
from zcompute.cli.audit_compare import compare_mappings
from zcompute.cli.audit_kinds import Finding
from zcompute.cli.audit_snapshot import CellRows, RootRows, Snapshot
from zcompute.cli.upgrade_commands import behind
from zcompute.db.revisions import Revisions
from zcompute.objects.host import HOST_UP, Host
from zcompute.objects.instance import Instance
from zcompute.objects.messages.topology import (
    CellMappingsReply,
    CellMappingsRequest,
    CellStatus,
    CensusReply,
    CensusRequest,
    HostListReply,
    HostListRequest,
)
from zcompute.objects.methods import CELL_MAPPINGS, HOST_LIST, INSTANCE_CENSUS
from zcompute.objects.partition import PartitionMap
from zcompute.objects.stored import NEWEST_LEVEL

PAGE_ROWS = 500
PAGES_MAX = 20_000
FINDINGS_MAX = 1000
LOOKS = 3
LOOK_PAUSE_S = 2.0

SERVER_HOST_UNKNOWN = "server_host_unknown"
HOST_NOT_UP = "host_not_up"
CAPACITY_MISSING = "capacity_missing"
CAPACITY_DIFFERS = "capacity_differs"
CONDUCTOR_NOT_LINKED = "conductor_not_linked"
CONDUCTOR_NOT_REGISTERED = "conductor_not_registered"
KEY_NOT_ACCEPTED = "key_not_accepted"
RELEASE_BEHIND = "release_behind"
SCHEMA_BEHIND = "schema_behind"
SCHEMA_NOT_CONTRACTED = "schema_not_contracted"
SCHEMA_UNKNOWN = "schema_unknown"
SCHEMAS_DIFFER = "schemas_differ"
NO_ANSWER = "no_answer"

KINDS: dict[str, str] = {
    SERVER_HOST_UNKNOWN: "a server's row names a host that the cell does not know",
    HOST_NOT_UP: "a host is down or unknown, and not forced down",
    CAPACITY_MISSING: "a conductor has not told a root conductor of its hosts' room: it gets no new servers for them",
    CAPACITY_DIFFERS: "the root counts another number of hosts with room than the cell has",
    CONDUCTOR_NOT_LINKED: "a conductor of the cell has no link with a root conductor",
    CONDUCTOR_NOT_REGISTERED: "the root's row of the cell names other conductors than the cell's map",
    KEY_NOT_ACCEPTED: "a root conductor does not let a conductor's key in",
    RELEASE_BEHIND: "a service does not speak the newest release level",
    SCHEMA_BEHIND: "the cell's database lacks revisions of this release's schema: `zcompute db upgrade --expand`",
    SCHEMA_NOT_CONTRACTED: "an upgrade of the schema is not ended: `zcompute db upgrade --contract`",
    SCHEMA_UNKNOWN: "the cell's database is at a revision that this release does not know: a newer one is at work",
    SCHEMAS_DIFFER: "two conductors of the cell see different revisions: they do not have the same primary",
    NO_ANSWER: "a conductor did not answer",
}

Ask = Callable[[str, Any, Any], Any]  # (cell, method, request) -> reply of any conductor of that cell


@dataclass
class Verified:
    """What was compared, and what differs."""

    findings: list[Finding] = field(default_factory=list)
    mappings: int = 0
    instances: int = 0
    hosts: int = 0
    complete: bool = True  # False: FINDINGS_MAX was reached


def hosts_of(ask: Ask, cell: str) -> Iterator[Host]:
    """Every host of a cell, page by page."""
    after = ""
    for _ in range(PAGES_MAX):
        page: HostListReply = ask(cell, HOST_LIST, HostListRequest(after=after, limit=PAGE_ROWS))
        yield from page.hosts
        if len(page.hosts) < PAGE_ROWS:
            return
        after = page.hosts[-1].name


def verify_servers(
    ask: Ask, root: str, cell: str, hosts: Mapping[str, Host], pause: Callable[[float], None]
) -> Verified:
    """Mappings against instances, both directions, and instances against hosts."""
    done = Verified(hosts=len(hosts))
    suspects: set[str] = set()
    for chunk in _chunks(ask, root, cell):
        done.mappings += len(chunk.root.mappings)
        done.instances += len(chunk.cells[cell].instances)
        suspects |= {finding.subject for finding in _differences(chunk, cell, hosts)}
        if len(suspects) >= FINDINGS_MAX:
            done.complete = False
            break
    for _ in range(LOOKS):
        if not suspects:
            break
        pause(LOOK_PAUSE_S)
        done.findings = _look_again(ask, root, cell, hosts, sorted(suspects))
        suspects = {finding.subject for finding in done.findings}
    return done


def _chunks(ask: Ask, root: str, cell: str) -> Iterator[Snapshot]:
    """Mappings and instances of the same range of uuids. What is owed to the root, or goes to another cell, is left
    out: it is on its way."""
    after = ""
    for _ in range(PAGES_MAX):
        known: CellMappingsReply = ask(
            root, CELL_MAPPINGS, CellMappingsRequest(cell=cell, after=after, limit=PAGE_ROWS)
        )
        there: CensusReply = ask(cell, INSTANCE_CENSUS, CensusRequest(after=after, limit=PAGE_ROWS))
        ends = [
            rows[-1].uuid for rows in (known.mappings, there.instances) if len(rows) == PAGE_ROWS
        ]  # behind the end of a full page nothing is known of that side
        end = min(ends, default=None)
        yield _snapshot(cell, known, there, end)
        if end is None:
            return
        after = end


def _snapshot(cell: str, known: CellMappingsReply, there: CensusReply, end: str | None = None) -> Snapshot:
    owed = {*there.owed, *(instance.uuid for instance in there.instances if instance.crossing)}

    def counts(uuid: str) -> bool:
        return uuid not in owed and (end is None or uuid <= end)

    return Snapshot(
        root=RootRows(
            mappings=[mapping for mapping in known.mappings if counts(mapping.uuid)],
            build_requests=[request for request in known.build_requests if counts(request.uuid)],
        ),
        cells={cell: CellRows(instances=[instance for instance in there.instances if counts(instance.uuid)])},
    )


def _look_again(ask: Ask, root: str, cell: str, hosts: Mapping[str, Host], uuids: list[str]) -> list[Finding]:
    """The same of some servers, wherever they are mapped. The cell is asked first: what it gives up later is missed
    at the root too."""
    found: list[Finding] = []
    for start in range(0, len(uuids), PAGE_ROWS):
        part = uuids[start : start + PAGE_ROWS]
        there: CensusReply = ask(cell, INSTANCE_CENSUS, CensusRequest(uuids=part, limit=PAGE_ROWS))
        known: CellMappingsReply = ask(root, CELL_MAPPINGS, CellMappingsRequest(cell=cell, uuids=part))
        found += _differences(_snapshot(cell, known, there), cell, hosts, wherever=True)
    return sorted(found)


def _differences(chunk: Snapshot, cell: str, hosts: Mapping[str, Host], *, wherever: bool = False) -> Iterator[Finding]:
    here = {instance.uuid for instance in chunk.cells[cell].instances}
    mapped_here = {mapping.uuid for mapping in chunk.root.mappings if mapping.cell == cell}
    for finding in compare_mappings(chunk):
        if not wherever or finding.subject in here or finding.subject in mapped_here:
            yield finding
    yield from _hosts_of_servers(chunk.cells[cell].instances, hosts)


def _hosts_of_servers(instances: Iterable[Instance], hosts: Mapping[str, Host]) -> Iterator[Finding]:
    for instance in instances:
        if instance.host is not None and instance.host not in hosts:
            yield Finding(SERVER_HOST_UNKNOWN, instance.uuid, f"on {instance.host}")


def verify_membership(
    cell: str, cell_map: PartitionMap, statuses: Mapping[str, CellStatus], hosts: Iterable[Host]
) -> list[Finding]:
    """The cell's own map against what each root conductor (by its id) says. Pure."""
    findings = []
    willing = 0
    for host in hosts:
        willing += host.state == HOST_UP and not host.disabled and not host.forced_down
        if host.state != HOST_UP and not host.forced_down:
            findings.append(Finding(HOST_NOT_UP, host.name, host.state))
    own = {info.service_id: (info.address, info.public_key) for info in cell_map.conductors.values()}
    for root_conductor, status in sorted(statuses.items()):
        registered = {info.service_id: (info.address, info.public_key) for info in status.cell.conductors}
        if registered != own:
            detail = (
                f"registered {', '.join(sorted(registered)) or 'none'}, the map has {', '.join(sorted(own)) or 'none'}"
            )
            findings.append(Finding(CONDUCTOR_NOT_REGISTERED, cell, detail))
        findings += [
            Finding(CONDUCTOR_NOT_LINKED, name, f"not linked with {root_conductor}")
            for name in sorted(set(own) - set(status.linked))
        ]
        keys = set(status.keys.values())
        findings += [
            Finding(KEY_NOT_ACCEPTED, name, f"at {root_conductor}")
            for name, (_, public_key) in sorted(own.items())
            if public_key and public_key not in keys
        ]
        if status.capacity is None:
            findings.append(Finding(CAPACITY_MISSING, cell, f"at {root_conductor}"))
        elif status.capacity.hosts != willing:
            detail = f"{status.capacity.hosts} hosts at {root_conductor}, the cell has {willing}"
            findings.append(Finding(CAPACITY_DIFFERS, cell, detail))
    return sorted(set(findings))


def verify_releases(stats: Iterable[EndpointStat], cell: str) -> list[Finding]:
    """Services of the cell that the newest release level would leave behind. Pure."""
    late = behind(stats, cell, NEWEST_LEVEL)
    return [Finding(RELEASE_BEHIND, name, release) for name, release in sorted(late.items())]


def verify_schemas(cell: str, applied: Mapping[str, Sequence[str]], revisions: Revisions) -> list[Finding]:
    """The revisions that each conductor sees (by its id) against those of this release. Pure."""
    findings = set()
    for names in applied.values():
        behind_by = revisions.pending(names, contract=False)
        left = revisions.pending(names, contract=True)
        strange = [name for name in names if not revisions.knows(name)]
        if behind_by:
            findings.add(Finding(SCHEMA_BEHIND, cell, f"lacks {', '.join(behind_by)}"))
        if left:
            findings.add(Finding(SCHEMA_NOT_CONTRACTED, cell, f"left are {', '.join(left)}"))
        if strange:
            findings.add(Finding(SCHEMA_UNKNOWN, cell, ", ".join(strange)))
    if len({tuple(sorted(names)) for names in applied.values()}) > 1:
        seen = "; ".join(f"{name}: {', '.join(sorted(names))}" for name, names in sorted(applied.items()))
        findings.add(Finding(SCHEMAS_DIFFER, cell, seen))
    return sorted(findings)
