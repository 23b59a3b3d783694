"""Failpoints: off unless the environment armed them at the start; then the N-th pass acts, once."""

import os
import re
import signal
import subprocess
import sys
import timeit
from pathlib import Path

import pytest

from zcompute import failpoints
from zcompute.failpoints import ENVIRONMENT, GATE, armed_by

ROOT = Path(__file__).parents[2]
PLACE = re.compile(r'(?:failpoint\(|passing=)"([a-z_.]+)"')


OF_AGENTS = ("commands.", "steps.", "reporter.", "journal.")
OF_QUOTAS = ("servers.", "intake.", "handoff.", "mapping.", "outbox.")  # tests/failpoints/test_quotas.py
OF_RESIZES = ("resize.", "quota.")  # the same file
OF_IMAGES = ("image.", "create_image.")  # tests/failpoints/test_quotas.py
OF_GROUPS = ("group.",)  # tests/failpoints/test_groups.py
OF_UPGRADES = ("migrate.",)  # tests/contract/store/test_schema_life.py
OF_CELLS = ("cell.", "enrolment.")  # tests/cluster/test_enrolment.py
OF_MOVES = ("telling.",)  # tests/failpoints/test_moves.py
OF_PROMOTIONS = ("promote.",)  # tests/cluster/test_failover.py
OF_CROSS_MOVES = ("crossmove.", "crossing.")  # tests/failpoints/test_cross_moves.py
OF_TASKS = OF_RESIZES + OF_GROUPS + OF_IMAGES + OF_MOVES + OF_CROSS_MOVES
OF_OTHERS = OF_AGENTS + OF_QUOTAS + OF_TASKS + OF_UPGRADES + OF_CELLS + OF_PROMOTIONS  # than conductors as such


def places() -> list[str]:
    """Every name in the sources."""
    return [name for path in (ROOT / "zcompute").rglob("*.py") for name in PLACE.findall(path.read_text())]


def test_they_are_off_by_default_and_nothing_arms_them_later(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ENVIRONMENT not in os.environ
    assert failpoints.failpoint is armed_by({})
    monkeypatch.setenv(ENVIRONMENT, ",".join(f"{name}=kill" for name in places()))
    for name in places():
        failpoints.failpoint(name)


def test_off_they_cost_nothing_worth_a_word() -> None:
    passes = 100_000
    assert (
        min(timeit.repeat(lambda: failpoints.failpoint("lane.before_commit"), number=passes, repeat=5)) < passes * 2e-6
    )


def test_the_nth_pass_of_the_named_place_acts_once() -> None:
    acts: list[tuple[int, int]] = []
    point = armed_by({ENVIRONMENT: "a=kill@2,b=stop"}, lambda pid, number: acts.append((pid, number)))
    for name in ("c", "a", "b", "b", "a", "a"):
        point(name)
    assert acts == [(os.getpid(), signal.SIGSTOP), (os.getpid(), signal.SIGKILL)]


def test_passes_count_while_the_gate_is_there_and_the_act_deletes_it(tmp_path: Path) -> None:
    acts: list[int] = []
    gate = tmp_path / "gate"
    point = armed_by({ENVIRONMENT: "a=kill", GATE: str(gate)}, lambda _, number: acts.append(number))
    point("a")
    assert acts == []
    gate.touch()
    point("a")
    assert acts == [signal.SIGKILL]
    assert not gate.exists()


@pytest.mark.parametrize("text", ["a", "a=", "=kill", "a=explode", "a=kill@0", "a=kill@x", "a=kill,,b=kill"])
def test_a_text_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=ENVIRONMENT):
        armed_by({ENVIRONMENT: text})


def test_an_armed_process_dies_at_its_place() -> None:
    program = "from zcompute.failpoints import failpoint\nfailpoint('x')\nfailpoint('y')\nprint('alive')"
    for armed, code in (("y=kill", -signal.SIGKILL), ("z=kill", 0)):
        environment = {**os.environ, ENVIRONMENT: armed}
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, timeout=30, check=False)
        assert done.returncode == code


def test_each_place_has_a_name_of_its_own_and_is_described() -> None:
    found = places()
    assert len(found) >= 20
    assert len(set(found)) == len(found)
    page = (ROOT / "docs/reliability.md").read_text()
    assert [name for name in found if f"`{name}`" not in page] == []
