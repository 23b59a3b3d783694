"""Links are served by turns: one that asks without a pause, and is in its right to, delays its neighbours little."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.bus_dialogs import PONDER, SAY, Ask, Method
from tests.cluster.bus_scene import Scene, delays, p99
from tests.unit.bus.conftest import wait_until
from zcompute.bus.inside import BUS_STAT, StatRequest

NEIGHBOUR_FACTOR = 2
NEIGHBOUR_SLACK_S = 0.1
"""A neighbour's p99 in the flood stays below NEIGHBOUR_FACTOR times its own in quiet, plus what a machine of two cores
may add on which flooder, server, neighbour and other tests run at once. Without turns it is above a second."""
WINDOW_S = 1.0
WINDOWS = 3
"""Of each sort, by turns of processes; the least is compared, since other work comes and goes."""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(("does", "method"), [("flood", SAY), ("ponder", PONDER)])
def test_a_flood_of_valid_calls_by_one_link_delays_its_neighbour_little(
    scene: Scene, does: str, method: Method
) -> None:
    """4,000 calls at once of handlers that answer at once, or that wait while 16 workers are all there is."""
    server = scene.peer("server", limits={"calls_workers": 16})
    neighbour = scene.dial(scene.endpoint("neighbour"), server)
    operator = scene.dial(scene.endpoint("here"), server)

    def ask() -> None:
        assert neighbour.call(method, Ask("n" * 500), timeout_ms=10_000)

    quiet = min(p99(delays(ask, WINDOW_S)) for _ in range(WINDOWS))
    scene.peer("agent", dials=server.config.address, server_key=server.config.public, does=does)

    def flooded() -> bool:
        stat = operator.call(BUS_STAT, StatRequest(), timeout_ms=10_000)
        return bool(stat.serving_calls > 1000)

    if method is PONDER:
        wait_until(flooded, 20)
    else:
        wait_until(
            lambda: operator.call(BUS_STAT, StatRequest(), timeout_ms=10_000).counters["calls_served"] > 20_000, 20
        )
    flood = min(p99(delays(ask, WINDOW_S)) for _ in range(WINDOWS))
    assert flood < NEIGHBOUR_FACTOR * quiet + NEIGHBOUR_SLACK_S, (flood, quiet)
    print(f"neighbour p99 ms quiet={quiet * 1e3:.1f} flood={flood * 1e3:.1f}")
