from pathlib import Path

import pytest

from tests.orders import fresh, make_order
from zcompute.compute.errors import CommandsFull, RecordInvalid
from zcompute.compute.generations import COMMAND_DESTROY, COMMAND_SPAWN, Finding, Generations, Record, Step
from zcompute.compute.journal import Journal
from zcompute.compute.settings import Settings
from zcompute.objects.command import Order
from zcompute.objects.report import OUTCOME_DONE, OUTCOME_FAILED


def ended(order: Order, command: str = COMMAND_SPAWN, outcome: str = OUTCOME_DONE) -> Step:
    return Step(command, order.task_id, order.step, order.attempt, order.reporter_generation, outcome)


def opened(tmp_path: Path, **limits: int) -> Generations:
    return Generations(tmp_path / "generations", Settings(**limits), 0.0)


def reopened(generations: Generations, tmp_path: Path) -> Generations:
    """What a restart finds must be what was in memory."""
    before = sorted(generations.records(), key=lambda record: (record.host, record.uuid))
    generations.close()
    again = opened(tmp_path)
    assert sorted(again.records(), key=lambda record: (record.host, record.uuid)) == before
    assert again.granted_count() == sum(bool(record.grant) for record in before)
    return again


def test_a_repeat_is_recognised_with_its_outcome_also_after_a_restart(tmp_path: Path) -> None:
    generations, order = opened(tmp_path), make_order(fresh())
    assert generations.find(order) == (Finding.NEW, None)
    generations.begin(order, COMMAND_SPAWN, 0.0)
    generations = reopened(generations, tmp_path)
    finding, step = generations.find(order)
    assert finding is Finding.REPEAT
    assert step is not None
    assert step.outcome == ""
    generations.finish(order, ended(order), grant=1)
    generations = reopened(generations, tmp_path)
    finding, step = generations.find(order)
    assert finding is Finding.REPEAT
    assert step == ended(order)


def test_an_older_generation_is_stale_and_a_newer_one_is_new(tmp_path: Path) -> None:
    generations, one = opened(tmp_path), fresh()
    generations.begin(make_order(one, generation=4), COMMAND_SPAWN, 0.0)
    assert generations.find(make_order(one, generation=3))[0] is Finding.STALE
    assert generations.find(make_order(one, generation=4, attempt=2))[0] is Finding.NEW
    assert generations.find(make_order(one, generation=5))[0] is Finding.NEW
    assert generations.find(make_order(one, generation=3, host="node2"))[0] is Finding.NEW


def test_an_earlier_step_of_the_same_generation_stays_recognised(tmp_path: Path) -> None:
    generations, one = opened(tmp_path), fresh()
    spawn, destroy = make_order(one), make_order(one, step="destroy", reporter_generation=0)
    generations.begin(spawn, COMMAND_SPAWN, 0.0)
    generations.finish(spawn, ended(spawn), grant=1)
    generations.begin(destroy, COMMAND_DESTROY, 0.0)
    generations.finish(destroy, ended(destroy, COMMAND_DESTROY), grant=0)
    generations = reopened(generations, tmp_path)
    assert generations.find(spawn)[0] is Finding.REPEAT
    assert generations.find(destroy)[0] is Finding.REPEAT


def test_an_adopter_makes_former_orders_stale_and_finds_the_newest_outcome(tmp_path: Path) -> None:
    generations, one = opened(tmp_path), fresh()
    spawn = make_order(one)
    generations.begin(spawn, COMMAND_SPAWN, 0.0)
    generations.raise_to(make_order(one, generation=2, step="adopt"), 0.0)
    assert not generations.is_current(spawn)
    generations.finish(spawn, ended(spawn), grant=1)
    record = reopened(generations, tmp_path).get("node1", one)
    assert record is not None
    assert (record.generation, record.steps, record.known, record.grant) == (2, [], ended(spawn), 1)


def test_a_late_end_never_takes_back_a_newer_grant(tmp_path: Path) -> None:
    generations, one = opened(tmp_path), fresh()
    spawn = make_order(one, reporter_generation=1)
    generations.begin(spawn, COMMAND_SPAWN, 0.0)
    generations.raise_to(make_order(one, generation=2), 0.0)
    generations.grant("node1", one, 5)
    generations.finish(spawn, ended(spawn), grant=1)
    record = generations.get("node1", one)
    assert record is not None
    assert record.grant == 5


