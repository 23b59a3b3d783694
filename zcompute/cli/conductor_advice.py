"""Whether a cell wants more conductors, fewer, or a faster database. Pure.

The two classic signs of a conductor that is too small are its CPU and its queue. A deep queue alone is none: where the
lanes wait for the database while the hub has nothing to do, more conductors would only wait with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from zcompute.objects.conductor_stat import ConductorStat

ADD, REMOVE, KEEP, SPLIT = "add", "remove", "keep", "split"
DATABASE, UNEVEN, UNKNOWN = "database", "uneven", "unknown"


@dataclass(frozen=True)
class Thresholds:
    """Where advice turns. A hub's share is CPU and waiting for a core together: 1.0 is a hub that never rests."""

    hub_share_high: float = 0.60  # with a queue: add
    hub_share_full: float = 0.90  # without one too
    hub_share_low: float = 0.35  # what the hubs left would have at most after a removal
    queue_high: int = 500
    oldest_ms_high: int = 50
    commit_ms_high: float = 50.0  # a batch at the database
    commit_share_high: float = 0.6  # of the time with a batch there
    lost_ms_high: int = 1_000
    wait_share_high: float = 0.25  # others have the machine's cores
    window_ms_min: int = 3_000
    conductors_min: int = 2  # fewer, and nobody takes over
    conductors_max: int = 16


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What the advice rests on, of one conductor; of its lanes the worst."""

    conductor: str
    hub_share: float
    cpu_share: float
    cpu_wait_share: float
    queued: int
    oldest_ms: int
    commit_share: float
    commit_ms: float
    lost_ms: int


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict for one cell, in one sentence, with its figures."""

    cell: str
    verdict: str
    sentence: str
    figures: list[Figures]


def figures_of(stat: ConductorStat) -> Figures:
    """The figures of one conductor. A batch that is at the database now counts once it is there for longer."""
    return Figures(
        conductor=stat.service_id,
        hub_share=round(stat.cpu_share + stat.cpu_wait_share, 3),
        cpu_share=stat.cpu_share,
        cpu_wait_share=stat.cpu_wait_share,
        queued=stat.queue_p50,
        oldest_ms=stat.oldest_ms_p50,
        commit_share=max((lane.commit_share for lane in stat.lanes), default=0.0),
        commit_ms=max((max(lane.commit_ms_p50, lane.flying_ms) for lane in stat.lanes), default=0.0),
        lost_ms=max([stat.database_lost_ms, *(lane.trying_ms for lane in stat.lanes)]),
    )


def advise(
    cell: str, stats: Sequence[ConductorStat], missing: Sequence[str] = (), limits: Thresholds | None = None
) -> Advice:
    """The advice for a cell: ``stats`` of its conductors that answered, the names of those that did not."""
    limits = limits or Thresholds()
    seen = [figures_of(stat) for stat in stats]
    aged = bool(stats) and min(stat.window_ms for stat in stats) >= limits.window_ms_min
    verdict, why = _judge(seen, aged, list(missing), limits)
    gaps = f"; no answer of {', '.join(missing)}" if missing and verdict != UNKNOWN else ""
    return Advice(cell=cell, verdict=verdict, sentence=f"cell {cell}: {why}{gaps}", figures=seen)


def _judge(seen: list[Figures], aged: bool, missing: list[str], limits: Thresholds) -> tuple[str, str]:
    if not seen:
        return UNKNOWN, f"no advice: none of {', '.join(missing) or 'its conductors'} has answered"
    waiting = [one for one in seen if _waits_for_database(one, limits)]
    if waiting:
        return DATABASE, _database_words(waiting, limits)
    if not aged:
        return UNKNOWN, f"no advice: a conductor is watched for less than {limits.window_ms_min} ms, ask again"
    hub = _mean([one.hub_share for one in seen])
    deep = [one for one in seen if _is_deep(one, limits)]
    if hub >= limits.hub_share_full or (hub >= limits.hub_share_high and deep):
        return _add(seen, limits)
    hot = [one for one in deep if one.hub_share >= limits.hub_share_high]
    if hot:
        return UNEVEN, f"{hot[0].conductor} is full while others are not, look at its partitions: {_words(hot)}"
    left = len(seen) - 1
    if missing or deep or left < limits.conductors_min:
        return KEEP, f"keep {_count(len(seen))}{_reserve(seen, limits)}: {_words(seen)}"
    after = sum(one.hub_share for one in seen) / left
    if after <= limits.hub_share_low:
        would = f"{_count(left)} would have hubs busy for {after:.0%} of the time"
        return REMOVE, f"remove a conductor, {would}: {_words(seen)}"
    return KEEP, f"keep {_count(len(seen))}: {_words(seen)}"


def _waits_for_database(one: Figures, limits: Thresholds) -> bool:
    """The lanes wait, and the hub does not work: it is not the conductor."""
    if one.lost_ms >= limits.lost_ms_high:
        return True
    slow = one.commit_ms >= limits.commit_ms_high and one.commit_share >= limits.commit_share_high
    return slow and one.oldest_ms >= limits.oldest_ms_high and one.hub_share < limits.hub_share_high


def _is_deep(one: Figures, limits: Thresholds) -> bool:
    return one.queued >= limits.queue_high or one.oldest_ms >= limits.oldest_ms_high


def _database_words(waiting: list[Figures], limits: Thresholds) -> str:
    lost = [one for one in waiting if one.lost_ms >= limits.lost_ms_high]
    what = "the database is the limit, another conductor would wait with the others"
    if lost:
        what = f"{lost[0].conductor} gets nothing through to the database for {lost[0].lost_ms} ms"
    share = max(one.commit_share for one in waiting)
    return f"{what}: a lane had a batch there for {share:.0%} of the time, {_words(waiting)}"


def _add(seen: list[Figures], limits: Thresholds) -> tuple[str, str]:
    if len(seen) >= limits.conductors_max:
        return SPLIT, f"split the cell, it has {len(seen)} conductors, the most there may be: {_words(seen)}"
    where = ""
    if _mean([one.cpu_wait_share for one in seen]) >= limits.wait_share_high:
        where = " on another machine (other processes have the cores of this one)"
    return ADD, f"add a conductor{where}: {_words(seen)}"


def _reserve(seen: list[Figures], limits: Thresholds) -> str:
    return " (nobody takes over from it)" if len(seen) < limits.conductors_min else ""


def _words(seen: list[Figures]) -> str:
    """The figures in words: means of the shares, the worst of the rest."""
    hub, cpu, wait = (
        _mean([getattr(one, name) for one in seen]) for name in ("hub_share", "cpu_share", "cpu_wait_share")
    )
    return (
        f"hub busy {hub:.0%} of the time (CPU {cpu:.0%}, ready without a core {wait:.0%}), "
        f"{max(one.queued for one in seen)} changes and calls waiting, "
        f"the oldest {max(one.oldest_ms for one in seen)} ms, a batch takes {max(one.commit_ms for one in seen):.0f} ms"
    )


def _count(number: int) -> str:
    return f"{number} conductor" + ("" if number == 1 else "s")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
