"""Whatever the bus counts is explained to operators."""

import re
from pathlib import Path

import pytest

from zcompute.bus import errors

ROOT = Path(__file__).parents[3]
SOURCE = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "zcompute" / "bus").glob("*.py")))
DOCUMENT = (ROOT / "docs" / "operating" / "bus.md").read_text(encoding="utf-8")
COUNTERS = set(re.findall(r'counters\["([a-z_]+)"\]', SOURCE))
REASONS = (
    set(re.findall(r'refusals\.count\(\s*"([a-z_]+)"', SOURCE))
    | set(re.findall(r'\bRefused\("([a-z_]+)"', SOURCE))
    | set(re.findall(r'reason="([a-z_]+)"', SOURCE))
)
CALLS = {errors.Forbidden, errors.UnknownMethod, errors.UnsupportedVersion, errors.Busy, errors.InvalidRequest}


@pytest.mark.parametrize("name", sorted(COUNTERS | REASONS | {kind.wire_name for kind in CALLS}))
def test_what_is_counted_is_explained(name: str) -> None:
    assert f"`{name}`" in DOCUMENT, "explain it in docs/operating/bus.md"


def test_the_names_were_found() -> None:
    assert {"calls_served", "bytes_sent"} <= COUNTERS
    assert {"key", "malformed", "over_credit", "hello"} <= REASONS
