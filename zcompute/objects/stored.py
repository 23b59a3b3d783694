"""What is written at a cell's committed release level.

While two releases work in one cell, either may have to read what the other wrote: rows stay in the form of the older
one until an operator raises the cell's level (`cell_state.release`), when the last service is new.
"""

from collections.abc import Callable, Mapping

from zcompute.objects.base import VersionedObject, pack
from zcompute.objects.lowering import FIRST, Lowering, Versions, object_kinds

Pack = Callable[[VersionedObject], bytes]

LEVELS: Mapping[str, Versions] = {"1": {}}
"""By level the versions of the objects that had left 1.0 then. A new level is added here with the first object that
leaves its version after a level's release; the newest level is that of this release."""

NEWEST_LEVEL = max(LEVELS, key=int)

LEVEL_SINCE: Mapping[str, tuple[int, ...]] = {"1": (0, 1)}
"""By level the release that brought it: what is of it, or newer, reads what is stored at the level."""


def speaks(release: str, level: str) -> bool:
    """Whether a service of this release reads the level; False for a release that cannot be read."""
    parts = release.split(".")
    since = LEVEL_SINCE.get(level)
    if since is None or not all(part.isdigit() for part in parts[: len(since)]):
        return False
    return tuple(int(part) for part in parts[: len(since)]) >= since


def pack_at(level: str, levels: Mapping[str, Versions] = LEVELS) -> Pack:
    """The way to pack objects for a cell of this level; as they are here for the newest, and for one not known here.

    What it packs raises CannotLower for an object that the level cannot say.
    """
    known = levels.get(level)
    if known is None:
        return pack
    behind = frozenset(kind.__name__ for kind in object_kinds() if known.get(kind.__name__, FIRST) < kind.VERSION)
    if not behind:
        return pack
    lower = Lowering(known, behind)

    def pack_lowered(stored: VersionedObject) -> bytes:
        name = type(stored).__name__
        version = known.get(name, FIRST) if name in behind else stored.VERSION
        return pack(stored, lower(stored), version)

    return pack_lowered
