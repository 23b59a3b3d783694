"""A server's move to another cell: to its end, back, and across the death of every owner at every step."""

import dataclasses
import random
from collections.abc import Iterator
from functools import partial

import msgspec
import pytest

from tests.unit.conductor.cell.test_moves import Death
from tests.unit.conductor.cross_world import FAST, OPERATION, CrossWorld, RootDeath, Side
from tests.unit.conductor.ledger_world import wait_for
from tests.unit.conductor.root.fakes import context
from zcompute.bus.errors import DeadlineExceeded, Forbidden, InvalidRequest, NotOwner
from zcompute.conductor.root.cross_walk import BACK, FORWARD, STEP_SWITCH
from zcompute.conductor.tasks.moves.plans import PLANS
from zcompute.db.tables import CELLS
from zcompute.objects.cell import CellInfo
from zcompute.objects.errors import CellNotFound, CellRefused, InstanceBusy, InstanceNotFound, TaskNotFound, TaskRefused
from zcompute.objects.group import GroupRule
from zcompute.objects.instance import ARRIVING, LEAVING, LEFT, VM_ACTIVE, VM_DELETED, VM_ERROR, VM_STOPPED
from zcompute.objects.messages.crossing import CrossMoveGetRequest, CrossOrder
from zcompute.objects.messages.tasks import TaskListRequest, TaskOrder
from zcompute.objects.partition import partition_of
from zcompute.objects.task import TASK_EXPORT, TASK_IMPORT, TASK_PARKED

OTHER = "0e000000-0000-4000-8000-000000000002"


@pytest.fixture
def world() -> Iterator[CrossWorld]:
    world = CrossWorld()
    yield world
    world.close()


def assert_moved(world: CrossWorld, host: str = "k1") -> None:
    """The server is in c2 and nowhere else; nothing is left of it in c1."""
    assert world.ended().body.result == ""
    there, here = world.row("c2"), world.row("c1")
    assert (world.mapping.cell, world.mapping.generation, there.mapping_generation) == ("c2", 2, 2)
    assert (there.vm_state, there.task_state, there.task_id, there.crossing, there.host) == (
        VM_ACTIVE, None, None, "", host,
    )  # fmt: skip
    assert (here.vm_state, here.task_id, here.crossing) == (VM_DELETED, None, LEFT)
    assert (world.running_on(), world.domains_on(), world.claimed()) == ([host], [host], [host])
    assert (world.c1.world.owed, world.c2.world.owed) == ([], [])
    assert world.servers() == ["c2"]


def assert_stayed(world: CrossWorld) -> None:
    """The server is what it was, and c2 has nothing of it."""
    assert world.ended().body.result
    here, there = world.row("c1"), world.row("c2")
    assert (world.mapping.cell, world.mapping.generation) == ("c1", 1)
    assert (here.vm_state, here.task_state, here.task_id, here.crossing, here.host, here.fault) == (
        VM_ACTIVE, None, None, "", "h1", None,
    )  # fmt: skip
    assert there is None or (there.vm_state, there.task_id, there.crossing) == (VM_DELETED, None, LEFT)
    assert (world.running_on(), world.domains_on(), world.claimed()) == (["h1"], ["h1"], ["h1"])
    assert (world.c1.world.owed, world.c2.world.owed) == ([], [])
    assert world.servers() == ["c1"]


def test_a_server_moves_with_all_that_it_is_and_both_cells_remember_it(world: CrossWorld) -> None:
    before = world.row("c1")
    world.ask()
    assert_moved(world)
    after = world.row("c2")
    for name in ("name", "project_id", "user_id", "flavor", "spec", "created_at_us", "launched_at_us"):
        assert getattr(after, name) == getattr(before, name), name
    for cell in ("c1", "c2"):
        found = world.history(cell)
        assert (found.action, found.result) == ("migrate", "Success")
    assert world.c1.world.agents["h1"].verbs == ["send"]
    assert world.c2.world.agents["k1"].verbs == ["prepare", "activate"]
    send = next(order for order in world.c1.orders if order.word == "send")
    assert (send.host, list(send.answers)) == ("k1", ["address"])  # what the destination's prepare said


