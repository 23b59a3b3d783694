"""The benchmark of reads at its quickest: right bodies, every figure, within its time."""

import json
import os
import subprocess
import sys
from pathlib import Path

from loadtest.report import QUICK_S_MAX
from tests.cluster.conftest import require_mariadb

ROOT = Path(__file__).parents[2]
SLOW_MACHINE = 3


def measured(tmp_path: Path, *parts: str) -> dict[str, float]:
    """What the quick benchmark finds in these parts, or in its usual ones."""
    found = tmp_path / "r.json"
    command = [sys.executable, "-m", "loadtest.reads", "--quick", "--json", str(found), "--only", ",".join(parts)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=QUICK_S_MAX * SLOW_MACHINE, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    metrics: dict[str, float] = json.loads(found.read_text())["metrics"]
    return metrics


def test_the_reads_benchmark_measures_every_kind_of_read_and_tells_whose_cpu_it_took(tmp_path: Path) -> None:
    require_mariadb()
    metrics = measured(tmp_path)
    for name in ("get", "list_100", "detail_100"):
        assert metrics[f"{name}_per_second"] > 0
        for kind in ("api", "conductors", "primary", "replicas", "root", "client"):
            assert f"{name}_cpu_ms_{kind}" in metrics
        assert metrics[f"{name}_cpu_ms_primary"] < metrics[f"{name}_cpu_ms_replicas"], "the replicas serve the rows"


def test_the_reads_benchmark_finds_no_own_write_missing_behind_late_replicas(tmp_path: Path) -> None:
    require_mariadb()
    metrics = measured(tmp_path, "own")
    assert metrics["own_write_checks"] >= 4
    assert metrics["own_write_misses"] == 0
    assert metrics["row_reads_at_primary_share"] <= 0.05


def test_the_reads_benchmark_measures_the_ledger_with_and_without_reads_and_loses_nothing(tmp_path: Path) -> None:
    require_mariadb()
    metrics = measured(tmp_path, "ledger")
    for name in ("", "no_replicas_"):
        assert metrics[f"{name}primary_us_row_alone"] > 0
        assert metrics[f"{name}ratio_primary_cpu_under_reads"] > 0
        assert metrics[f"{name}ratio_ack_p99_under_reads"] > 0
    assert metrics["ledger_lost"] == metrics["ledger_repeated"] == 0
