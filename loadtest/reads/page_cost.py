"""What a page costs whom, in several regions in turn: rounds of an order, each less what is spent without any request.

The orders are to keep the machine busy (IN_FLIGHT). With one request at a time the work of one cell runs one process
after the other, and that of ten side by side: where the two cores share one, the same instructions then count for up to
1.7 times as much CPU (docs/decisions/0006), and what is compared is how busy the machine was.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.reads.orders import Order
from loadtest.reads.scene import Measured, Scene

CLIENT = "client"
IN_FLIGHT = 10

CpuMs = dict[str, float]


@dataclass(frozen=True)
class PageCost:
    """``rounds``: a page's CPU ms by kind of process in each round, the load generator left out; ``idle``: a second's
    without any request, round by round."""

    rounds: list[CpuMs]
    idle: list[CpuMs]

    @property
    def sums_ms(self) -> list[float]:
        """Of all that serve a page together, round by round."""
        return [sum(cpu_ms.values()) for cpu_ms in self.rounds]

    @property
    def median(self) -> CpuMs:
        """The round with the median sum."""
        return sorted(self.rounds, key=lambda cpu_ms: sum(cpu_ms.values()))[len(self.rounds) // 2]

    @property
    def idle_ms(self) -> float:
        """Of all processes together, CPU ms a second without any request."""
        return statistics.median([sum(cpu_ms.values()) for cpu_ms in self.idle])

    def __str__(self) -> str:
        sums = ", ".join(f"{ms:.2f}" for ms in self.sums_ms)
        parts = ", ".join(f"{kind} {ms:.2f}" for kind, ms in self.median.items() if ms)
        return f"CPU ms a page in rounds {sums}; the median's {parts}; idle ms a second {self.idle_ms:.0f}"


def page_costs(orders: Sequence[tuple[Scene, Order]], rounds: int, idle_s: float) -> list[PageCost]:
    """One cost for each order, carried out in turn. A look at the idle counts for the rounds before and behind it."""
    costs = [PageCost([], []) for _ in orders]
    scenes = [found for found, _ in orders]
    before = idle_ms(scenes, idle_s)
    for _ in range(rounds):
        measured = [found.run(order) for found, order in orders]
        after = idle_ms(scenes, idle_s)
        for at, cost in enumerate(costs):
            idle = {kind: (ms + after[at][kind]) / 2 for kind, ms in before[at].items()}
            cost.rounds.append(_less(measured[at], idle))
            cost.idle.append(idle)
        before = after
    return costs


def idle_ms(scenes: Sequence[Scene], seconds: float) -> list[CpuMs]:
    """CPU ms a second by kind of process, of each of these while nobody asks: beats, watches, looks at replicas."""
    before, began_s = [found.cpu_s() for found in scenes], time.monotonic()
    time.sleep(seconds)
    share = 1000 / (time.monotonic() - began_s)
    after = [found.cpu_s() for found in scenes]
    return [
        {kind: (late[kind] - early[kind]) * share for kind in late} for early, late in zip(before, after, strict=True)
    ]


def ratio(one: PageCost, other: PageCost) -> float:
    """How much more a page costs here than there: the median of the rounds, each compared with its neighbour."""
    return statistics.median([mine / theirs for mine, theirs in zip(one.sums_ms, other.sums_ms, strict=True)])


def _less(measured: Measured, idle_ms: CpuMs) -> CpuMs:
    """A page's CPU without what its processes spend anyway in the time of one."""
    interval_s = measured.interval_ms / 1000
    return {kind: ms - idle_ms[kind] * interval_s for kind, ms in measured.cpu_ms.items() if kind != CLIENT}
