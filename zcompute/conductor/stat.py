"""What an operator sees of this conductor: ``conductor.stat``, and the same as metrics.

One look a second is kept for a minute; all else is computed when it is asked for, from what the lanes count anyway.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import gevent

from zcompute.bus import Endpoint
from zcompute.bus.stat import PoolStat
from zcompute.conductor import cpu
from zcompute.conductor.incarnation import Incarnation
from zcompute.conductor.lane import Lane
from zcompute.conductor.meter import percentile
from zcompute.conductor.read_stat import read_stat
from zcompute.db.replicas.reading import Reading
from zcompute.objects.conductor_stat import (
    STATE_BEGINNING,
    STATE_READY,
    WINDOW_S_MAX,
    ConductorDatabaseStat,
    ConductorLaneStat,
    ConductorPoolStat,
    ConductorStat,
    ConductorStatRequest,
)

LOOK_S = 1.0


@dataclass(frozen=True)
class Look:
    """What the conductor was doing at one moment; the sums are those since its start."""

    at_s: float
    cpu_s: float
    cpu_wait_s: float
    busy_s: tuple[float, ...]  # by lane: with a batch at the database
    queued: int
    oldest_s: float


class Looks:
    """The looks of the last minute. Pure: ``share`` and the medians are over those of a window."""

    def __init__(self) -> None:
        self._looks: deque[Look] = deque(maxlen=int(WINDOW_S_MAX / LOOK_S) + 2)

    def add(self, look: Look) -> None:
        self._looks.append(look)

    def window(self, window_s: int) -> list[Look]:
        """The looks of the last seconds, the newest last; at least one when there is any, so that shares have a
        beginning."""
        if not self._looks:
            return []
        from_s = self._looks[-1].at_s - window_s
        return [look for look in self._looks if look.at_s >= from_s]


def share(looks: list[Look], taken_s: Callable[[Look], float]) -> float:
    """Which part of the time between the first and the last look was taken; 0.0 when there is none."""
    if len(looks) < 2 or looks[-1].at_s <= looks[0].at_s:
        return 0.0
    return max(0.0, (taken_s(looks[-1]) - taken_s(looks[0])) / (looks[-1].at_s - looks[0].at_s))


class ConductorStats:
    """Serves ``conductor.stat`` for one life. ``lives`` says how many this process has had."""

    def __init__(
        self, service_id: str, cell: str, incarnation: Incarnation, endpoint: Endpoint, ready: Callable[[], bool],
        lives: int, reading: Reading | None = None,
        database: Callable[[], ConductorDatabaseStat] = ConductorDatabaseStat,
    ) -> None:  # fmt: skip
        self._service_id = service_id
        self._cell = cell
        self._incarnation = incarnation
        self._endpoint = endpoint
        self._ready = ready
        self._lives = lives
        self._reading = reading
        self._database = database
        self._born_s = time.monotonic()
        self._looks = Looks()

    def run(self) -> None:
        """The greenlet that looks once a second."""
        while True:
            self._looks.add(self._look())
            gevent.sleep(LOOK_S)

    def serve(self, request: ConductorStatRequest, context: Any) -> ConductorStat:
        """``conductor.stat``."""
        return self.stat(min(max(1, request.window_s), WINDOW_S_MAX))

    def _look(self) -> Look:
        now_s = time.monotonic()
        ledger, lanes, pools = self._incarnation.ledger, self._incarnation.lanes, self._endpoint.pools()
        queued = ledger.waiting_decisions + sum(lane.queued_decisions for lane in lanes)
        oldest = [ledger.waiting_oldest_s(now_s), *(lane.oldest_s(now_s) for lane in lanes)]
        return Look(
            at_s=now_s,
            cpu_s=cpu.cpu_s(),
            cpu_wait_s=cpu.cpu_wait_s(),
            busy_s=tuple(lane.meter.busy_until_s(now_s) for lane in lanes),
            queued=queued + sum(pool.queued for pool in pools),
            oldest_s=max(*oldest, *(pool.oldest_ms / 1000 for pool in pools)),
        )

    def stat(self, window_s: int) -> ConductorStat:
        """This conductor now, with shares and medians over the last ``window_s`` seconds."""
        now = self._look()
        looks = [*self._looks.window(window_s), now]
        ledger, incarnation = self._incarnation.ledger, self._incarnation
        epochs = [ledger.lane_of(partition) for partition in ledger.owned()]
        return ConductorStat(
            service_id=self._service_id,
            cell=self._cell,
            incarnation=incarnation.id,
            state=STATE_READY if self._ready() else STATE_BEGINNING,
            age_ms=_ms(now.at_s - self._born_s),
            lives=self._lives,
            fellows=sorted(ledger.map.conductors),
            map_version=ledger.map.version,
            partitions=len(epochs),
            links=len(self._endpoint.up_links),
            window_ms=_ms(now.at_s - looks[0].at_s),
            cpu_share=round(share(looks, lambda look: look.cpu_s), 3),
            cpu_wait_share=round(share(looks, lambda look: look.cpu_wait_s), 3),
            queue_p50=int(median(look.queued for look in looks)),
            oldest_ms_p50=_ms(median(look.oldest_s for look in looks)),
            cpu_ms=_ms(now.cpu_s),
            cpu_wait_ms=_ms(now.cpu_wait_s),
            decisions=ledger.decisions,
            waiting_decisions=ledger.waiting_decisions,
            waiting_oldest_ms=_ms(ledger.waiting_oldest_s(now.at_s)),
            cached_rows=ledger.cached_rows,
            lease_held=incarnation.lease_held(),
            database_lost_ms=_ms(incarnation.database_lost_s),
            refused=dict(ledger.refused),
            lanes=[
                lane_stat(lane, number, epochs.count(lane.lane_id), looks, now.at_s)
                for number, lane in enumerate(incarnation.lanes, 1)
            ],
            pools=list(map(_pool_stat, self._endpoint.pools())),
            reads=read_stat(self._reading),
            database=self._database(),
        )


def lane_stat(lane: Lane, number: int, partitions: int, looks: Iterable[Look], now_s: float) -> ConductorLaneStat:
    """One lane as it is now."""
    meter = lane.meter
    rows = sorted(float(batch[0]) for batch in meter.recent)
    decisions = sorted(float(batch[1]) for batch in meter.recent)
    took_ms = sorted(batch[2] for batch in meter.recent)
    seen = [look for look in looks if len(look.busy_s) >= number]
    return ConductorLaneStat(
        lane=lane.lane_id,
        number=number,
        partitions=partitions,
        queued_decisions=lane.queued_decisions,
        queued_rows=lane.queued_rows,
        queued_bytes=lane.queued_bytes,
        oldest_ms=_ms(lane.oldest_s(now_s)),
        flying_decisions=meter.flying,
        flying_ms=_ms(now_s - meter.began_at_s) if meter.began_at_s else 0,
        trying_ms=_ms(now_s - meter.failing_since_s) if meter.failing_since_s else 0,
        batches=lane.batches,
        rows=meter.rows,
        decisions=meter.decisions,
        retries=meter.retries,
        reconnects=meter.reconnects,
        commit_ms_sum=_ms(meter.busy_s),
        commit_share=round(share(seen, lambda look: look.busy_s[number - 1]), 3),
        commits_by_ms=list(meter.by_bound),
        batch_rows_p50=int(percentile(rows, 0.5)),
        batch_decisions_p50=int(percentile(decisions, 0.5)),
        commit_ms_p50=round(percentile(took_ms, 0.5), 2),
        commit_ms_p99=round(percentile(took_ms, 0.99), 2),
        batches_seen=len(took_ms),
    )


def _pool_stat(pool: PoolStat) -> ConductorPoolStat:
    return ConductorPoolStat(
        pool=pool.pool,
        workers_max=pool.workers_max,
        running=pool.running,
        queued=pool.queued,
        oldest_ms=pool.oldest_ms,
    )


def _ms(seconds: float) -> int:
    return max(0, int(seconds * 1000))
