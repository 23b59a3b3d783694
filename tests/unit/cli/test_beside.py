"""A conductor beside a compute is noticed for as long as the compute lives."""

import subprocess
import sys
from pathlib import Path

from zcompute.cli import beside

HOLD = """
import sys
from pathlib import Path
from zcompute.cli.beside import hold_as_compute
hold_as_compute(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_compute_is_seen_until_it_ends_even_by_kill(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not beside.compute_runs_here(path)
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as compute:
        assert compute.stdout is not None
        assert compute.stdout.readline() == b"held\n"
        assert beside.compute_runs_here(path)
        compute.kill()
    assert not beside.compute_runs_here(path)


def test_several_computes_of_a_host_do_not_hinder_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    descriptors = [beside.hold_as_compute(path), beside.hold_as_compute(path)]
    assert len(set(descriptors)) == 2
    assert beside.compute_runs_here(path)
