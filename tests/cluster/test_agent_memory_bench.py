"""The benchmark of an agent's memory works: its servers come up, stop, start, and what they take is told."""

import subprocess
import sys
from pathlib import Path

import msgspec

from tests.cluster.conftest import require_mariadb

BENCH_S = 50


def test_an_agent_with_many_instances_stays_small(tmp_path: Path) -> None:
    require_mariadb()
    found = tmp_path / "memory.json"
    command = [sys.executable, "-m", "loadtest.agent_memory", "--quick", "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BENCH_S, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    metrics = msgspec.json.decode(found.read_bytes())["metrics"]
    assert metrics["instances"] == 200
    assert 0 < metrics["instances_rss_mb"] < 150
