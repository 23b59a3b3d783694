"""What an operator sees of tasks and may say of one, at the instance's owner."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from tests.unit.conductor.cell.cell_world import QUICK, CellWorld
from tests.unit.conductor.ledger_world import wait_for
from zcompute.bus.errors import Forbidden, InvalidRequest
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.cell.tasks import ACTION_ABORT, ACTION_RETRY, Tasks
from zcompute.conductor.tasks import build_walk
from zcompute.db.tables import INSTANCE_ACTIONS
from zcompute.objects.errors import OperationConflict, TaskNotFound, TaskRefused
from zcompute.objects.instance import VM_ACTIVE, VM_BUILDING, VM_DELETED, VM_ERROR
from zcompute.objects.messages.tasks import TaskListRequest, TaskOrder
from zcompute.objects.task import TASK_BUILD, TASK_DELETE, TASK_PARKED, TASK_RUNNING

SHORT = replace(QUICK, build_deadline_s=1, delete_deadline_s=1, act_deadline_s_max=1)


class Operated(CellWorld):
    """A cell's conductor with the handlers for operators."""

    def __init__(self, *hosts: str, **kwargs: Any) -> None:
        super().__init__(*hosts, **kwargs)
        env: Any = SimpleNamespace(
            ledger=self.ledger,
            cell="c1",
            forwarding=SimpleNamespace(needed=lambda *_: False),
            reads=SimpleNamespace(read=lambda _, work: work(self.ledger_world.store)),
        )
        self.tasks = Tasks(env, self.engine, CellSettings(), kwargs.get("settings", QUICK))

    def say(self, word: str, uuid: str, operation_id: str = "op-x", **fields: Any) -> Any:
        task_id = self.instance(uuid).task_id or "none"
        values = {"instance_uuid": uuid, "task_id": task_id, "operation_id": operation_id, **fields}
        context = SimpleNamespace(
            peer=SimpleNamespace(role="operator", cell="root", service_id="operator-1"),
            remaining_ms=lambda: 2000,
            request_id="req-1",
        )
        return getattr(self.tasks, word)(TaskOrder(**values), context)

    def page(self, cell: str = "root", **fields: Any) -> Any:
        return self.tasks.page(TaskListRequest(**fields), self.context("operator", cell))

    def history(self, uuid: str, operation_id: str) -> Any:
        return self.database.row(INSTANCE_ACTIONS, (uuid, operation_id))

    def spawning(self) -> str:
        """A build whose host says nothing."""
        self.agents["h1"].silent = True
        uuid = self.build()
        wait_for(lambda: self.agents["h1"].named("spawn"))
        return uuid

    def parked(self, uuid: str) -> Any:
        wait_for(lambda: (task := self.task(uuid)) is not None and task.state == TASK_PARKED)
        wait_for(lambda: self.engine.counts()[1] == 0)
        return self.task(uuid)


@pytest.fixture
def make() -> Iterator[Any]:
    worlds: list[Operated] = []

    def build(*hosts: str, settings: Any = QUICK) -> Operated:
        worlds.append(Operated(*hosts, settings=settings))
        return worlds[-1]

    yield build
    for world in worlds:
        world.close()


def test_pages_name_every_task_once_and_say_why_one_is_parked(make) -> None:
    world = make("h1", settings=SHORT)
    uuid = world.spawning()
    world.parked(uuid)
    world.agents["h1"].silent, world.agents["h1"].mute = True, True
    others = {world.build(uuid=str(uuid4())) for _ in range(4)}
    wait_for(lambda: len(world.page(kind=TASK_BUILD).tasks) == 5)
    seen, after = [], ""
    while after is not None:
        found = world.page(limit=2, after=after)
        seen += [task.instance_uuid for task in found.tasks]
        after = found.next
    assert sorted(seen) == sorted({uuid, *others})
    [parked] = world.page(state=TASK_PARKED, instance_uuid=uuid).tasks
    assert "no answer from h1" in world.page(found=uuid).faults[uuid]
    assert world.page(found=parked.id).tasks == [parked]
    assert world.page(kind=TASK_DELETE).tasks == []
    assert world.page(found="nobody").tasks == []


