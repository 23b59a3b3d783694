"""docs/actions.md says what the table says."""

from pathlib import Path

from zcompute.cli import actions_text
from zcompute.objects.actions import ACTIONS

PAGE = Path(__file__).parents[3] / "docs" / "actions.md"


def test_the_page_is_what_the_table_says() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == actions_text.reference(), "run: python -m zcompute.cli.actions_text > docs/actions.md"


def test_every_action_is_on_the_page() -> None:
    for action in ACTIONS.values():
        assert f"| {action.key} |" in actions_text.reference()
