"""``conductor.stat`` as metrics. Lanes are labelled by their number (1 to 4): a lane's id changes with each life."""

from collections.abc import Iterable

from prometheus_client.core import HistogramMetricFamily, Metric

from zcompute.conductor.read_stat import add_reads
from zcompute.db.durability import REPLICATED
from zcompute.metrics import Families
from zcompute.objects.conductor_stat import COMMIT_MS_BOUNDS, ConductorLaneStat, ConductorStat

PREFIX = "zcompute_conductor_"


def conductor_families(stat: ConductorStat) -> Iterable[Metric]:
    """The metrics of one conductor."""
    made = Families(stat.service_id, PREFIX)
    made.gauge("info", "Who this is", 1, cell=stat.cell, incarnation=stat.incarnation)
    made.gauge("ready", "Whether it owns and serves", float(stat.state == "ready"), cell=stat.cell)
    made.gauge("age_seconds", "Age of the incarnation", stat.age_ms / 1000)
    made.counter("lives", "Incarnations of this process", stat.lives)
    made.gauge("partitions", "Partitions decided upon here", stat.partitions)
    made.gauge("map_version", "Version of the partition map", stat.map_version)
    made.counter("cpu_seconds", "CPU time", stat.cpu_ms / 1000)
    made.counter("cpu_wait_seconds", "Ready to run, and others had the cores", stat.cpu_wait_ms / 1000)
    made.counter("decisions", "Changes decided upon", stat.decisions)
    made.gauge("waiting_decisions", "Changes that wait for rows to be read", stat.waiting_decisions)
    made.gauge("oldest_seconds", "Age of the oldest change that has not committed", stat.oldest_ms / 1000)
    made.gauge("cached_rows", "Rows in memory", stat.cached_rows)
    made.gauge("lease_held", "Whether an own beat has committed lately", float(stat.lease_held))
    made.gauge("database_lost_seconds", "For how long the database is out of reach", stat.database_lost_ms / 1000)
    for limit, count in sorted(stat.refused.items()):
        made.counter("refused", "Busy, by the limit that was reached", count, limit=limit)
    for lane in stat.lanes:
        _add_lane(made, lane)
    add_reads(made, stat.reads)
    replicated = stat.database.durability == REPLICATED
    made.gauge("cell_term", "How often the primary was replaced; 0: not known", stat.database.term)
    made.gauge("durability_replicated", "Whether commits must be on a replica", float(replicated))
    made.gauge("durability_unmet", "Whether the primary is not as required", float(bool(stat.database.problem)))
    made.gauge("durability_ackers", "Replicas connected that may acknowledge; -1: not known", stat.database.ackers)
    return [*made, _commits(stat)]


def _add_lane(made: Families, lane: ConductorLaneStat) -> None:
    number = str(lane.number)
    made.gauge("lane_queued_decisions", "Decided, not in a batch yet", lane.queued_decisions, lane=number)
    made.gauge("lane_queued_rows", "Rows of these", lane.queued_rows, lane=number)
    made.gauge("lane_oldest_seconds", "Age of the lane's oldest change", lane.oldest_ms / 1000, lane=number)
    made.gauge("lane_flying_seconds", "How long its batch is at the database", lane.flying_ms / 1000, lane=number)
    made.counter("lane_batches", "Batches committed", lane.batches, lane=number)
    made.counter("lane_rows", "Rows of these", lane.rows, lane=number)
    made.counter("lane_decisions", "Changes of these", lane.decisions, lane=number)
    made.counter("lane_retries", "Batches sent again", lane.retries, lane=number)
    made.counter("lane_reconnects", "Of these, after a lost connection", lane.reconnects, lane=number)


def _commits(stat: ConductorStat) -> Metric:
    """A histogram: a lane is with a batch at the database for the increase of its sum."""
    family = HistogramMetricFamily(
        f"{PREFIX}lane_commit_seconds", "How long a batch took, retries included", labels=["service", "lane"]
    )
    for lane in stat.lanes:
        buckets: list[tuple[str, float]] = []
        count = 0
        for bound, batches in zip((*COMMIT_MS_BOUNDS, None), lane.commits_by_ms, strict=True):
            count += batches
            buckets.append(("+Inf" if bound is None else str(bound / 1000), count))
        family.add_metric([stat.service_id, str(lane.number)], buckets, lane.commit_ms_sum / 1000)
    return family
