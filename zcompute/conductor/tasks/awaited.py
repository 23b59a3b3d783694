"""A step that waits for an agent's word."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from zcompute.conductor.tasks.decision import Decision
from zcompute.objects.instance import Instance
from zcompute.objects.report import StepResult
from zcompute.objects.task import Task

Ended = Callable[[Instance, Task, StepResult, int, int], Decision]


@dataclass(frozen=True)
class Awaited:
    """``hosts`` that may answer, ``heard`` those that have; ``ended(instance, task, result, now_us, ending_s)`` decides
    what the answer changes."""

    hosts: Callable[[Task], Collection[str]]
    ended: Ended
    heard: Callable[[Task], Collection[str]] = lambda _: ()
