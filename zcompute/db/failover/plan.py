"""What a promotion may do, from what every server says of itself. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from zcompute.db.durability import REPLICATED
from zcompute.db.failover.standing import Standing


@dataclass(frozen=True)
class Plan:
    """``refusals``: why it must not go on, whatever may be lost. ``may_go``: what would be lost, a sentence each.

    ``begun``: the server that an earlier run has made the primary of the newest term; the rest of its way is left.
    """

    lost: str
    stop: list[str] = field(default_factory=list)  # the replicas whose IO threads are to be stopped
    begun: str | None = None
    refusals: list[str] = field(default_factory=list)
    may_go: list[str] = field(default_factory=list)


def plan(servers: Sequence[Standing], cell: str, durability: str, silent: Collection[str], to: str | None) -> Plan:
    """``servers`` in the order of the configuration, the first of them the primary unless replicas follow another of
    them. ``silent``: those configured not to acknowledge."""
    reached = [one for one in servers if one.reached]
    refusals = [
        f"{one.name} has the database of cell {one.cell}, expected {cell}" for one in reached if one.cell != cell
    ]
    begun = _begun(reached)
    if begun is not None:
        return Plan(_lost(servers), begun=begun.name, refusals=refusals + _not_to(to, begun.name, servers))
    lost = _lost(servers)
    refusals += [
        f"{one.name} takes writes in term {one.term}: it is not lost. End it, or cut it off from everybody, first"
        for one in reached
        if not one.follows and not one.read_only
    ]
    stop = [one.name for one in reached if one.follows and one.name != lost]
    if not any(one.sql_running for one in reached if one.name in stop):
        reasons = "; ".join(f"{one.name}: {one.out_of_reach()}" for one in servers if one.name != lost)
        refusals.append(f"no replica can be the primary: {reasons}")
    refusals += _not_to(to, None, [one for one in servers if one.name in stop])
    return Plan(lost, stop, None, refusals, _may_go(servers, lost, durability, silent))


def _begun(reached: Sequence[Standing]) -> Standing | None:
    """The server whose term an earlier run has raised: a replica whose IO thread is stopped, and that has written to
    its own log beyond what it has applied. It ceases to be a replica last of all."""
    top = max((one.term for one in reached), default=0)
    for one in reached:
        if one.follows and one.io_state == "No" and one.term == top and not one.applied.covers(one.written):
            return one
    return None


def _lost(servers: Sequence[Standing]) -> str:
    """The primary of before: whom the replicas follow, where that is one of the servers; else the first."""
    names = [one.name for one in servers]
    followed = [one.follows for one in servers if one.follows in names]
    return max(names, key=followed.count) if followed else names[0]


def _not_to(to: str | None, only: str | None, servers: Sequence[Standing]) -> list[str]:
    if to is None:
        return []
    if only is not None and to != only:
        return [f"{only} has been made the primary by an earlier run, which is to be finished: leave --to {to} out"]
    if to not in [one.name for one in servers]:
        return [f"--to {to}: expected one of the replicas that answer: {', '.join(one.name for one in servers)}"]
    return []


def _may_go(servers: Sequence[Standing], lost: str, durability: str, silent: Collection[str]) -> list[str]:
    others = [one for one in servers if one.name != lost]
    gone = [
        f"{one.name} could acknowledge, and {one.out_of_reach()}"
        for one in others
        if one.name not in silent and one.out_of_reach()
    ]
    if durability != REPLICATED:
        gone.insert(0, f"the cell's durability is local: {lost} has acknowledged without waiting for a replica")
    return gone
