"""The numbers of a run of boots."""

import pytest

from zcompute.cli.up.boots import Boot, BootRun, percentile
from zcompute.cli.up.report import boot_metrics


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, 0.0), ([7.0], 99, 7.0), ([1.0, 2.0, 3.0, 4.0], 50, 2.0), ([float(n) for n in range(1, 101)], 99, 99.0)],
)
def test_percentiles_are_nearest_rank(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == expected


def test_metrics_count_what_is_not_active_as_error() -> None:
    boots = [Boot("a", status="ACTIVE", took_ms=10.0), Boot("b", status="ERROR", took_ms=5.0), Boot("c")]
    metrics = boot_metrics(BootRun(boots, took_s=2.0), {"api": 10.0, "client": 1.0}, {"api": 40.0, "client": 4.0})
    assert (metrics["active"], metrics["error"], metrics["boots_per_second"]) == (1, 2, 0.5)
    assert (metrics["p50_ms"], metrics["p99_ms"]) == (10.0, 10.0)
    assert metrics["cpu_ms_per_boot"] == 11.0
    assert (metrics["cpu_ms_per_boot_api"], metrics["cpu_ms_per_boot_client"]) == (10.0, 1.0)
