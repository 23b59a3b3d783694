"""The exit codes in docs are those of the code."""

from pathlib import Path

from zcompute.cli.exits import MEANINGS

PAGE = Path(__file__).parents[3] / "docs" / "operating" / "exit-codes.md"


def test_the_page_lists_every_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for code, meaning in MEANINGS.items():
        assert f"| {code} | {meaning} |" in text
