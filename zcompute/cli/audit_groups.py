"""What the audit says of server groups: places that are leaked or missing, and members that are where the policy does
not allow them together. Pure."""

from collections import defaultdict
from collections.abc import Iterator

from zcompute.cli.audit_kinds import GROUP_MEMBER_WRONG, GROUP_VIOLATED, PLACEMENT_LEAKED, PLACEMENT_MISSING, Finding
from zcompute.cli.audit_motion import leaked_placements
from zcompute.cli.audit_snapshot import CellRows, Snapshot
from zcompute.objects.group import AFFINITY, ANTI_AFFINITY, GroupRule
from zcompute.objects.instance import Instance

Place = tuple[str, str]  # cell, host


def group_findings(snapshot: Snapshot) -> Iterator[Finding]:
    """All of them."""
    for cell in snapshot.cells.values():
        yield from _places(cell)
    yield from _policies(snapshot)
    yield from _members(snapshot)


def _places(cell: CellRows) -> Iterator[Finding]:
    for place in leaked_placements(cell):
        detail = f"{place.name} on {place.host}, group {place.group_uuid}"
        yield Finding(PLACEMENT_LEAKED, place.instance_uuid, detail)
    there = {(place.group_uuid, place.instance_uuid, place.name, place.host) for place in cell.placements}
    for instance in _placed(cell):
        group = _group_uuid(instance)
        if group is not None and (group, instance.uuid, instance.claim, instance.host) not in there:
            yield Finding(PLACEMENT_MISSING, instance.uuid, f"{instance.claim} on {instance.host}, group {group}")


def _placed(cell: CellRows) -> list[Instance]:
    return [one for one in cell.living() if one.claim is not None and one.host is not None]


def _group_uuid(instance: Instance) -> str | None:
    return None if instance.spec.group is None else instance.spec.group.uuid


def _policies(snapshot: Snapshot) -> Iterator[Finding]:
    rules: dict[str, GroupRule] = {}
    members: dict[str, dict[Place, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, cell in snapshot.cells.items():
        for instance in _placed(cell):
            if instance.spec.group is not None:
                rules[instance.spec.group.uuid] = instance.spec.group
                members[instance.spec.group.uuid][name, instance.host or ""].append(instance.uuid)
    for uuid, places in members.items():
        rule = rules[uuid]
        if rule.policy == AFFINITY and len(places) > 1:
            found = ", ".join(sorted(f"{where}/{host}" for where, host in places))
            yield Finding(GROUP_VIOLATED, uuid, f"{rule.policy}: members on {found}")
        if rule.policy == ANTI_AFFINITY:
            for (where, host), uuids in places.items():
                if len(uuids) > rule.max_server_per_host:
                    yield Finding(GROUP_VIOLATED, uuid, f"{rule.policy}: {len(uuids)} members on {where}/{host}")


def _members(snapshot: Snapshot) -> Iterator[Finding]:
    mapped = {mapping.uuid: mapping.group_uuid for mapping in snapshot.root.mappings}
    for cell in snapshot.cells.values():
        for instance in cell.living():
            group = _group_uuid(instance)
            if instance.uuid in mapped and mapped[instance.uuid] != group:
                yield Finding(GROUP_MEMBER_WRONG, instance.uuid, f"of {group}, mapped as of {mapped[instance.uuid]}")
