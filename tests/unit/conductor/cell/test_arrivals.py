"""Reports that come before their partition wait for it, and are taken in order or refused in time."""

from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from zcompute.conductor.cell.arrivals import ArrivalLimits, Arrivals
from zcompute.objects.partition import PARTITIONS, PartitionMap


class Scene:
    """Partition 7 is on its way to ``me``; the ledger acts upon the map before."""

    def __init__(self, **limits: int) -> None:
        self.taken: list[str] = []
        self.refused: list[tuple[str, int]] = []
        ledger: Any = SimpleNamespace(map=PartitionMap(cell="c1", version=3))
        owners = [""] * PARTITIONS
        owners[7] = "me"
        router: Any = SimpleNamespace(map=PartitionMap(cell="c1", version=4, owners=owners))
        self.ledger, self.router = ledger, router
        refuse = lambda item, partition: self.refused.append((item, partition))  # noqa: E731
        self.arrivals: Arrivals[str] = Arrivals(
            ledger, router, "me", self.taken.append, refuse, ArrivalLimits(**limits)
        )


def test_only_what_the_newer_map_gives_us_is_expected() -> None:
    scene = Scene()
    assert scene.arrivals.expected(7)
    assert not scene.arrivals.expected(8)
    scene.ledger.map = scene.router.map
    assert not scene.arrivals.expected(7)


def test_what_waits_is_taken_in_its_order_when_the_partition_comes() -> None:
    scene = Scene()
    for item in ("a", "b"):
        scene.arrivals.wait(7, item)
    scene.arrivals.gained([6])
    assert scene.taken == []
    scene.arrivals.gained([6, 7])
    assert scene.taken == ["a", "b"]
    scene.arrivals.gained([7])
    assert scene.taken == ["a", "b"]
    scene.arrivals.stop()


@pytest.mark.timeout(10)
def test_what_waits_too_long_is_refused() -> None:
    scene = Scene(wait_ms_max=20)
    scene.arrivals.wait(7, "a")
    while not scene.refused:
        gevent.sleep(0.005)
    assert scene.refused == [("a", 7)]
    scene.arrivals.gained([7])
    assert scene.taken == []


def test_no_more_wait_than_the_limit() -> None:
    scene = Scene(waiting_max=1)
    scene.arrivals.wait(7, "a")
    assert not scene.arrivals.expected(7)
    scene.arrivals.stop()