def test_a_stopped_server_is_stopped_in_the_other_cell(world: CrossWorld) -> None:
    world.c1.world.act(world.uuid, "stop")
    world.c1.world.wait_state(world.uuid, VM_STOPPED)
    world.ask()
    assert world.ended().body.result == ""
    assert world.row("c2").vm_state == VM_STOPPED


def test_it_comes_back_under_higher_numbers_than_the_cell_has_used_for_it(world: CrossWorld) -> None:
    world.ask()
    world.ended()
    former = world.row("c1")
    world.ask("c1", OTHER)
    assert world.ended().body.result == ""
    back = world.row("c1")
    assert back.generation > former.generation
    assert back.command_generation > former.command_generation
    assert (back.mapping_generation, world.mapping.cell, world.servers()) == (3, "c1", ["c1"])
    assert world.claimed() == [back.host]


def test_nothing_else_is_done_with_it_meanwhile(world: CrossWorld) -> None:
    world.c2.away = True
    world.ask()
    wait_for(lambda: world.move.step == "prepare")
    assert world.row("c1").crossing == LEAVING
    with pytest.raises(InstanceBusy):
        world.c1.world.delete(world.uuid, administrator=True)
    for action in ("stop", "lock", "migrate"):
        with pytest.raises(InstanceBusy):
            world.c1.world.act(world.uuid, action, administrator=True)
    with pytest.raises(InstanceBusy, match="being moved to cell c2 already"):
        world.ask(operation_id=OTHER)
    assert world.ask().step == "prepare"  # the same operation: its move, once
    world.c2.away = False
    assert_moved(world)
    assert world.ask().state == "ended"
    assert world.c1.words.count("hold") == 1


def test_the_copy_that_comes_is_no_server_before_the_switch(world: CrossWorld) -> None:
    world.c1.world.agents["h1"].silent = True
    world.ask()
    wait_for(lambda: world.c1.world.agents["h1"].verbs == ["send"])
    assert (world.row("c2").crossing, world.row("c2").mapping_generation) == (ARRIVING, 2)
    assert (world.servers(), world.mapping.cell) == (["c1"], "c1")
    with pytest.raises(InstanceBusy):
        world.c2.world.delete(world.uuid, administrator=True)
    agent = world.c1.world.agents["h1"]
    agent.silent = False
    agent.finish("send", agent.named("step")[-1])
    assert_moved(world)


def test_the_source_is_stopped_only_when_no_list_can_miss_the_server_on_both_sides() -> None:
    world = CrossWorld(settings=dataclasses.replace(FAST, lists_s_max=10.0))
    try:
        world.ask()
        wait_for(lambda: world.move.step == "send")
        assert world.c1.words == ["hold"]
        world.ledger.now += 10_000_000
        for run in world.moves._runs.values():
            run.wake.set()
        assert_moved(world)
    finally:
        world.close()


@pytest.mark.parametrize("wrong", ["no_room", "cannot_prepare", "cannot_send", "not_active", "moved", "deleted_cell"])
def test_what_cannot_be_done_leaves_it_where_it_was(world: CrossWorld, wrong: str) -> None:
    if wrong == "no_room":
        world.c2.world.full |= {"k1", "k2"}
    elif wrong == "cannot_prepare":
        for agent in world.c2.world.agents.values():
            agent.cannot.add("prepare")
    elif wrong == "cannot_send":
        world.c1.world.agents["h1"].cannot.add("send")
    elif wrong == "not_active":
        world.c1.world.act(world.uuid, "pause")
        world.c1.world.wait_state(world.uuid, "paused")
    elif wrong == "deleted_cell":
        world.c2.away = True
        world.deleted.add("c2")
    elif wrong == "moved":
        world.c1.world.put(world.uuid, mapping_generation=5)
    world.ask()
    result = world.ended().body.result
    assert result
    if wrong == "not_active":
        assert "while it is in vm_state paused" in result
        world.c1.world.act(world.uuid, "unpause")
        world.c1.world.wait_state(world.uuid, VM_ACTIVE)
    assert_stayed(world)
    world.deleted.clear()
    world.c2.away = False
    if wrong in ("cannot_send", "no_room"):  # and can be tried anew
        world.c1.world.agents["h1"].cannot.clear()
        world.c2.world.full.clear()
        world.ask(operation_id=OTHER)
        wait_for(lambda: world.move.operation_id == OTHER and world.move.state == "ended")
        assert_moved(world)


