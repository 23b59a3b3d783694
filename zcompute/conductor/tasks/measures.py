"""What the task engine measures: tasks by kind, step and state, how long steps take, how fast tasks are resumed.

No label names a server or a host. Kinds and steps are those of this release; tasks of others are counted as unknown.
"""

import time
from collections import Counter
from collections.abc import Iterable

from zcompute.measure import Measure, Spread
from zcompute.objects.task import TASK_PARKED, Task

STEP_S_BOUNDS = (0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0)
RESUME_S_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 30.0, 300.0)


class Times:
    """A histogram under construction."""

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, took_s: float) -> None:
        """One more; the last count is of those above all bounds."""
        at = next((at for at, bound in enumerate(self.bounds_s) if took_s <= bound), len(self.bounds_s))
        self.counts[at] += 1
        self.sum_s += took_s


class TaskMeasures:
    """Counts of one incarnation."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str], Times] = {}
        self._resumed = Times(RESUME_S_BOUNDS)
        self._parked = 0

    def stepped(self, former: Task, now_us: int) -> None:
        """A step, or an attempt of it, has ended by a commit that was seen just now, at ``now_us`` of the primary."""
        times = self._steps.get((former.kind, former.step))
        if times is None:
            times = self._steps[former.kind, former.step] = Times(STEP_S_BOUNDS)
        times.add(max(0, now_us - (former.body.step_began_at_us or now_us)) / 1e6)

    def parked(self) -> None:
        """A task was parked."""
        self._parked += 1

    def resumed(self, gained_at: float) -> None:
        """A task goes on under this owner, who learnt at ``gained_at`` (monotonic) that its take-over had committed:
        its hosts have adopted it, or it names none."""
        self._resumed.add(time.monotonic() - gained_at)

    def measures(
        self, tasks: Iterable[Task], *, known: Iterable[tuple[str, str]], tasks_max: int
    ) -> list[Measure | Spread]:
        """All of it, with the ``tasks`` that are under way now; ``known`` are the steps of this release."""
        names = frozenset(known)
        counts = Counter((task.kind, task.step, task.state) for task in tasks)
        unknown = sum(count for (kind, step, _), count in counts.items() if (kind, step) not in names)
        found: list[Measure | Spread] = [
            Measure("tasks", "Tasks under way", count, labels={"kind": kind, "step": step, "state": state})
            for (kind, step, state), count in sorted(counts.items())
            if (kind, step) in names
        ]
        parked = sum(count for (_, _, state), count in counts.items() if state == TASK_PARKED)
        return [
            *found,
            Measure("tasks_under_way", "All of them", sum(counts.values())),
            Measure("tasks_max", "So many may be under way; then new work is refused", tasks_max),
            Measure("tasks_parked", "Of these, parked", parked),
            Measure("tasks_unknown", "Of these, at a step that this release does not know", unknown),
            Measure("task_parkings", "Tasks parked at their deadline", self._parked, counter=True),
            Spread(
                "task_resume_seconds",
                "From the take-over to the step going on, adoption included",
                self._resumed.bounds_s, self._resumed.counts, self._resumed.sum_s,
            ),
            *(
                Spread(
                    "task_step_seconds", "How long steps took", times.bounds_s, times.counts, times.sum_s,
                    labels={"kind": kind, "step": step},
                )
                for (kind, step), times in sorted(self._steps.items())
            ),
        ]  # fmt: skip
