"""Whole cells under a seeded network, clock and database: see docs/decisions/0012-simulation.md.

Each run is a process of its own: the simulation replaces the clock and the event loop of whichever process it is in.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.cell.kinds import LOST_HOST, SIMULATED, WALKS
from tests.simulation.cell.plan import SCENES, THEMES
from tests.simulation.cell.shrink import fewest
from zcompute.conductor.tasks.moves.plans import PLANS
from zcompute.objects.actions import ACTIONS
from zcompute.objects.task import TASK_LIVE_MIGRATE, TASK_MIGRATE, TASK_RESIZE, TASK_SHELVE_OFFLOAD

SEEDS = 1000
BUDGET_S = 65
SEEDS_MIN = 100  # on the slowest machine that runs the tests
SABOTAGE_SEEDS = 100
SCENES_NAMED = {f"event {name}" for name in SCENES}  # each is some events of other kinds


def simulate(path: Path, *arguments: str) -> dict[str, Any]:
    report = path / "report.json"
    command = [sys.executable, "-m", "tests.simulation", "--json", str(report), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert report.exists(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    found["said"] = done.stdout
    return found


@pytest.mark.timeout(220)
def test_no_seed_breaks_a_rule(tmp_path: Path) -> None:
    found = simulate(tmp_path, "--seeds", str(SEEDS), "--budget-s", str(BUDGET_S))
    assert not found["failed"], found["said"]
    assert found["seeds"] >= SEEDS_MIN
    met = {name for name, count in found["seen"].items() if count}
    assert {"verdict already_there", "verdict not_owner", "verdict superseded", "command adopt"} <= met
    assert {f"event {kind}" for kinds in THEMES.values() for kind in kinds} - SCENES_NAMED <= met


def test_a_seed_lives_the_same_life_in_every_process(tmp_path: Path) -> None:
    first = simulate(tmp_path, "--seeds", "12", "--seed", "5000")["digests"]
    again = simulate(tmp_path, "--seeds", "12", "--seed", "5000", "--jobs", "1", "--lives", "1")["digests"]
    assert first == again
    assert len(set(first.values())) == len(first)


def test_moves_come_to_every_end_while_hosts_lose_their_power(tmp_path: Path) -> None:
    found = simulate(tmp_path, "--seeds", "120", "--seed", "9000", "--theme", "moves")
    assert not found["failed"], found["said"]
    met = {name for name, count in found["seen"].items() if count}
    asked = {*LOST_HOST, *(action for walk in WALKS for action in walk)} - {"delete"}
    assert {f"accepted {action}" for action in asked} <= met
    begun = {ACTIONS[action].kind for action in SIMULATED}  # others of a kind are begun by what a life is set to
    assert {f"{kind} done" for kind in (begun & set(PLANS)) - {TASK_SHELVE_OFFLOAD}} <= met
    assert {f"{kind} failed" for kind in (TASK_MIGRATE, TASK_RESIZE, TASK_LIVE_MIGRATE)} <= met
    assert {"forced down", "let in again", "host lost for good"} <= met


@pytest.mark.parametrize("guard", ["quarantine", "fence_check"])
def test_a_guard_of_moves_that_is_switched_off_is_missed(guard: str, tmp_path: Path) -> None:
    arguments = ["--seeds", str(SABOTAGE_SEEDS * 4), "--theme", "moves", "--sabotage", guard, "--first"]
    found = simulate(tmp_path, *arguments)
    assert found["failed"], f"{found['seeds']} seeds without {guard}, and nothing was found"


@pytest.mark.parametrize("guard", ["fence", "watermark", "sequence", "outbox", "generation", "epoch", "group"])
def test_a_guard_that_is_switched_off_is_missed(guard: str, tmp_path: Path) -> None:
    found = simulate(tmp_path, "--seeds", str(SABOTAGE_SEEDS), "--sabotage", guard, "--first")
    assert found["failed"], f"{found['seeds']} seeds without {guard}, and nothing was found"


def test_a_failure_shrinks_to_the_events_that_make_it() -> None:
    assert fewest(list(range(60)), lambda numbers: {7, 31, 58} <= set(numbers)) == [7, 31, 58]
    assert fewest(list(range(9)), lambda numbers: True) == []


def test_a_failing_seed_is_replayed_with_fewer_events(tmp_path: Path) -> None:
    failed = simulate(tmp_path, "--seeds", "100", "--sabotage", "generation", "--first")["failed"][0]
    arguments = ["--seed", str(failed["seed"]), "--seeds", "1", "--sabotage", "generation"]
    said = simulate(tmp_path, *arguments, "--shrink")["said"]
    kept = said.split("--keep ")[1].split()[0]
    assert len(kept.split(",")) < 15, said
    assert simulate(tmp_path, *arguments, "--keep", kept)["failed"]