def test_a_destination_that_fails_gives_way_to_the_next_within_the_target_cell(world: CrossWorld) -> None:
    world.c2.world.agents["k1"].cannot.add("prepare")
    world.ask()
    assert_moved(world, "k2")


@pytest.mark.parametrize("word", ["hold", "prepare", "send", "activate", "leave"])
def test_a_word_whose_answer_is_lost_is_said_again_and_done_once(world: CrossWorld, word: str) -> None:
    world.c1.lost.add(word)
    world.c2.lost.add(word)
    world.ask()
    assert_moved(world)
    assert world.c1.world.agents["h1"].verbs == ["send"]
    assert world.c2.world.agents["k1"].verbs == ["prepare", "activate"]


@pytest.mark.parametrize("cell", ["c1", "c2"])
@pytest.mark.parametrize("step", FORWARD)
def test_a_cell_that_is_away_at_a_step_is_waited_for(world: CrossWorld, cell: str, step: str) -> None:
    side = world.side(cell)
    call = side.call

    def away_from(method, order, *, timeout_ms):
        if world.move.step == step and not away:
            away.append(True)
            side.away = True
        return call(method, order, timeout_ms=timeout_ms)

    away: list[bool] = []
    side.call = away_from
    world.ask()
    wait_for(lambda: bool(away) or world.move.state == "ended")
    side.away = False
    assert_moved(world)


@pytest.mark.parametrize("cell", ["c1", "c2"])
def test_at_the_deadline_a_move_is_taken_back_as_soon_as_both_answer(world: CrossWorld, cell: str) -> None:
    world.c1.world.agents["h1"].silent = True
    world.ask()
    wait_for(lambda: world.c1.world.agents["h1"].verbs == ["send"])
    world.side(cell).away = True
    world.ledger.now = world.move.deadline_at_us
    wait_for(lambda: world.move.step in BACK)
    world.c1.world.agents["h1"].silent = False
    wait_for(lambda: world.move.step == ("reopen" if cell == "c1" else "discard"))
    assert world.move.state == "running"
    world.side(cell).away = False
    assert_stayed(world)
    assert "before its deadline, in step send" in world.move.body.result


@pytest.mark.parametrize("wrong", ["lost", "away"])
def test_a_target_that_is_lost_or_away_right_before_the_switch_gets_no_server(world: CrossWorld, wrong: str) -> None:
    call = world.c2.call

    def at_switch(method, order, *, timeout_ms):
        if world.move.step == STEP_SWITCH and wrong == "away":
            world.ledger.now = world.move.deadline_at_us
            raise DeadlineExceeded("silence")
        if world.move.step == STEP_SWITCH:
            world.c2.world.forced.add("k1")
            world.c2.world.commands.detach("k1", world.c2.world.agents["k1"])
            world.c2.world.commands.force_down("k1", True)
        return call(method, order, timeout_ms=timeout_ms)

    world.c2.call = at_switch
    world.ask()
    world.ended()
    world.c2.world.agents["k1"].awaited.clear()  # what a lost host still has goes when it is back
    assert_stayed(world)
    assert ("k1 was forced down" if wrong == "lost" else "in step switch") in world.move.body.result


def test_behind_the_switch_no_deadline_takes_it_back(world: CrossWorld) -> None:
    call = world.c2.call

    def away_at_activate(method, order, *, timeout_ms):
        world.c2.away = world.c2.away or (order.word == "activate" and not gone)
        return call(method, order, timeout_ms=timeout_ms)

    gone: list[bool] = []
    world.c2.call = away_at_activate
    world.ask()
    wait_for(lambda: world.move.step == "activate")
    world.ledger.now = world.move.deadline_at_us + 1
    assert (world.mapping.cell, world.running_on()) == ("c2", [])
    gone.append(True)
    world.c2.away = False
    assert_moved(world)


