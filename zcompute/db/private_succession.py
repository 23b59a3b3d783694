"""Which of a private group's servers takes writes when the group is started again. Pure.

A promotion may have come meanwhile (zcompute.db.failover): it raises the cell's term at the server that becomes the
primary, and who wrote a server's newest transaction stands in its log. So the primary is the server that wrote last in
the highest term, whatever it was at the group's start before, and however far the promotion had come.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from zcompute.db.errors import PrivateServerFailed
from zcompute.db.replicas.position import Position


@dataclass(frozen=True)
class Left:
    """A server as its last run left it. ``term`` is 0 without a cell in it; ``wrote_last``: the newest transaction in
    its log is its own."""

    port: int
    term: int
    written: Position
    wrote_last: bool


@dataclass(frozen=True)
class Succession:
    """``primary``: the index of the server that takes writes. ``lost``: those that may hold what it never had."""

    primary: int
    lost: tuple[int, ...] = ()


def succession(servers: Sequence[Left], usual: int) -> Succession:
    """``usual``: the primary where no server has a term yet. Raises PrivateServerFailed when nobody is the primary."""
    top = max(one.term for one in servers)
    if top == 0:
        return Succession(usual)
    able = [index for index, one in enumerate(servers) if one.term == top and one.wrote_last]
    if len(able) != 1:
        found = ", ".join(f"port {one.port}: term {one.term}, {one.written.text or 'empty'}" for one in servers)
        raise PrivateServerFailed(f"expected one database server that wrote last in term {top}, found {found}")
    primary = servers[able[0]]
    lost = tuple(
        index
        for index, one in enumerate(servers)
        if one is not primary and (one.wrote_last or not primary.written.covers(one.written))
    )
    return Succession(able[0], lost)