def test_only_operators_of_the_root_are_answered_and_pages_have_a_limit(make) -> None:
    world = make("h1")
    with pytest.raises(Forbidden):
        world.page(cell="c2")
    with pytest.raises(InvalidRequest):
        world.page(limit=1001)


def test_a_parked_build_that_is_begun_again_ends_as_its_host_says(make) -> None:
    world = make("h1", settings=SHORT)
    uuid = world.spawning()
    parked = world.parked(uuid)
    assert world.instance(uuid).vm_state == VM_ERROR
    reply = world.say("retry", uuid)
    assert (reply.changed, reply.task.state) == (True, TASK_RUNNING)
    assert reply.task.deadline_at_us > parked.deadline_at_us
    row = world.instance(uuid)
    assert (row.vm_state, row.fault) == (VM_BUILDING, None)
    agent = world.agents["h1"]
    agent.finish("spawn", agent.named("spawn")[-1])
    world.wait_state(uuid, VM_ACTIVE)
    assert world.history(uuid, "op-x").action == ACTION_RETRY


def test_a_repeated_word_changes_nothing_more(make) -> None:
    world = make("h1", settings=SHORT)
    uuid = world.spawning()
    world.parked(uuid)
    world.say("retry", uuid)
    deadline = world.task(uuid).deadline_at_us
    assert not world.say("retry", uuid).changed
    assert world.task(uuid).deadline_at_us == deadline
    with pytest.raises(OperationConflict):
        world.say("abort", uuid)


def test_a_delete_that_parked_is_begun_again_and_never_aborted(make) -> None:
    world = make("h1", settings=SHORT)
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    agent = world.agents["h1"]
    agent.silent = agent.mute = True
    world.delete(uuid)
    world.parked(uuid)
    with pytest.raises(TaskRefused, match="tasks of kind delete cannot be aborted"):
        world.say("abort", uuid)
    agent.silent = agent.mute = False
    world.say("retry", uuid)
    world.wait_state(uuid, VM_DELETED)
    assert world.claims == {}


def test_a_parked_act_that_is_begun_again_shows_the_server_as_it_was(make) -> None:
    world = make("h1", settings=SHORT)
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.agents["h1"].silent = True
    world.act(uuid, "pause")
    world.parked(uuid)
    world.say("retry", uuid)
    assert (world.instance(uuid).vm_state, world.instance(uuid).task_state) == (VM_ACTIVE, "pausing")
    with pytest.raises(TaskRefused, match="cannot be aborted"):
        world.say("abort", uuid, operation_id="op-y")


def test_only_a_parked_task_is_begun_again(make) -> None:
    world = make("h1")
    uuid = world.spawning()
    with pytest.raises(TaskRefused, match="it is running") as refused:
        world.say("retry", uuid)
    assert refused.value.details["state"] == TASK_RUNNING
    with pytest.raises(TaskNotFound):
        world.say("retry", uuid, task_id="another")


def test_an_aborted_build_ends_in_error_once_its_host_has_destroyed_it(make) -> None:
    world = make("h1")
    uuid = world.spawning()
    reply = world.say("abort", uuid)
    assert reply.task.step == build_walk.STEP_CANCEL
    agent = world.agents["h1"]
    wait_for(lambda: agent.named("destroy"))
    assert agent.named("destroy")[0].generation > agent.named("spawn")[0].generation
    assert world.claims
    agent.finish("spawn", agent.named("spawn")[-1])  # what it had begun comes too late
    agent.finish("destroy", agent.named("destroy")[-1])
    wait_for(lambda: world.instance(uuid).task_id is None)
    row = world.instance(uuid)
    assert (row.vm_state, row.task_state, row.host, row.claim) == (VM_ERROR, None, None, None)
    assert row.fault.message == build_walk.ABORTED
    assert world.claims == {}
    assert world.history(uuid, "op-x").action == ACTION_ABORT


def test_a_build_that_no_host_was_told_of_is_aborted_at_once(make) -> None:
    world = make()
    uuid = world.build()
    wait_for(lambda: world.task(uuid) is not None)
    world.say("abort", uuid)
    wait_for(lambda: world.instance(uuid).task_id is None)
    assert world.instance(uuid).vm_state == VM_ERROR


