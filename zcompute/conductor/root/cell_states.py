"""Deciding on cells: created, opened, closed, deleted, registered by their own conductors. Pure."""

import re

from msgspec.structs import replace

from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.change import Change
from zcompute.db.tables import CELLS
from zcompute.objects.cell import (
    CELL_DELETED,
    CELL_DISABLED,
    CELL_DRAINING,
    CELL_ENABLED,
    ROOT_CELL,
    CellInfo,
)
from zcompute.objects.errors import CellNotFound, CellRefused
from zcompute.objects.messages.topology import CellReply

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SETTABLE = (CELL_ENABLED, CELL_DISABLED, CELL_DRAINING)


def check_name(name: str) -> None:
    """Raises InvalidRequest for what is no cell's name: it appears in keys, logs, metrics and lists."""
    if not NAME.fullmatch(name) or name == ROOT_CELL:
        raise InvalidRequest(
            f"expected a name of lower-case letters, digits, '.', '_' and '-', other than {ROOT_CELL}, found {name!r}",
            field="name",
        )


def living(cell: CellInfo | None, name: str) -> CellInfo:
    """The cell, if there is one that is not deleted. Raises CellNotFound."""
    if cell is None or cell.deleted_at_us:
        raise CellNotFound(f"cell {name} is not known" + (": it was deleted" if cell is not None else ""), cell=name)
    return cell


def create_cell(change: Change, name: str) -> CellReply:
    """A new cell, or a deleted one brought back: as if it had never registered. One that is there stays as it is."""
    check_name(name)
    former = change.get(CELLS, (name,))
    if former is not None and not former.deleted_at_us:
        return CellReply(cell=former)
    fresh = CellInfo(name=name, created_at_us=change.now_us)
    if former is not None:
        fresh = replace(fresh, revision=former.revision)
    return CellReply(cell=fresh, changed=True)


def set_state(change: Change, name: str, state: str) -> CellReply:
    """Open or close a cell for new servers. Raises CellNotFound, InvalidRequest."""
    if state not in SETTABLE:
        raise InvalidRequest(f"expected a state of {', '.join(SETTABLE)}, found {state!r}", field="state")
    former = living(change.get(CELLS, (name,)), name)
    new = replace(former, disabled=state == CELL_DISABLED, draining=state == CELL_DRAINING)
    return CellReply(cell=new, changed=new != former)


def check_deletable(cell: CellInfo, left: list[str]) -> None:
    """Raises CellRefused for a cell that takes new servers, or has something left."""
    if cell.state == CELL_ENABLED:
        raise CellRefused(
            f"cell {cell.name} takes new servers: drain or disable it first", cell=cell.name, state=cell.state, left=[]
        )
    if left:
        raise CellRefused(
            f"cell {cell.name} is not empty: {', '.join(left)}", cell=cell.name, state=cell.state, left=left
        )


def delete_cell(change: Change, looked_at: CellInfo) -> CellReply:
    """Delete the cell as it was looked at. A repeat changes nothing. Raises CellNotFound, CellRefused when it has
    changed since."""
    former = change.get(CELLS, (looked_at.name,))
    if former is not None and former.deleted_at_us:
        return CellReply(cell=former)
    former = living(former, looked_at.name)
    if former.revision != looked_at.revision:
        raise CellRefused(
            f"cell {former.name} has changed while it was looked at: try again", cell=former.name, state=former.state,
            left=[],
        )  # fmt: skip
    gone = replace(former, conductors=[], disabled=False, draining=False, deleted_at_us=change.now_us)
    return CellReply(cell=gone, changed=True)


def register_cell(change: Change, told: CellInfo) -> bool:
    """Keep which conductors the cell says it has. False when nothing is written: that was known, or a newer map of the
    cell's was registered before (the older one was on its way for long). Raises CellRefused for a deleted cell."""
    conductors = sorted(told.conductors, key=lambda conductor: conductor.service_id)
    former = change.get(CELLS, (told.name,))
    if former is None:
        former = CellInfo(name=told.name, created_at_us=change.now_us)
    elif former.deleted_at_us:
        raise CellRefused(
            f"cell {told.name} was deleted: have it created again before its conductors are started",
            cell=told.name, state=CELL_DELETED, left=[],
        )  # fmt: skip
    elif (told.term, told.map_version) <= (former.term, former.map_version):
        return False
    change.put(CELLS, replace(former, conductors=conductors, term=told.term, map_version=told.map_version))
    return True
