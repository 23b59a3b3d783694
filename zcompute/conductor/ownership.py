"""Who owns what, decided from the map's rows: pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from zcompute.db.store import MapRows


@dataclass(frozen=True)
class Gain:
    """A partition that is on one of our lanes and not yet decided upon here. ``last_n`` is of the same row, and only
    our own lane can move it from there."""

    partition: int
    owner_epoch: int
    lane_id: int
    last_n: int = 0


@dataclass(frozen=True)
class Move:
    """Partitions that should leave one living lane for another."""

    from_lane: int
    to_lane: int
    partitions: tuple[int, ...]


def dead_lanes(rows: MapRows, lanes: Collection[int]) -> list[int]:
    """Which of these lanes may no longer write: any one ends the incarnation."""
    return sorted(lane for lane in lanes if lane not in rows.lanes or not rows.lanes[lane].alive)


def gains(rows: MapRows, lanes: Collection[int], held_epochs: Mapping[int, int]) -> list[Gain]:
    """Partitions on our lanes under a newer epoch than any under which this incarnation has held them.

    The epoch makes it safe to read an old map: what was handed over is never taken back from an earlier state.
    """
    return [
        Gain(row.partition_id, row.owner_epoch, row.lane_id, row.last_n)
        for row in rows.partitions
        if row.lane_id is not None and row.lane_id in lanes and row.owner_epoch > held_epochs.get(row.partition_id, -1)
    ]


def strayed(rows: MapRows, lanes: Collection[int], owned: Collection[int]) -> list[int]:
    """Partitions that we decide upon and that the map has elsewhere: never, while our lanes live."""
    elsewhere = {row.partition_id for row in rows.partitions if row.lane_id not in lanes}
    return sorted(elsewhere.intersection(owned))


class Leaving:
    """Who has handed everything over: no share leaves an incarnation with nothing, so it is about to end.

    Its lanes still live and it still beats then; what it were given back would move a third time.
    """

    def __init__(self) -> None:
        self._had: set[str] = set()
        self._have: set[str] = set()

    def learn(self, rows: MapRows) -> None:
        """A map was read; none is left out, or a short life would be missed."""
        alive = {lane.lane_id: lane.incarnation for lane in rows.lanes.values() if lane.alive}
        self._have = {alive[row.lane_id] for row in rows.partitions if row.lane_id in alive}
        self._had = (self._had | self._have) & set(alive.values())

    def staying(self, able: Sequence[str]) -> list[str]:
        """Those of ``able`` that do not leave."""
        return [incarnation for incarnation in able if incarnation in self._have or incarnation not in self._had]


def plan_moves(rows: MapRows, able: Collection[str], leaving: str | None = None) -> list[Move]:
    """The fewest moves after which each able incarnation has its fair share (floor or ceiling of the mean).

    ``able`` are incarnations that beat; partitions of others stay where they are. ``leaving`` (one of them) gives
    everything away. Every conductor plans for the whole cell and carries out the moves from its own lanes, so two
    that are over-full never give the same share twice.
    """
    lanes: dict[str, dict[int, list[int]]] = {name: {} for name in sorted(able)}
    for lane in rows.lanes.values():
        if lane.alive and lane.incarnation in lanes:
            lanes[lane.incarnation][lane.lane_id] = []
    lanes = {name: own for name, own in lanes.items() if own}
    for row in rows.partitions:
        for own in lanes.values():
            if row.lane_id is not None and row.lane_id in own:
                own[row.lane_id].append(row.partition_id)
    targets = _targets({name: sum(map(len, own.values())) for name, own in lanes.items()}, leaving)
    if not targets:
        return []
    spare = [(lane, partition) for name in lanes for lane, partition in _take(lanes[name], targets[name])]
    moves: dict[tuple[int, int], list[int]] = {}
    for name, own in lanes.items():
        while spare and sum(map(len, own.values())) < targets[name]:
            from_lane, partition = spare.pop(0)
            to_lane = min(own, key=lambda lane: (len(own[lane]), lane))  # used at once
            own[to_lane].append(partition)
            moves.setdefault((from_lane, to_lane), []).append(partition)
    return [Move(places[0], places[1], tuple(sorted(moves[places]))) for places in sorted(moves)]


def _targets(counts: Mapping[str, int], leaving: str | None) -> dict[str, int]:
    staying = [name for name in counts if name != leaving]
    if not staying:
        return {}
    floor, extra = divmod(sum(counts.values()), len(staying))
    fullest_first = sorted(staying, key=lambda name: (-counts[name], name))
    targets = {name: floor + (place < extra) for place, name in enumerate(fullest_first)}
    return {**dict.fromkeys(counts, 0), **targets}


def _take(own: dict[int, list[int]], keep: int) -> list[tuple[int, int]]:
    """Take what is above ``keep``, always from the fullest lane, the highest partition first."""
    taken = []
    while sum(map(len, own.values())) > keep:
        lane = max(own, key=lambda lane: (len(own[lane]), lane))
        highest = max(own[lane])
        own[lane].remove(highest)
        taken.append((lane, highest))
    return taken
