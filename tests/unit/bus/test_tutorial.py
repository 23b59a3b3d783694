"""The tutorial's program is run as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TUTORIAL = ROOT / "docs" / "bus-tutorial.md"
LINES_MAX = 26


def program() -> str:
    found = re.search(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found.group(1)


def test_the_program_of_the_tutorial_runs_as_it_says(tmp_path: Path) -> None:
    script = tmp_path / "greeter.py"
    script.write_text(program(), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.stdout == "Hello Ann, from ann's host\n", done.stderr
    assert done.returncode == 0


def test_the_program_of_the_tutorial_is_short_and_needs_the_public_face_only() -> None:
    text = program()
    assert len([line for line in text.splitlines() if line.strip()]) <= LINES_MAX
    assert set(re.findall(r"zcompute[\w.]*", text)) == {"zcompute.bus"}


def test_every_name_that_the_tutorial_tells_is_there() -> None:
    import zcompute.bus as bus

    text = TUTORIAL.read_text(encoding="utf-8")
    for owner, name in re.findall(r"`?\b(link|endpoint)\.(\w+)", text):
        kind = bus.Link if owner == "link" else bus.Endpoint
        assert hasattr(kind, name) or name == "counters", f"{owner}.{name}"
    for error in re.findall(r"^\| `(\w+)`", text, re.MULTILINE):
        assert hasattr(bus, error), error
