"""Every task_state has a named deadline, and the page for operators says it."""

from dataclasses import replace
from pathlib import Path

import pytest

from zcompute.conductor.tasks.deadlines import deadline_lines, deadlines
from zcompute.conductor.tasks.settings import ACT_DEADLINES_S, TaskSettings
from zcompute.config import ConductorConfig
from zcompute.objects import instance
from zcompute.objects.actions import ACTIONS

PAGE = Path(__file__).parents[4] / "docs" / "operating" / "tasks.md"
TASK_STATES = sorted(value for name, value in vars(instance).items() if name.startswith("TASK_"))


@pytest.mark.parametrize("task_state", TASK_STATES)
def test_every_task_state_has_a_deadline(task_state: str) -> None:
    found = deadlines(TaskSettings()).get(task_state, ())
    assert found
    assert all(row.seconds > 0 and row.setting for row in found)


def test_every_task_state_of_an_action_is_in_the_table() -> None:
    used = {action.task_state for action in ACTIONS.values() if action.task_state}
    assert used <= set(deadlines(TaskSettings()))


def test_settings_cap_what_the_tables_give() -> None:
    capped = deadlines(replace(TaskSettings(), act_deadline_s_max=7, move_deadline_s_max=9))
    assert {row.seconds for state in ACT_DEADLINES_S for row in capped[state] if row.kind == "act"} == {7}
    assert {row.seconds for row in capped["migrating"]} == {9}


def test_the_defaults_are_those_of_the_configuration() -> None:
    config, settings = ConductorConfig(), TaskSettings()
    assert (config.build_deadline_s, config.delete_deadline_s) == (
        settings.build_deadline_s,
        settings.delete_deadline_s,
    )


def test_the_page_has_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    below = text.split("## Deadlines", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in below.splitlines() if line.startswith("| ")][2:]
    assert rows == deadline_lines()
