"""What the engine measures of its tasks."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.conductor.cell.cell_world import QUICK, CellWorld
from tests.unit.conductor.ledger_world import wait_for
from zcompute.conductor.tasks.measures import RESUME_S_BOUNDS, TaskMeasures, Times
from zcompute.conductor.tasks.steps import KINDS, STEP_NAMES
from zcompute.measure import Measure, Spread
from zcompute.metrics import measured
from zcompute.objects.instance import VM_ACTIVE, VM_DELETED
from zcompute.objects.task import Task


@pytest.fixture
def make() -> Iterator[Any]:
    worlds: list[CellWorld] = []

    def build(settings: Any = QUICK) -> CellWorld:
        worlds.append(CellWorld("h1", settings=settings))
        return worlds[-1]

    yield build
    for world in worlds:
        world.close()


def values(world: CellWorld) -> dict[Any, Any]:
    """By name and labels: a value, or how many a histogram has counted."""
    return {
        (row.name, *row.labels.values()): row.value if isinstance(row, Measure) else sum(row.counts)
        for row in world.engine.measures()
    }


def test_every_step_that_ends_is_counted_once(make) -> None:
    world = make()
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)
    wait_for(lambda: world.engine.tasks == 0)
    found = values(world)
    steps = {(kind, step) for name, *labels in found if name == "task_step_seconds" for kind, step in [labels]}
    assert steps == {
        ("build", "schedule"),
        ("build", "claim"),
        ("build", "spawn"),
        ("delete", "destroy"),
        ("delete", "finish"),
    }
    assert {found["task_step_seconds", *step] for step in steps} == {1}
    assert found["tasks_under_way",] == 0


def test_tasks_are_counted_by_kind_step_and_state_and_parked_ones_apart(make) -> None:
    world = make(replace(QUICK, build_deadline_s=1))
    world.agents["h1"].silent = True
    world.build()
    wait_for(lambda: values(world).get(("tasks", "build", "spawn", "running")) == 1)
    wait_for(lambda: values(world).get(("tasks", "build", "spawn", "parked")) == 1)
    wait_for(lambda: values(world)["task_parkings",] == 1)
    assert values(world)["tasks_parked",] == 1


def test_a_task_that_is_taken_over_is_counted_when_its_step_goes_on(make) -> None:
    world = make()
    world.agents["h1"].silent = True
    uuid = world.build()
    wait_for(lambda: world.agents["h1"].named("spawn"))
    assert values(world)["task_resume_seconds",] == 0
    world.lose_and_regain(uuid)
    wait_for(lambda: values(world)["task_resume_seconds",] == 1)
    assert world.agents["h1"].named("adopt")


def test_a_step_of_another_release_is_counted_and_never_a_label() -> None:
    strange = Task(id="t1", instance_uuid="u1", kind="shelve", step="dream")
    found = TaskMeasures().measures([strange], known=STEP_NAMES, tasks_max=9)
    assert {row.name: row.value for row in found if isinstance(row, Measure)} == {
        "tasks_under_way": 1, "tasks_max": 9, "tasks_parked": 0, "tasks_unknown": 1, "task_parkings": 0
    }  # fmt: skip


def test_a_histogram_counts_what_is_above_all_its_bounds() -> None:
    times = Times(RESUME_S_BOUNDS)
    for took_s in (0.0, 0.05, 1.5, 1e6):
        times.add(took_s)
    row = Spread("task_resume_seconds", "", times.bounds_s, times.counts, times.sum_s)
    [family] = measured("c1-1", [row])
    found = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
    assert (found["0.05"], found["2.0"], found["300.0"], found["+Inf"]) == (2, 3, 3, 4)
    assert found["zcompute_task_resume_seconds_count"] == 4


def test_labels_are_bounded_by_what_is_declared() -> None:
    assert {kind for kind, _ in STEP_NAMES} == set(KINDS)
