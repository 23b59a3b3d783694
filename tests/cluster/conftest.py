"""Whole regions of real processes for the tests of this directory."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.agent_cell import Cell
from tests.cluster.region import started
from zcompute.cli.up.databases import MARIADB, SQLITE
from zcompute.cli.up.region import Region
from zcompute.db.private import find_programs


def require_mariadb() -> None:
    """Without MariaDB such a test is skipped; in CI it fails."""
    if find_programs() is None:
        message = "mariadbd is not installed (mariadb-server-core, mariadb-client-core)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="module")
def mariadb_region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    """A region on MariaDB, shared by a module: its tests leave it whole (all services up, nothing under way)."""
    require_mariadb()
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB) as region:
        yield region


@pytest.fixture(scope="module")
def sqlite_region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    """A region on SQLite, shared by a module in the same manner."""
    with started(tmp_path_factory.mktemp("r") / "s", SQLITE) as region:
        yield region


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state directory that does not exist yet."""
    return tmp_path / "s"


@pytest.fixture
def cell(tmp_path: Path) -> Iterator[Cell]:
    """Conductors played by the test, for a real agent."""
    built = Cell(tmp_path)
    try:
        yield built
    finally:
        built.close()
        sys.stderr.write(built.log_text() if (tmp_path / "agent.log").exists() else "")
