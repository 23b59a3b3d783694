"""Which of a cell's servers is its primary, from what each says of itself. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sighting:
    """A server as it was seen. ``term`` is its copy of the cell's; ``problem``: why it could not be asked.

    ``unmet``: what of durability ``replicated`` its settings do not hold; ``ackers``: the replicas that may acknowledge
    and are connected now, -1 where it does not say. Both speak of a server that takes writes.
    """

    name: str
    server_id: int = 0
    writable: bool = False
    cell: str = ""
    term: int = 0
    problem: str = ""
    unmet: str = ""
    ackers: int = -1


@dataclass(frozen=True)
class Choice:
    """``name`` of the primary, None while nobody can be; ``reason`` then, or why the former one is not. ``term``: the
    highest that any server of the cell has."""

    name: str | None
    term: int
    reason: str = ""


def choose_primary(seen: Sequence[Sighting], cell: str, term: int, present: str | None) -> Choice:
    """The server that takes writes in the cell's highest term.

    ``term`` is the highest known before: whoever takes writes in a lower one was replaced, even where the new primary
    is out of sight. A replica's copy counts too. ``present`` stays where several could be.
    """
    ours = [one for one in seen if not one.problem and one.cell == cell]
    top = max([term, *(one.term for one in ours)])
    former = [one for one in ours if one.writable and one.term < top]
    names = [one.name for one in ours if one.writable and one.term == top]
    if present in names:
        return Choice(present, top)
    if len(names) == 1:
        return Choice(names[0], top, f"{names[0]} takes writes in term {top}")
    if names:
        return Choice(None, top, f"expected one server that takes writes in term {top}, found {', '.join(names)}")
    if former:
        names = [f"{one.name} (term {one.term})" for one in former]
        return Choice(
            None, top,
            f"expected a server that takes writes in term {top}, found {', '.join(names)}: replaced, to be rebuilt",
        )  # fmt: skip
    found = "; ".join(f"{one.name}: {one.problem or 'is read only'}" for one in seen)
    return Choice(None, top, f"no server takes writes: {found}")