def test_a_cancellation_that_fails_is_tried_again_and_releases_the_builds_own_claim(make) -> None:
    world = make("h1")
    uuid = world.spawning()
    agent = world.agents["h1"]
    agent.silent, agent.broken = False, True
    world.say("abort", uuid)
    wait_for(lambda: len(agent.named("destroy")) >= 2)
    agent.broken = False
    wait_for(lambda: world.instance(uuid).task_id is None)
    assert (world.instance(uuid).vm_state, world.claims) == (VM_ERROR, {})
    with pytest.raises(TaskNotFound):
        world.say("abort", uuid, operation_id="op-y")


def test_another_owner_carries_a_cancellation_on(make) -> None:
    world = make("h1")
    uuid = world.spawning()
    world.say("abort", uuid)
    wait_for(lambda: world.agents["h1"].named("destroy"))
    world.agents["h1"].silent = False
    world.lose_and_regain(uuid)
    wait_for(lambda: world.instance(uuid).task_id is None)
    assert (world.instance(uuid).vm_state, world.claims) == (VM_ERROR, {})


def test_a_cancellation_on_a_host_that_is_forced_down_keeps_host_and_claim(make) -> None:
    world = make("h1")
    uuid = world.spawning()
    agent = world.agents["h1"]
    agent.up = False
    world.commands.detach("h1", agent)
    world.say("abort", uuid)
    world.forced = {"h1"}
    wait_for(lambda: world.instance(uuid).task_id is None)
    row = world.instance(uuid)
    assert (row.vm_state, row.host, len(world.claims)) == (VM_ERROR, "h1", 1)


def test_a_delete_replaces_a_cancellation(make) -> None:
    world = make("h1")
    uuid = world.spawning()
    world.say("abort", uuid)
    wait_for(lambda: world.agents["h1"].named("destroy"))
    world.agents["h1"].silent = False
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)
    assert world.claims == {}


def migrating(world: Operated, silent: str, step: str) -> str:
    """A server of h1 whose cold migration to h2 waits for the word of one host."""
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.agents[silent].silent = True
    world.act(uuid, "migrate", administrator=True, operation_id="op-m")
    wait_for(lambda: (task := world.task(uuid)) is not None and task.step == step)
    wait_for(lambda: any(order.step == step for order in world.agents[silent].named("step")))
    return uuid


@pytest.mark.parametrize(("silent", "step"), [("h2", "prepare"), ("h1", "send")])
def test_a_move_that_is_aborted_before_its_switch_leaves_the_server_what_it_was(make, silent: str, step: str) -> None:
    world = make("h1", "h2")
    uuid = migrating(world, silent, step)
    world.agents[silent].silent = False
    world.say("abort", uuid)
    wait_for(lambda: world.instance(uuid).task_id is None)
    row = world.instance(uuid)
    assert (row.vm_state, row.task_state, row.host, row.fault) == (VM_ACTIVE, None, "h1", None)
    assert set(world.claims.values()) == {"h1"}
    assert uuid not in world.agents["h2"].domains
    assert "aborted by an operator" in world.history(uuid, "op-m").message


@pytest.mark.parametrize("asked", ["select", "call"], ids=["scheduler", "claim"])
@pytest.mark.parametrize("answer", ["found", "nothing"])
def test_a_step_that_asks_somebody_while_its_move_is_aborted_decides_nothing_any_more(
    make, asked: str, answer: str
) -> None:
    world = make("h1", "h2")
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    if answer == "nothing":
        world.full.add("h2")
        world.hosts = ["h1"] if asked == "select" else world.hosts
    ask = getattr(world, asked)

    def aborted_meanwhile(*args: Any, **kwargs: Any) -> Any:
        setattr(world, asked, ask)
        reply = ask(*args, **kwargs)
        world.say("abort", uuid)
        return reply

    setattr(world, asked, aborted_meanwhile)
    world.act(uuid, "migrate", administrator=True, operation_id="op-m")
    wait_for(lambda: world.instance(uuid).task_id is None)
    row, found = world.instance(uuid), world.history(uuid, "op-m")
    assert (row.vm_state, row.task_state, row.host) == (VM_ACTIVE, None, "h1")
    assert (found.result, found.message) == ("Error", "the move was aborted by an operator")
    assert set(world.claims.values()) == {"h1"}


