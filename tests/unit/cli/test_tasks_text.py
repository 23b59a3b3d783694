"""docs/tasks.md says what the code does."""

from pathlib import Path

from zcompute.cli import tasks_text
from zcompute.conductor.tasks.moves.plans import PLANS

PAGE = Path(__file__).parents[3] / "docs" / "tasks.md"


def test_the_page_is_what_the_plans_make_of_it() -> None:
    assert PAGE.read_text(encoding="utf-8") == tasks_text.reference(), (
        "run: python -m zcompute.cli.tasks_text > docs/tasks.md"
    )


def test_every_kind_of_move_has_a_diagram() -> None:
    page = tasks_text.reference()
    assert all(f"### {kind}\n" in page for kind in PLANS)