def test_a_word_that_comes_late_changes_nothing(world: CrossWorld) -> None:
    world.c2.world.full |= {"k1", "k2"}
    world.ask()
    assert_stayed(world)
    for side in (world.c1, world.c2):
        before = world.row(side.name)
        for order in list(side.orders):
            side.crossing.cross(order, side.world.context())
        assert world.row(side.name) == before
    assert_stayed(world)


def test_a_first_word_that_comes_behind_the_last_one_begins_nothing(world: CrossWorld) -> None:
    world.c1.world.put(world.uuid, vm_state="paused")
    world.ask()
    world.ended()
    world.c1.world.put(world.uuid, vm_state=VM_ACTIVE)
    hold = next(order for order in world.c1.orders if order.word == "hold")
    assert world.c1.crossing.cross(hold, world.c1.world.context()).state == "kept"
    assert world.row("c1").task_id is None


def test_a_host_that_is_lost_while_it_takes_the_server_ends_the_move_in_error_there(world: CrossWorld) -> None:
    agent = world.c2.world.agents["k1"]
    agent.cannot.add("activate")
    world.ask()
    wait_for(lambda: agent.verbs.count("activate") > 1)
    world.c2.world.forced.add("k1")
    world.c2.world.commands.detach("k1", agent)
    world.c2.world.commands.force_down("k1", True)
    assert world.ended().body.result == "host k1 was forced down while it took the instance"
    assert (world.row("c2").vm_state, world.row("c2").crossing, world.servers()) == ("error", "", ["c2"])
    assert world.domains_on().count("h1") == 0


def test_a_side_that_waits_for_the_root_takes_no_runner(world: CrossWorld) -> None:
    world.c2.away = True
    world.ask()
    wait_for(lambda: world.move.step == "prepare")
    wait_for(lambda: world.c1.world.engine.counts() == (1, 0, 0))
    world.c2.away = False
    assert_moved(world)


@pytest.mark.parametrize("on", [True, False])
def test_a_side_that_the_root_says_nothing_to_parks_and_its_word_carries_it_on(world: CrossWorld, on: bool) -> None:
    world.c2.world.agents["k1"].silent = True
    world.ask()
    agent = world.c2.world.agents["k1"]
    wait_for(lambda: agent.verbs == ["prepare"])
    world.moves.stop()  # the root is away
    agent.silent = False
    agent.finish("prepare", agent.named("step")[-1])
    wait_for(lambda: world.c2.world.task(world.uuid).step == "prepared")
    for side in (world.c1, world.c2):
        engine = side.world.engine
        wait_for(lambda engine=engine: engine.counts() == (1, 0, 0))
        task = side.world.task(world.uuid)
        late = msgspec.structs.replace(task, deadline_at_us=1)
        engine._runs[world.uuid].task = late
        engine._queue_up(engine._runs[world.uuid])
        wait_for(lambda side=side: side.world.task(world.uuid).state == TASK_PARKED)
        assert world.row(side.name).vm_state == VM_ERROR
    if not on:
        world.ledger.now = world.move.deadline_at_us
    world.new_owner()
    if on:
        assert_moved(world)
    else:
        assert_stayed(world)


@pytest.mark.parametrize(("policy", "moves"), [("affinity", False), ("soft-affinity", False), ("anti-affinity", True)])
def test_members_of_a_group_that_stays_together_stay_in_its_cell(world: CrossWorld, policy: str, moves: bool) -> None:
    spec = world.row("c1").spec
    rule = GroupRule(uuid="00000000-0000-4000-8000-000000000009", policy=policy)
    world.c1.world.put(world.uuid, spec=msgspec.structs.replace(spec, group=rule))
    world.ask()
    if moves:
        assert_moved(world)
        return
    assert "whose servers stay in one cell" in world.ended().body.result
    assert_stayed(world)


@pytest.mark.parametrize("wrong", [{"project_id": "other"}, {"uuid": OTHER}])
def test_a_source_that_speaks_of_another_server_moves_nothing(world: CrossWorld, wrong: dict[str, str]) -> None:
    call = world.c1.call

    def lies(method, order, *, timeout_ms):
        reply = call(method, order, timeout_ms=timeout_ms)
        if reply.instance is not None:
            reply.instance = msgspec.structs.replace(reply.instance, **wrong)
        return reply

    world.c1.call = lies
    world.ask()
    assert "speaks of another server" in world.ended().body.result
    assert_stayed(world)


