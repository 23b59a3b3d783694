"""The benchmark of tasks works: tasks end, are resumed after a kill, and nothing is stuck, doubled or leaked."""

import subprocess
import sys
from pathlib import Path

import msgspec

from tests.cluster.conftest import require_mariadb

BENCH_S = 110


def test_tasks_under_kills_end_and_nothing_is_stuck_on_two_hosts_or_leaked(tmp_path: Path) -> None:
    require_mariadb()
    found = tmp_path / "tasks.json"
    command = [sys.executable, "-m", "loadtest.tasks", "--quick", "--kills", "2", "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BENCH_S, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    metrics = msgspec.json.decode(found.read_bytes())["metrics"]
    assert metrics["ended"] > 100
    assert metrics["ended_migrate"] > 10
    assert metrics["ended_os-migrateLive"] > 10
    assert metrics["resumed"] > 0
    assert metrics["members"] == 18
    assert metrics["images_made"] > 10
    wrong = ("stuck", "on_two_hosts", "claims_leaked", "groups_broken", "images_wrong", "odd")
    assert {name: metrics[name] for name in wrong} == dict.fromkeys(wrong, 0)
