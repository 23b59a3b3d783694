"""What is counted of lanes and looks, and what it becomes."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.conductor.ledger_world import World, wait_for
from zcompute import metrics
from zcompute.bus.errors import Busy
from zcompute.conductor.meter import BATCHES_KEPT, LaneMeter, percentile
from zcompute.conductor.settings import LedgerLimits
from zcompute.conductor.stat import Look, Looks, lane_stat, share
from zcompute.conductor.stat_metrics import conductor_families
from zcompute.objects.conductor_stat import (
    COMMIT_MS_BOUNDS,
    WINDOW_S_MAX,
    ConductorLaneStat,
    ConductorReadStat,
    ConductorReplicaStat,
    ConductorStat,
)


def look(at_s: float, cpu_s: float = 0.0) -> Look:
    return Look(at_s=at_s, cpu_s=cpu_s, cpu_wait_s=0.0, busy_s=(), queued=0, oldest_s=0.0)


def test_a_share_is_of_the_window_and_of_what_there_is() -> None:
    looks = Looks()
    assert looks.window(10) == []
    for second in range(200):
        looks.add(look(float(second), cpu_s=second / 4))
    assert len(looks.window(WINDOW_S_MAX)) == WINDOW_S_MAX + 1
    assert share(looks.window(10), lambda each: each.cpu_s) == pytest.approx(0.25)
    assert share([look(1.0)], lambda each: each.cpu_s) == 0.0


def test_a_meter_keeps_the_last_batches_and_counts_all() -> None:
    meter = LaneMeter()
    for _ in range(BATCHES_KEPT + 44):
        meter.began(2)
        meter.ended(5)
    assert (meter.rows, meter.decisions) == (5 * (BATCHES_KEPT + 44), 2 * (BATCHES_KEPT + 44))
    assert len(meter.recent) == BATCHES_KEPT
    assert sum(meter.by_bound) == BATCHES_KEPT + 44


def test_a_batch_under_way_counts_as_time_at_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = LaneMeter()
    meter.began(1)
    now[0] += 2
    assert meter.busy_until_s(now[0]) == 2
    meter.failed(lost=False)
    assert (meter.lost_ms(), meter.failing_since_s) == (0, 102.0)
    meter.failed(lost=True)
    now[0] += 1
    assert (meter.lost_ms(), meter.retries, meter.reconnects) == (1000, 2, 1)
    meter.ended(1)
    assert (meter.lost_ms(), meter.busy_until_s(now[0]), meter.failing_since_s) == (0, 3, 0)
    assert meter.by_bound[COMMIT_MS_BOUNDS.index(5_000)] == 1


def test_percentiles_of_nothing_and_of_something() -> None:
    assert percentile([], 0.5) == 0.0
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0], 0.99) == 3.0


def sample_stat() -> ConductorStat:
    lane = ConductorLaneStat(lane=12, number=1, batches=5, commits_by_ms=[0] * (len(COMMIT_MS_BOUNDS) + 1))
    lane.commits_by_ms[2], lane.commits_by_ms[-1], lane.commit_ms_sum = 4, 1, 12_500
    replica = ConductorReplicaStat(name="10.0.0.2:3306", state="serving", behind_ms=250)
    return ConductorStat(
        service_id="c1-conductor-1",
        cell="c1",
        incarnation="abc",
        state="ready",
        lanes=[lane],
        refused={"away": 3},
        reads=ConductorReadStat(by_need={"current": 20}, at_primary={"current": 1}, replicas=[replica]),
    )


def exposition() -> str:
    metrics.expose("conductor", lambda: conductor_families(sample_stat()))
    try:
        return metrics.own_text().decode()
    finally:
        metrics.expose("conductor", None)


def test_the_metrics_are_parsable_and_lanes_go_by_number() -> None:
    found = {
        (sample.name, sample.labels.get("lane", ""), sample.labels.get("le", "")): sample.value
        for family in text_string_to_metric_families(exposition())
        for sample in family.samples
    }
    assert found["zcompute_conductor_lane_batches_total", "1", ""] == 5
    assert found["zcompute_conductor_lane_commit_seconds_bucket", "1", "0.005"] == 4
    assert found["zcompute_conductor_lane_commit_seconds_bucket", "1", "+Inf"] == 5
    assert found["zcompute_conductor_lane_commit_seconds_sum", "1", ""] == 12.5
    assert found["zcompute_conductor_refused_total", "", ""] == 3
    assert found["zcompute_conductor_reads_total", "", ""] == 20
    assert found["zcompute_conductor_reads_at_primary_total", "", ""] == 1
    assert found["zcompute_conductor_replica_behind_seconds", "", ""] == 0.25


def test_ages_of_what_waits_are_seen(world: World) -> None:
    world.commit("1", world.put_flavor("1"))
    batches = world.lane.meter.decisions
    world.connection.gate.clear()
    begun_s = time.monotonic()
    waiting = world.submit("1", world.put_flavor("1", name="b"))
    wait_for(lambda: world.lane.meter.flying == 1)
    assert 0 < world.lane.oldest_s(time.monotonic()) <= time.monotonic() - begun_s
    assert lane_stat(world.lane, 1, 256, [], time.monotonic()).flying_decisions == 1
    world.connection.gate.set()
    waiting.wait(2000)
    assert world.lane.meter.decisions == batches + 1
    assert world.lane.oldest_s(time.monotonic()) == 0.0


def test_without_a_database_callers_are_told_busy_at_once_and_what_was_taken_in_is_kept() -> None:
    world = World(LedgerLimits(retry_ms_min=1, retry_ms_max=5, away_ms_max=30))
    world.commit("1", world.add_ram("1"))
    world.database.down = True
    taken = world.submit("1", world.add_ram("1"))
    wait_for(lambda: world.lane.meter.lost_ms() > 30)
    for flavorid in ("1", "2"):  # a row in memory, and one that would have to be read
        with pytest.raises(Busy, match="out of reach") as refused:
            world.submit(flavorid, world.add_ram(flavorid))
        assert refused.value.retry_after_ms == world.limits.away_retry_ms
    assert world.ledger.refused["away_ms_max"] == 2
    world.database.down = False
    assert taken.wait(2000) == 2
    assert world.commit("1", world.add_ram("1")) == 3
    world.close()


def test_reads_that_find_no_database_tell_busy_for_rows_that_are_not_in_memory_only() -> None:
    world = World(LedgerLimits(retry_ms_min=1, retry_ms_max=5, away_ms_max=30))
    world.commit("1", world.add_ram("1"))
    world.ledger._loader.lost_since_s = time.monotonic() - 1.0
    with pytest.raises(Busy):
        world.submit("2", world.add_ram("2"))
    assert world.commit("1", world.add_ram("1")) == 2
    world.close()
