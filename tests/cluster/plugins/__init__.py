"""Distributions of others, for the region under test: installed by a dist-info directory on PYTHONPATH."""

import os
import shutil
from pathlib import Path

HERE = Path(__file__).parent

ENTRY_POINTS = """[zcompute.notifiers]
file = notifiers_of_others:open_file
broken = a_library_that_is_not_installed:open_it
"""
METADATA = """Metadata-Version: 2.1
Name: notifiers-of-others
Version: 1.0
"""


def install(site: Path) -> str:
    """Install the distribution into an empty directory; returns the PYTHONPATH with it."""
    site.mkdir()
    shutil.copy(HERE / "notifiers_of_others.py", site)
    described = site / "notifiers_of_others-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(METADATA, encoding="utf-8")
    (described / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    return os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))