def test_a_move_is_not_aborted_behind_its_switch(make) -> None:
    world = make("h1", "h2")
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.act(uuid, "migrate", administrator=True)
    world.wait_state(uuid, "resized")
    world.agents["h1"].silent = True
    world.act(uuid, "confirm_resize")
    wait_for(lambda: world.task(uuid) is not None)
    with pytest.raises(TaskRefused, match="tasks of kind confirm_resize cannot be aborted"):
        world.say("abort", uuid)


def test_a_parked_move_that_is_begun_again_goes_on_where_it_was(make) -> None:
    world = make("h1", "h2", settings=replace(SHORT, move_deadline_s_max=1, ending_s_max=1))
    uuid = migrating(world, "h2", "prepare")
    world.parked(uuid)
    assert world.instance(uuid).vm_state == VM_ERROR
    world.agents["h2"].silent = False
    world.say("retry", uuid)
    assert (world.instance(uuid).fault, world.instance(uuid).host) == (None, "h1")
    agent = world.agents["h2"]
    agent.finish("step", agent.named("step")[-1])
    world.wait_state(uuid, "resized")


@pytest.mark.parametrize("done_first", [False, True], ids=["aborted", "done first"])
def test_a_live_migration_is_aborted_at_its_source_whose_word_decides(make, done_first: bool) -> None:
    world = make("h1", "h2")
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    source = world.agents["h1"]
    source.silent = True
    world.act(uuid, "live_migrate", administrator=True, operation_id="op-m")
    wait_for(lambda: "migrate" in source.verbs)
    world.say("abort", uuid)
    wait_for(lambda: "abort" in source.verbs)
    order = next(order for order in reversed(source.named("step")) if order.step == "migrate")
    source.silent = False
    if not done_first:
        source.cannot.add("migrate")
    source.finish("migrate", order)
    wait_for(lambda: world.instance(uuid).task_id is None)
    row, found = world.instance(uuid), world.history(uuid, "op-m")
    assert (row.vm_state, row.task_state) == (VM_ACTIVE, None)
    assert (row.host, found.result) == (("h2", "Success") if done_first else ("h1", "Error"))
    if not done_first:
        assert found.message == "the move was aborted by an operator"


@pytest.mark.parametrize("post_copy", [False, True])
def test_a_live_migration_is_completed_at_its_source_and_by_post_copy_where_that_is_permitted(
    make, post_copy: bool
) -> None:
    world = make("h1", "h2", settings=replace(QUICK, permit_post_copy=post_copy))
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    with pytest.raises(TaskNotFound):
        world.say("complete", uuid)
    source = world.agents["h1"]
    source.silent = True
    world.act(uuid, "live_migrate", administrator=True, operation_id="op-m")
    wait_for(lambda: "migrate" in source.verbs)
    assert "complete" not in source.verbs
    world.say("complete", uuid)
    wait_for(lambda: "complete" in source.verbs)
    assert world.task(uuid).body.arguments.post_copy == post_copy
    source.silent = False
    source.finish("migrate", next(order for order in reversed(source.named("step")) if order.step == "migrate"))
    assert (world.wait_state(uuid, VM_ACTIVE).host, world.history(uuid, "op-m").result) == ("h2", "Success")


def test_only_a_live_migration_that_is_being_handed_over_is_completed_and_not_one_that_is_aborted(make) -> None:
    world = make("h1", "h2")
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.agents["h2"].silent = True
    world.act(uuid, "live_migrate", administrator=True)
    wait_for(lambda: "prepare" in world.agents["h2"].verbs)
    with pytest.raises(TaskRefused, match="while its source hands the server over"):
        world.say("complete", uuid)
    world.agents["h1"].silent = True
    world.agents["h2"].silent = False
    world.agents["h2"].finish("prepare", world.agents["h2"].named("step")[-1])
    wait_for(lambda: "migrate" in world.agents["h1"].verbs)
    world.say("abort", uuid)
    with pytest.raises(TaskRefused, match="while its source hands the server over"):
        world.say("complete", uuid, operation_id="op-y")
    other = world.build(uuid=str(uuid4()))
    wait_for(lambda: world.instance(other).task_id is not None)
    with pytest.raises(TaskRefused, match="only a live migration is completed"):
        world.say("complete", other)
