"""The benchmark of the ledger at its smallest: every part works, and nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.cluster.conftest import require_mariadb

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120


def test_the_ledger_benchmark_measures_and_loses_nothing(tmp_path: Path) -> None:
    require_mariadb()
    found = tmp_path / "r.json"
    parts = "native,single_update,orm"
    command = [sys.executable, "-m", "loadtest.ledger", "--tiny", "--only", parts, "--json", str(found)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=DEADLINE_S, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    metrics = json.loads(found.read_text())["metrics"]
    assert (metrics["lost"], metrics["repeated"], metrics["links_lost"]) == (0, 0, 0)
    assert metrics["updates_acknowledged"] >= metrics["instances_read_back"] == 1000
    assert {"ratio_bare_join", "ratio_single_update", "ratio_orm"} <= set(metrics)