def test_orders_that_make_no_sense_are_refused_before_any_effect(world: CrossWorld) -> None:
    order = CrossOrder(uuid=world.uuid, project_id="demo", operation_id=OPERATION, generation=2, word="hold")
    stranger = msgspec.structs.replace(world.row("c1"), project_id="other")
    before = world.row("c1")
    for changes in (
        {"word": "fly"},
        {"generation": 1},
        {"operation_id": ""},
        {"word": "prepare"},
        {"word": "prepare", "instance": stranger},
        {"word": "send"},
        {"word": "leave"},
    ):
        with pytest.raises(InvalidRequest):
            world.c1.crossing.cross(msgspec.structs.replace(order, **changes), world.c1.world.context())
    with pytest.raises(Forbidden):
        world.c1.crossing.cross(order, world.c1.world.context(cell="c2"))
    with pytest.raises(InstanceNotFound):
        world.c2.crossing.cross(order, world.c2.world.context())
    there = msgspec.structs.replace(order, word="prepare", instance=before)
    with pytest.raises(InstanceBusy, match="it is in the cell"):
        world.c1.crossing.cross(there, world.c1.world.context())
    assert (world.row("c1"), world.row("c2")) == (before, None)


def test_refused_at_once_without_a_trace(world: CrossWorld) -> None:
    with pytest.raises(CellRefused, match="is in cell c1"):
        world.ask("c1")
    with pytest.raises(CellNotFound):
        world.ask("c9")
    with pytest.raises(InvalidRequest):
        world.ask(operation_id="op")
    world.ledger.rows[CELLS.name, ("c2",)] = CellInfo(name="c2", disabled=True)
    with pytest.raises(CellRefused, match="takes no servers"):
        world.ask()
    world.uuid = "00000000-0000-4000-8000-00000000ffff"
    with pytest.raises(InstanceNotFound):
        world.ask()
    with pytest.raises(InstanceNotFound):
        world.asks.moved(CrossMoveGetRequest(uuid=world.uuid), context(role="operator"))


def test_operators_see_it_among_the_tasks_while_it_goes_on(world: CrossWorld) -> None:
    world.c2.away = True
    world.ask()
    wait_for(lambda: world.move.step == "prepare")
    for found in (None, world.uuid, OPERATION):
        (task,) = world.asks.tasks(TaskListRequest(found=found), context(role="operator")).tasks
        assert (task.kind, task.step, task.id, task.body.destination) == ("cross_move", "prepare", OPERATION, "c2")
    world.c2.away = False
    assert_moved(world)
    assert world.asks.tasks(TaskListRequest(), context(role="operator")).tasks == []


def test_an_operator_takes_a_move_back_before_its_switch_only(world: CrossWorld) -> None:
    operator = context(role="operator")
    order = TaskOrder(instance_uuid=world.uuid, task_id=OPERATION, operation_id=OTHER)
    with pytest.raises(TaskNotFound):
        world.asks.abort(order, operator)
    world.c1.world.agents["h1"].silent = True
    world.ask()
    wait_for(lambda: world.c1.world.agents["h1"].verbs == ["send"])
    with pytest.raises(TaskRefused, match="never parked"):
        world.asks.retry(order, operator)
    world.asks.abort(order, operator)
    world.c1.world.agents["h1"].silent = False
    assert_stayed(world)
    assert "aborted by an operator" in world.move.body.result
    world.c2.world.agents["k1"].cannot.add("activate")
    world.ask(operation_id=OTHER)
    wait_for(lambda: world.move.step == "activate")
    with pytest.raises(TaskRefused, match="goes its way"):
        world.asks.abort(TaskOrder(instance_uuid=world.uuid, task_id=OTHER, operation_id="op"), operator)
    world.c2.world.agents["k1"].cannot.clear()
    assert_moved(world)


