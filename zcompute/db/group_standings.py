"""Where the members of server groups stand: the placements of each group, many groups in one statement."""

from collections import defaultdict
from collections.abc import Sequence

from zcompute.db.columns import is_ascii
from zcompute.db.schema import TABLES
from zcompute.db.session import Session
from zcompute.db.tables import GROUP_PLACEMENTS, Key
from zcompute.db.where import Where
from zcompute.objects.group import GroupPlacement, GroupStanding

GROUPS_MAX = 100  # a statement; more are read by several


def of_groups(session: Session, keys: Sequence[Key]) -> dict[Key, GroupStanding]:
    """All placements of these groups; those without any are not in the answer."""
    ascii_only = is_ascii(TABLES[GROUP_PLACEMENTS.name].c["group_uuid"].type)
    wanted = [key[0] for key in dict.fromkeys(keys) if not ascii_only or str(key[0]).isascii()]
    found: dict[str, list[GroupPlacement]] = defaultdict(list)
    for start in range(0, len(wanted), GROUPS_MAX):
        where = Where()
        where.equals("group_uuid", wanted[start : start + GROUPS_MAX])
        for placement in session.objects(GROUP_PLACEMENTS, where.select(GROUP_PLACEMENTS), **where.values):
            found[placement.group_uuid].append(placement)
    return {(uuid,): GroupStanding(group_uuid=uuid, placements=placements) for uuid, placements in found.items()}
