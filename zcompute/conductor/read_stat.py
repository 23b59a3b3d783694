"""Where clients' reads went, as conductor.stat and the metrics tell it."""

import time

from zcompute.db.replicas.reading import Reading
from zcompute.db.replicas.replica import Replica
from zcompute.metrics import Families
from zcompute.objects.conductor_stat import ConductorReadStat, ConductorReplicaStat


def read_stat(reading: Reading | None) -> ConductorReadStat:
    """The reads of this process until now."""
    if reading is None:
        return ConductorReadStat()
    now_s = time.monotonic()
    asked, shared = reading.positions_asked
    return ConductorReadStat(
        by_need={str(kind): count for kind, count in reading.by_kind.items()},
        at_primary={str(kind): count for kind, count in reading.at_primary.items()},
        confirmed=reading.confirmed,
        second_tries=reading.second_tries,
        positions=asked,
        positions_shared=shared,
        replicas=[_replica_stat(replica, now_s) for replica in reading.replicas],
    )


def _replica_stat(replica: Replica, now_s: float) -> ConductorReplicaStat:
    age_s, standing = replica.age_s(now_s), replica.standing
    return ConductorReplicaStat(
        name=replica.name,
        state=str(standing.state),
        reason=standing.reason,
        trouble=replica.trouble,
        since_ms=int((now_s - standing.since_s) * 1000) if standing.since_s else 0,
        behind_ms=int(replica.behind_s * 1000),
        age_ms=-1 if age_s is None else int(age_s * 1000),
        in_flight=replica.in_flight,
        reads=replica.reads,
        waits=replica.waits,
        failures=replica.failures,
    )


def add_reads(made: Families, stat: ConductorReadStat) -> None:
    """As metrics."""
    for need, count in sorted(stat.by_need.items()):
        made.counter("reads", "Reads of clients, by what they need", count, need=need)
        made.counter("reads_at_primary", "Of these, rows read at the primary", stat.at_primary.get(need, 0), need=need)
    made.counter("reads_confirmed", "Stale reads that missed and asked the primary", stat.confirmed)
    made.counter("reads_second_tries", "Reads tried at a second replica", stat.second_tries)
    made.counter("positions", "Questions for the primary's position", stat.positions)
    made.counter("positions_shared", "Reads that these served", stat.positions_shared)
    for one in stat.replicas:
        made.gauge("replica_serving", "Whether it takes reads", float(one.state == "serving"), replica=one.name)
        made.gauge("replica_behind_seconds", "How far it is behind", one.behind_ms / 1000, replica=one.name)
        made.gauge("replica_in_flight", "Reads that are there now", one.in_flight, replica=one.name)
        made.counter("replica_reads", "Reads answered", one.reads, replica=one.name)
        made.counter("replica_waits", "Reads that waited for their position", one.waits, replica=one.name)
        made.counter("replica_failures", "Reads tried again elsewhere", one.failures, replica=one.name)
