"""Server groups at the root: their definitions, and which cell their members go to. Pure.

Members of a group with affinity are in one cell: that of the first, which the group's row names from then on. The pin
is moved only when nobody else is a member: the caller has read the group's row and then its members, and the row has
not changed since (every decision that puts a member somewhere changes it).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from zcompute.cells.choice import Wanted
from zcompute.conductor.change import Change
from zcompute.conductor.root.charging import Key
from zcompute.db.tables import SERVER_GROUPS
from zcompute.objects.errors import QuotaExceeded, ServerGroupNotFound
from zcompute.objects.group import SOFT, TOGETHER, GroupRule, ServerGroup
from zcompute.objects.messages.groups import GroupCreateRequest
from zcompute.objects.quota import UNLIMITED

Chooser = Callable[[Wanted, Collection[str]], str | None]  # (what it takes, cells tried) -> cell, counted at once


@dataclass(frozen=True)
class Seen:
    """A group as it was read at the primary: its row's revision (0: no row), then its members."""

    revision: int = 0
    members: Collection[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Room:
    """What a group has, and how many members it may have: -1 for any number."""

    seen: Seen = field(default_factory=Seen)
    members_max: int = UNLIMITED


def group_not_found(uuid: str) -> ServerGroupNotFound:
    """In Nova's words."""
    return ServerGroupNotFound(f"Instance group {uuid} could not be found.", group=uuid)


def group_keys(rule: GroupRule | None) -> list[Key]:
    """The row to be named by whoever chooses a cell for a server: none for most."""
    return [] if rule is None or rule.policy not in TOGETHER else [(SERVER_GROUPS, (rule.uuid,))]


def rule_of(change: Change, uuid: str, project_id: str) -> GroupRule | None:
    """What servers of this group carry; None for "". Raises ServerGroupNotFound."""
    if not uuid:
        return None
    group = change.get(SERVER_GROUPS, (uuid,))
    if group is None or group.project_id != project_id:
        raise group_not_found(uuid)
    return group.rule


def check_members(room: Room, rule: GroupRule | None, count: int) -> None:
    """Raises QuotaExceeded, in Nova's words."""
    present = len(room.seen.members)
    if rule is None or room.members_max == UNLIMITED or present + count <= room.members_max:
        return
    raise QuotaExceeded(
        "Quota exceeded, too many servers in group",
        resource="server_group_members",
        limit=str(room.members_max),
        used=str(present),
        requested=str(count),
    )


def choose_cell_of(
    change: Change,
    rule: GroupRule | None,
    wanted: Wanted,
    tried: Collection[str],
    choose: Chooser,
    seen: Seen | None = None,
    placing: Sequence[str] = (),
) -> str | None:
    """The cell for a server, that of its group's members where the policy wants them together; None for none.

    ``placing``: the servers that are placed now, which are no reason to stay where they are.
    """
    group = None
    if rule is not None and rule.policy in TOGETHER:
        group = change.get(SERVER_GROUPS, (rule.uuid,))
    if group is None:
        return choose(wanted, tried)
    pinned = None if _vacant(group, seen, placing) else group.cell
    cell = choose(wanted if pinned is None else Wanted(wanted.amounts, wanted.zone, pinned), tried)
    if cell is None and pinned is not None and group.policy in SOFT:
        return choose(wanted, tried)
    if cell is not None:
        change.put(SERVER_GROUPS, replace(group, cell=cell))
    return cell


def _vacant(group: ServerGroup, seen: Seen | None, placing: Sequence[str]) -> bool:
    return seen is not None and seen.revision == group.revision and set(seen.members) <= set(placing)


def create_group(change: Change, request: GroupCreateRequest, present: int, groups_max: int) -> ServerGroup:
    """The new group, or that of the first time. ``present``: how many the project had before. Raises QuotaExceeded."""
    former = change.get(SERVER_GROUPS, (request.uuid,))
    if former is not None:
        return former
    if groups_max != UNLIMITED and present >= groups_max:
        raise QuotaExceeded(
            "Quota exceeded, too many server groups.",
            resource="server_groups",
            limit=str(groups_max),
            used=str(present),
            requested="1",
        )
    group = ServerGroup(
        uuid=request.uuid,
        project_id=request.project_id,
        user_id=request.user_id,
        name=request.name,
        policy=request.policy,
        max_server_per_host=request.max_server_per_host,
        created_at_us=change.now_us,
    )
    change.put(SERVER_GROUPS, group)
    return group


def delete_group(change: Change, uuid: str, project_id: str) -> None:
    """The definition goes; members stay what and where they are. Raises ServerGroupNotFound."""
    rule_of(change, uuid, project_id)
    change.delete(SERVER_GROUPS, (uuid,))
