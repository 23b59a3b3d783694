"""A conductor of the root, or of either cell, killed at a step of a server's move to another cell: one copy is left,
where the mapping says, and the move comes to its end."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.cluster.conftest import require_mariadb
from tests.cluster.region import assert_audit_holds, boot, command, started, wait_until
from tests.cluster.test_cross_moves import cell_of, listed
from tests.failpoints.test_quotas import OF_ROOT, armed
from tests.unit.test_failpoints import OF_CROSS_MOVES, places
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.layout import Shape
from zcompute.cli.up.region import Region

SOURCE, TARGET = "source", "target"
# The place, whose conductors may die there, and at which pass: words come again, steps one after the other.
DEATHS = [
    ("crossmove.after_begin", "", 1),
    ("crossmove.before_step", "", 2),
    ("crossmove.after_step", "", 3),
    ("crossmove.before_switch", "", 1),
    ("crossmove.after_switch", "", 1),
    ("crossing.before_commit", TARGET, 1),
    ("crossing.after_commit", SOURCE, 2),
]
OTHER = {"c1": "c2", "c2": "c1"}
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Region]:
    require_mariadb()
    shape = Shape(cells=("c1", "c2"), computes=1, hosts_per_compute=2)
    with started(tmp_path_factory.mktemp("r") / "s", MARIADB, shape) as running:
        running.on_unexpected_end = lambda text: None
        for name in OF_ROOT:  # read when the test kills them and starts them again
            config = running.paths.config(name)
            text = config.read_text()
            assert "[conductor]" in text
            config.write_text(text.replace("[conductor]\n", "[conductor]\ncross_move_wait_s = 0.1\n"))
        boot(running, 1)
        yield running


def test_every_place_of_moves_between_cells_is_tried() -> None:
    assert sorted({place for place, _, _ in DEATHS}) == sorted(
        place for place in places() if place.startswith(OF_CROSS_MOVES)
    )


@pytest.mark.parametrize(("place", "side", "passes"), DEATHS)
def test_killed_between_two_steps(
    region: Region, place: str, side: str, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = listed(region)
    home, operation = cell_of(row), str(uuid4())
    target = OTHER[home]
    cell = {SOURCE: home, TARGET: target}.get(side, "")
    victims = (f"{cell}-conductor-1", f"{cell}-conductor-2") if cell else OF_ROOT
    gate = tmp_path / "gate"

    def moved() -> bool:
        """Asked again until it is answered: the operation makes it one move."""
        done = command(
            "server", "migrate", row["id"], "--to-cell", target, "--operation", operation, "--wait", "30",
            "--state-dir", str(region.paths.state_dir), "--format", "json",
        )  # fmt: skip
        return done.returncode == 0

    with armed(region, victims, place, gate, monkeypatch, passes):
        gate.touch()
        wait_until(moved, f"the server is in cell {target}", timeout_s=60)
    (now,) = listed(region)
    assert (now["id"], cell_of(now), now["status"]) == (row["id"], target, "ACTIVE")
    assert_audit_holds(region)
