"""Lag, failures, gaps and what was sent: measured as they are; alert rules and the page speak of nothing else."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.conductor.ledger_world import wait_for
from tests.unit.conductor.notifiers.outlets import Outlets
from zcompute.conductor.notifiers.exists import ExistsAudit
from zcompute.conductor.notifiers.measures import measures_of
from zcompute.conductor.notifiers.retention import Retention
from zcompute.config import NotificationsConfig
from zcompute.db.tables import NOTIFIER_CURSORS
from zcompute.measure import Measure
from zcompute.metrics import measured

ROOT = Path(__file__).parents[4]
RULES = (ROOT / "etc" / "prometheus" / "notifications.rules.yml").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "operating" / "notifications.md").read_text(encoding="utf-8")


@pytest.fixture
def outlets() -> Iterator[Outlets]:
    made = Outlets()
    yield made
    made.close()


def measures(outlets: Outlets) -> list[Measure]:
    world = outlets.world
    retention = Retention(world.ledger, world.store, NotificationsConfig(), outlets.settings)  # type: ignore[arg-type]
    exists = ExistsAudit(world.ledger, world.store, 3600, outlets.settings)  # type: ignore[arg-type]
    return list(measures_of(outlets.feed, outlets.notifiers, [], retention, exists))


def begun(outlets: Outlets, partitions: list[int]) -> None:
    """The notifier's cursors are kept: it begins with what is told from here on."""
    outlets.gain(partitions)
    row = outlets.world.database.row
    wait_for(lambda: all(row(NOTIFIER_CURSORS, (partition, "n")) for partition in partitions))


def values(outlets: Outlets) -> dict[str, float]:
    return {measure.name: measure.value for measure in measures(outlets)}


def test_a_sink_that_fails_is_behind_by_what_it_misses_and_by_the_age_of_the_oldest(outlets: Outlets) -> None:
    _, sink = outlets.notifier()
    sink.broken = {7}
    begun(outlets, [7, 8])
    began = time.time()
    for _ in range(8):  # more than the 5 kept in memory
        outlets.tell(7, "a")
    outlets.tell(8, "b")
    wait_for(lambda: values(outlets)["notifier_failures"] > 1 and values(outlets)["notifier_sent"] == 1)
    found = values(outlets)
    assert (found["notifier_partitions"], found["notifier_partitions_failing"]) == (2, 1)
    assert found["notifier_lag_notifications"] == 8
    assert 0 < found["notifier_lag_seconds"] <= time.time() - began + 0.1
    assert found["notifications_told"] == 9
    sink.broken = set()
    wait_for(lambda: values(outlets)["notifier_lag_notifications"] == 0)
    wait_for(lambda: values(outlets)["notifier_partitions_failing"] == 0)
    found = values(outlets)
    assert (found["notifier_lag_seconds"], found["notifier_sent"], found["notifier_gaps"]) == (0, 9, 0)


def test_what_the_retention_took_is_counted_as_a_gap(outlets: Outlets) -> None:
    _, sink = outlets.notifier()
    sink.broken = {7}
    begun(outlets, [7])
    for _ in range(8):
        outlets.tell(7, "a")
    outlets.world.ledger.commit(7, [], lambda change: change.purge(1, 2), timeout_ms=2000)
    sink.broken = set()
    wait_for(lambda: values(outlets)["notifier_sent"] == 6)
    assert (values(outlets)["notifier_gaps"], sink.gaps) == (1, [(7, 1, 2)])


def names(outlets: Outlets) -> set[str]:
    outlets.notifier()
    found = {sample.name for family in measured("c1-conductor-1", measures(outlets)) for sample in family.samples}
    return {name for name in found if not name.endswith("_created")}


def test_each_metric_is_explained(outlets: Outlets) -> None:
    for name in names(outlets):
        assert f"`{name}`" in PAGE, "explain it in docs/operating/notifications.md"


def test_alert_rules_ask_for_metrics_that_there_are_and_each_alert_is_explained(outlets: Outlets) -> None:
    asked = set(re.findall(r"\b(zcompute_[a-z_]+)", "\n".join(re.findall(r"expr: (.*)", RULES))))
    assert asked
    assert asked <= names(outlets) | {"zcompute_bus_stream_gaps_told_total"}
    alerts = re.findall(r"alert: (\w+)", RULES)
    assert len(alerts) == len(set(alerts)) == RULES.count("expr: ")
    for alert in alerts:
        assert f"`{alert}`" in PAGE
