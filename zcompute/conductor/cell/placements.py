"""Places of a server group's members: what its policy allows, at the owner of the group's partition. Pure.

A placement is named as the claim of the same attempt, reserved before it and released with it: it is in force exactly
as long as that claim is (zcompute.conductor.cell.claims.in_force).
"""

from collections import defaultdict
from collections.abc import Iterable

from msgspec.structs import replace

from zcompute.objects.group import AFFINITY, ANTI_AFFINITY, GroupPlacement, GroupStanding
from zcompute.objects.messages.groups import ReserveRequest

HOSTS_SHOWN_MAX = 3


def members_by_host(placements: Iterable[GroupPlacement], without: str = "") -> dict[str, set[str]]:
    """Which members have a place on each host, but for one: two places of one member on a host count once."""
    found: dict[str, set[str]] = defaultdict(set)
    for placement in placements:
        if placement.instance_uuid != without:
            found[placement.host].add(placement.instance_uuid)
    return dict(found)


def refusal(placements: Iterable[GroupPlacement], request: ReserveRequest) -> str:
    """Why the policy does not allow this place; "" where it does. A member's own other places never refuse it: it may
    be on its way from there."""
    others = members_by_host(placements, without=request.instance_uuid)
    rule, host = request.rule, request.host
    if rule.policy == AFFINITY and others and set(others) != {host}:
        there = ", ".join(sorted(set(others) - {host})[:HOSTS_SHOWN_MAX])
        return f"server group {rule.uuid} has members on {there}: {rule.policy} keeps them together"
    if rule.policy == ANTI_AFFINITY and len(others.get(host, ())) >= rule.max_server_per_host:
        return (
            f"server group {rule.uuid} has {len(others[host])} members on host {host}: {rule.policy} allows "
            f"{rule.max_server_per_host}"
        )
    return ""


def with_placement(standing: GroupStanding | None, placement: GroupPlacement) -> GroupStanding:
    """The group with one place more."""
    standing = standing or GroupStanding(group_uuid=placement.group_uuid)
    return replace(standing, placements=[*standing.placements, placement])


def without_placement(standing: GroupStanding, placement: GroupPlacement) -> GroupStanding:
    """The group with one place less."""
    return replace(standing, placements=[one for one in standing.placements if one != placement])
