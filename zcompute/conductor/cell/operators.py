"""Who may speak as an operator in a cell: those of the region, whose keys are of the root cell."""

from typing import Any

from zcompute.bus.errors import Forbidden
from zcompute.objects.cell import ROOT_CELL

OPERATOR = "operator"


def check_operator(context: Any) -> None:
    """Raises Forbidden for an operator's key of another cell. Callers of other roles are not looked at."""
    peer = context.peer
    if peer.role == OPERATOR and peer.cell != ROOT_CELL:
        raise Forbidden(f"an operator of cell {peer.cell} has no say here")
