"""Child processes: they die with their parent, their CPU time is read, their end is noticed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from zcompute.cli.up.process import ServiceProcess, cpu_ms, last_line

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
BURN = [sys.executable, "-c", "n = 0\nwhile True: n += 1"]
PARENT = """
import sys
from pathlib import Path
from zcompute.cli.up.process import ServiceProcess
child = ServiceProcess("child", [sys.executable, "-c", "import time; time.sleep(60)"], Path(sys.argv[1]))
child.start()
print(child.pid, flush=True)
import time; time.sleep(60)
"""


def wait_gone(pid: int, timeout_s: float = 5.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if cpu_ms(pid) is None or " Z " in Path(f"/proc/{pid}/stat").read_text():
            return True
        time.sleep(0.01)
    return False


def test_a_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        assert cpu_ms(child_pid) is not None
        parent.kill()
    assert wait_gone(child_pid)


def test_an_end_is_noticed_and_its_log_kept(tmp_path: Path) -> None:
    child = ServiceProcess("child", [sys.executable, "-c", "print('why it ended'); exit(7)"], tmp_path / "log")
    assert child.exit_code is None
    child.start()
    assert child.wait(10)
    assert (child.alive, child.exit_code, child.end_expected) == (False, 7, False)
    assert last_line(tmp_path / "log") == "why it ended"


def test_an_expected_end_stays_expected_while_the_next_start_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = ServiceProcess("child", SLEEP, tmp_path / "log")
    child.start()
    child.send(signal.SIGKILL)
    assert child.wait(5)
    seen = []
    popen = subprocess.Popen

    def starting(*arguments: Any, **options: Any) -> Any:
        seen.append((child.exit_code, child.end_expected))
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", starting)
    child.start()
    child.send(signal.SIGKILL)
    assert seen == [(-signal.SIGKILL, True)]
    assert child.wait(5)


def test_cpu_time_is_kept_after_the_end(tmp_path: Path) -> None:
    child = ServiceProcess("child", BURN, tmp_path / "log")
    child.start()
    deadline = time.monotonic() + 10
    while child.sample_cpu_ms() < 50 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send(signal.SIGKILL)
    assert child.wait(5)
    assert child.sample_cpu_ms() >= 50
    assert child.end_expected


def test_waiting_has_a_deadline(tmp_path: Path) -> None:
    child = ServiceProcess("child", SLEEP, tmp_path / "log")
    child.start()
    assert not child.wait(0.05)
    child.send(signal.SIGTERM)
    assert child.wait(5)
    assert os.path.exists(tmp_path / "log")
