"""The fewest events of a plan with which a seed still fails, by leaving out halves, then ever smaller parts."""

from collections.abc import Callable

from tests.simulation.cell.plan import Scale, make_plan
from tests.simulation.cell.runner import live_forked

RUNS_MAX = 400


def shrink(seed: int, scale: Scale, sabotage: str = "") -> list[int]:
    """The numbers of the events that are left. A plan that fails without any event stays empty."""
    plan = make_plan(seed, scale)

    def fails(numbers: list[int]) -> bool:
        return live_forked(seed, scale, [plan[number] for number in numbers], sabotage).failed

    return fewest(list(range(len(plan))), fails)


def fewest(numbers: list[int], fails: Callable[[list[int]], bool]) -> list[int]:
    """Zeller's ddmin, greedy: parts are left out as long as it fails without them."""
    runs = 0
    size = max(1, len(numbers) // 2)
    while True:
        start, found = 0, False
        while start < len(numbers) and runs < RUNS_MAX:
            fewer = numbers[:start] + numbers[start + size :]
            runs += 1
            if fails(fewer):
                numbers, found = fewer, True
            else:
                start += size
        if runs >= RUNS_MAX or (size == 1 and not found):
            return numbers
        size = max(1, size // 2)