def test_forget_keeps_the_grant_of_what_runs_and_drops_the_rest(tmp_path: Path) -> None:
    generations = opened(tmp_path)
    running, gone = make_order(fresh()), make_order(fresh(), reporter_generation=0)
    for order, grant in ((running, 1), (gone, 0)):
        generations.begin(order, COMMAND_SPAWN, 0.0)
        generations.finish(order, ended(order), grant=grant)
        generations.forget(order)
    generations = reopened(generations, tmp_path)
    assert generations.get("node1", gone.instance_uuid) is None
    assert generations.records() == [Record("node1", running.instance_uuid, 1, "t1", [], grant=1, forgotten=True)]
    generations.grant("node1", running.instance_uuid, 0)
    assert reopened(generations, tmp_path).records() == []


def test_forget_of_another_task_changes_nothing(tmp_path: Path) -> None:
    generations, one = opened(tmp_path), fresh()
    generations.begin(make_order(one), COMMAND_SPAWN, 0.0)
    generations.begin(make_order(one, generation=2, task_id="t2"), COMMAND_DESTROY, 0.0)
    generations.forget(make_order(one, generation=2, task_id="t1"))
    generations.forget(make_order(one, generation=1, task_id="t2"))
    assert generations.find(make_order(one, generation=2, task_id="t2"))[0] is Finding.REPEAT
    assert not generations.records()[0].forgotten


def test_forget_waits_for_the_step_under_way(tmp_path: Path) -> None:
    generations, order = opened(tmp_path), make_order(fresh())
    generations.begin(order, COMMAND_SPAWN, 0.0)
    generations.forget(order)
    assert generations.get("node1", order.instance_uuid) is not None
    generations.finish(order, ended(order, outcome=OUTCOME_FAILED))
    assert generations.get("node1", order.instance_uuid) is None


def test_tombstones_and_steps_have_limits(tmp_path: Path) -> None:
    generations = opened(tmp_path, tombstones_max=2, steps_max=2)
    running = make_order(fresh())
    generations.begin(running, COMMAND_SPAWN, 0.0)
    generations.finish(running, ended(running), grant=1)
    orders = [make_order(fresh()) for _ in range(3)]
    generations.begin(orders[0], COMMAND_SPAWN, 0.0)
    generations.begin(orders[1], COMMAND_SPAWN, 0.0)
    with pytest.raises(CommandsFull):
        generations.begin(orders[2], COMMAND_SPAWN, 0.0)
    with pytest.raises(CommandsFull):
        generations.raise_to(orders[2], 0.0)
    assert generations.get("node1", orders[2].instance_uuid) is None
    generations.begin(make_order(running.instance_uuid, attempt=2), COMMAND_SPAWN, 0.0)
    with pytest.raises(CommandsFull):
        generations.begin(make_order(running.instance_uuid, attempt=3), COMMAND_SPAWN, 0.0)


def test_a_record_that_is_none_is_refused(tmp_path: Path, settings: Settings) -> None:
    journal = Journal(tmp_path / "generations", lambda: iter(()), settings)
    journal.write(b"\x00what")
    journal.close()
    with pytest.raises(RecordInvalid):
        opened(tmp_path)


def test_a_tombstone_whose_forget_was_lost_makes_room_once_it_is_old(tmp_path: Path) -> None:
    generations = opened(tmp_path, tombstones_max=2)
    old, open_one = make_order(fresh(), reporter_generation=0), make_order(fresh())
    generations.begin(open_one, COMMAND_SPAWN, 0.0)
    generations.begin(old, COMMAND_DESTROY, 0.0)
    generations.finish(old, ended(old, COMMAND_DESTROY), grant=0)
    late = make_order(fresh())
    with pytest.raises(CommandsFull):
        generations.begin(late, COMMAND_SPAWN, 3599.0)
    generations.begin(late, COMMAND_SPAWN, 3600.0)
    uuids = {record.uuid for record in reopened(generations, tmp_path).records()}
    assert uuids == {open_one.instance_uuid, late.instance_uuid}


def test_a_destroy_may_be_retried_for_ever(tmp_path: Path) -> None:
    generations, one = opened(tmp_path, steps_max=3), fresh()
    generations.begin(make_order(one), COMMAND_SPAWN, 0.0)
    for attempt in range(1, 20):
        order = make_order(one, step="destroy", attempt=attempt)
        generations.begin(order, COMMAND_DESTROY, 0.0)
        generations.finish(order, ended(order, COMMAND_DESTROY, OUTCOME_FAILED))
    record = generations.records()[0]
    assert [(step.command, step.attempt) for step in record.steps] == [("spawn", 1), ("destroy", 18), ("destroy", 19)]