# -- the death of an owner ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", FORWARD)
def test_a_new_owner_at_the_root_carries_on(world: CrossWorld, step: str, before: bool) -> None:
    death = RootDeath(world, step, before)
    world.ask()
    wait_for(lambda: death.came)
    world.moves.stop()
    world.new_owner()
    assert_moved(world)
    assert world.c2.world.agents["k1"].verbs == ["prepare", "activate"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", [*FORWARD[: FORWARD.index(STEP_SWITCH)], *BACK])
def test_a_new_owner_at_the_root_carries_on_back(world: CrossWorld, step: str, before: bool) -> None:
    world.c1.world.agents["h1"].cannot.add("send")
    death = RootDeath(world, step, before)
    world.ask()
    wait_for(lambda: death.came)
    world.moves.stop()
    world.new_owner()
    assert_stayed(world)


def regained(side: Side, uuid: str) -> None:
    """Another conductor of the cell takes over what it has under way."""
    task = side.world.task(uuid)
    side.world.engine.lose([partition_of(uuid)])
    if task is not None:
        side.world.engine.gained([(side.world.instance(uuid), task)])


SIDES = [("c1", TASK_EXPORT), ("c2", TASK_IMPORT)]
STEPS = [(cell, kind, step) for cell, kind in SIDES for step in PLANS[kind].steps]
BACK_STEPS = [(cell, kind, step) for cell, kind in SIDES for step in PLANS[kind].all_steps
              if step not in PLANS[kind].steps]  # fmt: skip


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("cell", "kind", "step"), STEPS)
def test_a_new_owner_in_a_cell_carries_on(world: CrossWorld, cell: str, kind: str, step: str, before: bool) -> None:
    side = world.side(cell)
    death = Death(side.world, kind, step, before)
    world.ask()
    wait_for(lambda: death.came)
    death.over()
    regained(side, world.uuid)
    assert_moved(world)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("cell", "kind", "step"), BACK_STEPS)
def test_a_new_owner_in_a_cell_carries_on_back(
    world: CrossWorld, cell: str, kind: str, step: str, before: bool
) -> None:
    side = world.side(cell)
    world.c1.world.agents["h1"].cannot.add("send")
    death = Death(side.world, kind, step, before)
    world.ask()
    wait_for(lambda: death.came)
    death.over()
    regained(side, world.uuid)
    assert_stayed(world)


# -- all of it at once --------------------------------------------------------------------------------------------


class Weather:
    """Calls that are lost before or after they are done, cells that are away, owners that change, hosts that cannot:
    by a seed. At every call: at most one copy runs, and the cell that the mapping names has the server."""

    def __init__(self, world: CrossWorld, seed: int) -> None:
        self.world, self.random = world, random.Random(seed)
        self.calls_left = 60
        self.calls = {side.name: side.call for side in (world.c1, world.c2)}
        for side in (world.c1, world.c2):
            side.call = partial(self.call, side.name)
            for agent in side.world.agents.values():
                if self.random.random() < 0.25:
                    agent.cannot.add(self.random.choice(["prepare", "send"]))

    def call(self, name: str, method, order, *, timeout_ms: int):
        self.holds()
        self.calls_left -= 1
        chance = self.random.random() if self.calls_left > 0 else 1.0
        side = self.world.side(name)
        if chance < 0.2:
            raise DeadlineExceeded("lost on its way")
        if chance < 0.3:
            regained(side, self.world.uuid)
        if 0.3 < chance < 0.32:
            self.world.ledger.now = self.world.move.deadline_at_us
        reply = self.calls[name](method, order, timeout_ms=timeout_ms)
        if 0.3 < chance < 0.5:
            raise DeadlineExceeded("the answer is lost")
        if 0.5 < chance < 0.6:
            raise NotOwner("another owns the project", partition=0, map_version=2)
        self.holds()
        return reply

    def holds(self) -> None:
        world = self.world
        assert len(world.running_on()) <= 1, world.running_on()
        row = world.row(world.mapping.cell)
        assert (row.vm_state, row.mapping_generation) != (VM_DELETED, world.mapping.generation)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_lost_and_whoever_changes_one_copy_is_left(world: CrossWorld, seed: int) -> None:
    Weather(world, seed)
    world.ask()

    def ended() -> bool:
        if world.move.state != "ended" and not world.moves._runs:
            world.new_owner()
        return world.move.state == "ended"

    wait_for(ended)
    if world.move.body.result:
        assert_stayed(world)
    else:
        assert_moved(world, world.row("c2").host)
