"""Moves of a server through the engine: each kind to its end, back, and across the death of its owner at every step."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tests.unit.conductor.cell.cell_world import QUICK, CellWorld
from tests.unit.conductor.ledger_world import flavor, wait_for
from tests.unit.conductor.tasks.samples import build_request
from zcompute.conductor.change import Ticket
from zcompute.conductor.tasks.decision import make_fault
from zcompute.conductor.tasks.expiry import expire
from zcompute.conductor.tasks.history import ATTEMPTS_TOLD_MAX, step_under_way
from zcompute.conductor.tasks.moves.plans import (
    PLANS,
    STEP_CLAIM,
    STEP_PREPARE,
    STEP_SCHEDULE,
    STEP_SEND,
    STEP_SWITCH,
)
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, INSTANCE_ACTIONS, TASKS
from zcompute.objects.command import StepArguments
from zcompute.objects.errors import ActionInvalid, InstanceBusy
from zcompute.objects.history import InstanceActionEvent
from zcompute.objects.instance import (
    VM_ACTIVE,
    VM_DELETED,
    VM_ERROR,
    VM_RESIZED,
    VM_SHELVED,
    VM_SHELVED_OFFLOADED,
    VM_STOPPED,
)
from zcompute.objects.partition import partition_of
from zcompute.objects.server_list import instance_of
from zcompute.objects.task import CROSSING_KINDS, TASK_PARKED, Task, TaskBody

IMAGE = "9b2b6f9e-0000-4000-8000-000000000001"
BIG = flavor("2", vcpus=4, memory_mb=4096)
WITHIN = {kind: plan for kind, plan in PLANS.items() if kind not in CROSSING_KINDS}  # the cell


@pytest.fixture
def world() -> Iterator[CellWorld]:
    world = CellWorld("h1", "h2", "h3")
    yield world
    world.close()


@pytest.fixture
def one(world: CellWorld) -> str:
    """A server that runs on h1."""
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    return uuid


def move(world: CellWorld, uuid: str, action: str, host: str = "", operation_id: str = "op-m") -> None:
    flavor = None
    if action == "resize":
        flavor = BIG
        world.root.know(world.instance(uuid))
    image = IMAGE if action.startswith("shelve") else ""
    arguments = StepArguments(peer_host=host, flavor=flavor, image_ref=image)
    world.act(uuid, action.removesuffix("_here"), administrator=True, operation_id=operation_id, arguments=arguments)


def world_for(kind: str) -> CellWorld:
    """One whose settings let this kind of move begin."""
    stays = kind in ("shelve_here", "shelve_offload", "unshelve_here")
    return CellWorld("h1", "h2", "h3", settings=replace(QUICK, shelved_offload_time_s=-1 if stays else 0))


def make_ready(world: CellWorld, uuid: str, kind: str) -> None:
    """The active server becomes one that this kind of move can begin with."""
    if kind in ("confirm_resize", "revert_resize"):
        migrated(world, uuid)
    if kind == "evacuate":
        force_down(world, "h1")
    if kind in ("shelve_offload", "unshelve", "unshelve_here"):
        move(world, uuid, "shelve", operation_id="op-shelve")
        world.wait_state(uuid, VM_SHELVED_OFFLOADED if kind == "unshelve" else VM_SHELVED)


def ready_for(kind: str) -> tuple[CellWorld, str]:
    """A world with a server on h1 that this kind of move can begin with."""
    world = world_for(kind)
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    make_ready(world, uuid, kind)
    return world, uuid


def migrated(world: CellWorld, uuid: str) -> None:
    """A cold migration that waits to be confirmed: on h2, its copy on h1."""
    move(world, uuid, "migrate", operation_id="op-migrate")
    world.wait_state(uuid, VM_RESIZED)


def ended(world: CellWorld, uuid: str, operation_id: str = "op-m"):
    def over():
        row = world.database.row(INSTANCE_ACTIONS, (uuid, operation_id))
        return row if row is not None and row.finished_at_us else None

    wait_for(over)
    return over()


def where(world: CellWorld, uuid: str) -> tuple[list[str], list[str]]:
    """The hosts that have the domain, and those that run it."""
    agents = world.agents.values()
    return [a.host for a in agents if uuid in a.domains], [a.host for a in agents if uuid in a.running]


def held(world: CellWorld) -> list[str]:
    return sorted(world.claims.values())


def force_down(world: CellWorld, host: str) -> None:
    world.forced.add(host)
    world.commands.detach(host, world.agents[host])
    world.commands.force_down(host, True)


def test_a_cold_migration_leaves_a_stopped_copy_and_both_claims_until_it_is_confirmed(
    world: CellWorld, one: str
) -> None:
    before = world.instance(one)
    migrated(world, one)
    row = world.instance(one)
    assert (row.host, row.generation, row.move.former_host) == ("h2", before.generation + 1, "h1")
    assert row.move.former_claim == before.claim != row.claim
    assert where(world, one) == (["h1", "h2"], ["h2"])
    assert held(world) == ["h1", "h2"]
    grants = [order.reporter_generation for order in world.agents["h2"].named("step")]
    assert grants[-1] == row.generation
    move(world, one, "confirm_resize")
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.host, row.move, where(world, one), held(world)) == ("h2", None, (["h2"], ["h2"]), ["h2"])


def test_a_revert_takes_the_copy_back_and_destroys_the_other(world: CellWorld, one: str) -> None:
    before = world.instance(one)
    migrated(world, one)
    move(world, one, "revert_resize")
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.host, row.claim, row.move) == ("h1", before.claim, None)
    assert row.generation == before.generation + 2
    assert where(world, one) == (["h1"], ["h1"])
    assert held(world) == ["h1"]


def test_a_stopped_server_is_stopped_after_its_move(world: CellWorld, one: str) -> None:
    world.act(one, "stop")
    world.wait_state(one, VM_STOPPED)
    migrated(world, one)
    move(world, one, "confirm_resize")
    assert world.wait_state(one, VM_STOPPED).host == "h2"


def test_a_live_migration_hands_over_grants_the_destination_and_releases_the_source(world: CellWorld, one: str) -> None:
    move(world, one, "live_migrate", "h3")
    ended(world, one)
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.host, row.move) == ("h3", None)
    assert where(world, one) == (["h3"], ["h3"])
    assert held(world) == ["h3"]
    assert world.agents["h3"].named("adopt")[-1].reporter_generation == row.generation


def test_an_evacuation_builds_it_elsewhere_once_its_host_is_forced_down(world: CellWorld, one: str) -> None:
    with pytest.raises(ActionInvalid, match="still in use"):
        move(world, one, "evacuate")
    force_down(world, "h1")
    move(world, one, "evacuate", operation_id="op-e")
    ended(world, one, "op-e")
    row = world.wait_state(one, VM_ACTIVE)
    assert row.host == "h2"
    assert "h2" in where(world, one)[1]
    assert held(world) == ["h2"]


def test_an_evacuation_is_given_up_when_its_host_was_let_work_again_meanwhile(world: CellWorld, one: str) -> None:
    force_down(world, "h1")
    select = world.select

    def let_work_again(request, **limits):
        world.forced.discard("h1")
        return select(request, **limits)

    world.select = let_work_again
    move(world, one, "evacuate")
    found, row = ended(world, one), world.instance(one)
    assert (found.result, found.message) == ("Error", "host h1 is not forced down any more")
    assert (row.host, row.vm_state, where(world, one), held(world)) == ("h1", VM_ACTIVE, (["h1"], ["h1"]), ["h1"])


def test_a_server_in_error_on_a_lost_host_is_active_after_its_evacuation(world: CellWorld, one: str) -> None:
    world.put(one, vm_state=VM_ERROR)
    force_down(world, "h1")
    move(world, one, "evacuate")
    assert world.wait_state(one, VM_ACTIVE).host == "h2"


def test_a_stopped_server_is_stopped_after_its_evacuation(world: CellWorld, one: str) -> None:
    world.act(one, "stop")
    world.wait_state(one, VM_STOPPED)
    force_down(world, "h1")
    move(world, one, "evacuate")
    ended(world, one)
    assert world.instance(one).vm_state == VM_STOPPED
    assert world.agents["h2"].verbs == ["stop"]


@pytest.mark.parametrize("action", ["migrate", "live_migrate"])
def test_without_room_anywhere_nothing_changes_and_the_history_says_why(
    world: CellWorld, one: str, action: str
) -> None:
    before = world.instance(one)
    world.full |= {"h2", "h3"}
    move(world, one, action)
    found = ended(world, one)
    row = world.instance(one)
    assert (found.result, found.message[:26]) == ("Error", "No valid host was found. R")
    assert (row.host, row.claim, row.vm_state, row.task_state, row.fault) == ("h1", before.claim, VM_ACTIVE, None, None)
    assert where(world, one) == (["h1"], ["h1"])
    assert held(world) == ["h1"]


@pytest.mark.parametrize("wrong", ["full", "old", "unknown"])
@pytest.mark.parametrize("action", ["migrate", "live_migrate"])
def test_a_named_destination_that_cannot_take_it_leaves_the_server_where_and_how_it_is(
    world: CellWorld, one: str, action: str, wrong: str
) -> None:
    before = world.instance(one)
    world.agents["h2"].old = wrong == "old"
    world.full |= {"nowhere"} | ({"h2"} if wrong == "full" else set())
    move(world, one, action, "nowhere" if wrong == "unknown" else "h2")
    found, row = ended(world, one), world.instance(one)
    assert found.result == "Error"
    assert found.message.startswith("No valid host was found. ")
    assert ("of an older release: it knows no step" in found.message) == (wrong == "old")
    assert (row.host, row.claim, row.generation, row.move) == ("h1", before.claim, before.generation, None)
    assert (row.vm_state, row.task_state, row.fault) == (VM_ACTIVE, None, None)
    assert (where(world, one), held(world)) == ((["h1"], ["h1"]), ["h1"])


def test_a_destination_without_room_gives_way_to_the_next(world: CellWorld, one: str) -> None:
    world.full.add("h2")
    migrated(world, one)
    assert world.instance(one).host == "h3"


@pytest.mark.parametrize("wrong", ["broken", "old", "unknown"])
def test_a_destination_that_cannot_be_prepared_is_cleaned_and_the_next_is_tried(
    world: CellWorld, one: str, wrong: str
) -> None:
    world.agents["h2"].cannot.add("prepare")
    world.agents["h2"].old = wrong == "old"
    world.agents["h2"].unknown |= {"prepare"} if wrong == "unknown" else set()
    migrated(world, one)
    assert world.instance(one).host == "h3"
    assert held(world) == ["h1", "h3"]
    assert len(world.agents["h2"].named("destroy")) == 1


def test_a_destination_that_is_not_linked_was_told_nothing_and_the_next_is_tried(world: CellWorld, one: str) -> None:
    world.commands.detach("h2", world.agents["h2"])
    migrated(world, one)
    assert world.instance(one).host == "h3"
    assert world.agents["h2"].commands == []
    assert held(world) == ["h1", "h3"]


@pytest.mark.parametrize("how", ["mute", "not linked", "forced down", "in quarantine"])
def test_a_destination_that_does_not_answer_gives_way_before_an_evacuation_is_switched(
    world: CellWorld, one: str, how: str
) -> None:
    force_down(world, "h1")
    there = world.agents["h2"]
    if how == "mute":
        there.mute = True
    elif how == "not linked":
        world.commands.detach("h2", there)
    elif how == "in quarantine":
        world.forced.add("h2")
        world.commands.force_down("h2", True)
    else:
        force_down(world, "h2")
    move(world, one, "evacuate")
    ended(world, one)
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.host, where(world, one)[0], held(world)) == ("h3", ["h1", "h3"], ["h3"])
    assert (there.named("spawn"), there.named("step")) == ([], [])


def test_an_evacuation_without_any_destination_that_answers_changes_nothing(world: CellWorld, one: str) -> None:
    before = world.instance(one)
    force_down(world, "h1")
    world.agents["h2"].mute = world.agents["h3"].mute = True
    move(world, one, "evacuate")
    found, row = ended(world, one), world.instance(one)
    assert (found.result, found.message[:25]) == ("Error", "No valid host was found. ")
    assert "h2: host h2 does not answer" in found.message
    assert (row.host, row.claim, row.vm_state, row.generation) == ("h1", before.claim, VM_ACTIVE, before.generation)
    assert held(world) == ["h1"]


@pytest.mark.parametrize(
    ("how", "news", "linked"),
    [
        (how, news, linked)
        for how in ("silent", "mute")
        for news in (True, False)
        for linked in (True, False)
        if how == "mute" or news or not linked  # the row of one that has taken the command is not looked at till then
    ],
)
def test_a_destination_of_an_evacuation_that_hangs_and_is_forced_down_ends_it_and_another_follows(
    world: CellWorld, one: str, how: str, news: bool, linked: bool
) -> None:
    """``news``: the owner hears of it, else it finds it in the host's row."""
    force_down(world, "h1")
    there = world.agents["h2"]
    there.silent = True
    move(world, one, "evacuate")
    wait_for(lambda: there.named("spawn"))
    there.mute = how == "mute"
    world.forced.add("h2")
    if not linked:
        world.commands.detach("h2", there)
    if news:
        world.commands.force_down("h2", True)
    found = ended(world, one)
    row = world.wait_state(one, VM_ERROR)
    assert (found.result, found.message) == ("Error", "host h2 was forced down while it took the instance")
    assert (row.host, row.task_id, row.fault.message, held(world)) == ("h2", None, found.message, ["h2"])
    move(world, one, "evacuate", operation_id="op-again")
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.host, row.fault, held(world)) == ("h3", None, ["h3"])


def test_an_evacuation_that_its_destination_never_ends_is_parked_with_its_name(world: CellWorld, one: str) -> None:
    world.put(one, vm_state=VM_ERROR, fault=make_fault("an old grief", 1))
    force_down(world, "h1")
    world.agents["h2"].silent = True
    move(world, one, "evacuate")
    wait_for(lambda: world.agents["h2"].named("spawn"))
    pass_deadline(world, one)
    wait_for(lambda: (task := world.task(one)) is not None and task.state == TASK_PARKED)
    message = "evacuate did not end before its deadline, in step spawn: no answer from h2"
    assert world.instance(one).fault.message == message
    force_down(world, "h2")
    assert ended(world, one).result == "Error"
    assert world.wait_state(one, VM_ERROR).task_id is None


@pytest.mark.parametrize(("kind", "step"), [(kind, step) for kind, plan in PLANS.items() for step in plan.all_steps])
def test_at_its_deadline_a_move_that_has_begun_nothing_goes_back_and_any_other_is_parked(kind: str, step: str) -> None:
    instance = msgspec.structs.replace(instance_of(build_request()), vm_state=VM_ACTIVE, host="h1")
    task = Task(id="t", instance_uuid=instance.uuid, kind=kind, step=step, body=TaskBody(former_vm_state=VM_ACTIVE))
    decision = expire(instance, task, "too late", 1000, 60)
    if step in ("schedule", "claim", "reach", "check_fence"):
        assert (decision.task.step, decision.task.body.result) == ("rolled_back", "too late")
        assert (decision.task.deadline_at_us, decision.instance.vm_state) == (60_001_000, VM_ACTIVE)
    else:
        assert (decision.task.step, decision.task.state) == (step, TASK_PARKED)
        assert (decision.instance.vm_state, decision.instance.fault.message) == (VM_ERROR, "too late")


@pytest.mark.parametrize("linked", [True, False], ids=["linked", "unlinked"])
def test_a_copy_on_a_host_that_is_forced_down_is_waited_for_no_longer(world: CellWorld, one: str, linked: bool) -> None:
    """A linked one is told to destroy it first: that is what a host in quarantine is for."""
    migrated(world, one)
    world.agents["h1"].silent = True
    move(world, one, "confirm_resize")
    wait_for(lambda: world.agents["h1"].named("destroy") != [])
    world.forced.add("h1")
    if not linked:
        world.commands.detach("h1", world.agents["h1"])
    world.commands.force_down("h1", True)
    assert ended(world, one).result == "Success"
    assert (world.wait_state(one, VM_ACTIVE).host, held(world)) == ("h2", ["h2"])


@pytest.mark.parametrize("before", [True, False], ids=["before", "meanwhile"])
def test_a_confirmation_is_done_whether_the_present_host_is_forced_down_or_not(
    world: CellWorld, one: str, before: bool
) -> None:
    """As Nova's: the source is cleaned, and the server stays where it is; it can be evacuated then."""
    migrated(world, one)
    world.agents["h1"].silent = not before
    if before:
        force_down(world, "h2")
    move(world, one, "confirm_resize")
    if not before:
        wait_for(lambda: world.agents["h1"].named("destroy") != [])
        force_down(world, "h2")
        world.agents["h1"].finish("destroy", world.agents["h1"].named("destroy")[-1])
    assert ended(world, one).result == "Success"
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.host, row.move, row.fault, held(world)) == ("h2", None, None, ["h2"])
    assert where(world, one)[0] == ["h2"]
    world.agents["h1"].silent = False
    move(world, one, "evacuate", "h1", operation_id="op-e")
    assert world.wait_state(one, VM_ACTIVE).host == "h1"


@pytest.mark.parametrize("news", [True, False], ids=["told", "read"])
def test_a_destination_that_hangs_is_given_up_when_it_is_forced_down(world: CellWorld, one: str, news: bool) -> None:
    """While it is not, it may have heard: the move waits for its word, and goes to no other host."""
    there = world.agents["h2"]
    answers = there.call

    def hangs_from_here_on(method: Any, request: Any, *, timeout_ms: int) -> Any:
        there.mute = there.mute or method.name == "step"
        return answers(method, request, timeout_ms=timeout_ms)

    there.call = hangs_from_here_on
    move(world, one, "migrate")
    wait_for(lambda: (task := world.task(one)) is not None and task.step == STEP_PREPARE)
    world.forced.add("h2")
    if news:
        world.commands.force_down("h2", True)
    row = world.wait_state(one, VM_RESIZED)
    assert (row.host, where(world, one)[0], held(world)) == ("h3", ["h1", "h3"], ["h1", "h3"])


@pytest.mark.parametrize("action", ["migrate", "resize", "live_migrate"])
def test_a_destination_that_hangs_already_gives_way_before_it_is_told_anything(
    world: CellWorld, one: str, action: str
) -> None:
    world.agents["h2"].mute = True
    move(world, one, action)
    ended(world, one)
    assert (world.instance(one).host, world.agents["h2"].verbs) == ("h3", [])
    assert "h2" not in held(world)


@pytest.mark.parametrize("how", ["mute", "silent"])
def test_a_delete_does_not_wait_for_a_linked_host_that_hangs_and_is_forced_down(
    world: CellWorld, one: str, how: str
) -> None:
    migrated(world, one)
    there = world.agents["h1"]
    there.mute, there.silent = how == "mute", how == "silent"
    world.delete(one)
    wait_for(lambda: one not in world.agents["h2"].domains)
    assert world.instance(one).vm_state == VM_RESIZED
    world.forced.add("h1")
    world.commands.force_down("h1", True)
    world.wait_state(one, VM_DELETED)
    assert held(world) == []


@pytest.mark.parametrize("host", ["h1", "h2"])
def test_a_revert_goes_back_to_no_host_that_is_forced_down_and_waits_for_none(
    world: CellWorld, one: str, host: str
) -> None:
    migrated(world, one)
    before = world.instance(one)
    force_down(world, host)
    if host == "h1":
        with pytest.raises(InstanceBusy, match="its former host h1 is forced down"):
            move(world, one, "revert_resize")
        assert (world.instance(one), where(world, one)[1], held(world)) == (before, ["h2"], ["h1", "h2"])
    else:
        move(world, one, "revert_resize")
        assert world.wait_state(one, VM_ACTIVE).host == "h1"
        assert ("h1" in where(world, one)[1], held(world)) == (True, ["h1"])


def pass_deadline(world: CellWorld, uuid: str) -> None:
    world.engine._runs[uuid].deadline = 0.0
    world.engine._runs[uuid].changed.set()


@pytest.mark.parametrize(("action", "verb"), [("migrate", "send"), ("live_migrate", "migrate")])
def test_a_source_that_cannot_send_has_its_server_back(world: CellWorld, one: str, action: str, verb: str) -> None:
    world.agents["h1"].cannot.add(verb)
    move(world, one, action)
    found = ended(world, one)
    row = world.instance(one)
    assert (found.result, found.message) == ("Error", "broken")
    assert (row.host, row.vm_state, row.task_state) == ("h1", VM_ACTIVE, None)
    assert where(world, one) == (["h1"], ["h1"])
    assert held(world) == ["h1"]
    assert world.agents["h2"].awaited == set()


def test_what_fails_behind_the_switch_is_tried_until_it_is_done(world: CellWorld, one: str) -> None:
    world.agents["h2"].cannot.add("activate")
    move(world, one, "migrate")
    wait_for(lambda: world.agents["h2"].verbs.count("activate") > 2)
    assert (world.instance(one).host, world.instance(one).task_state) == ("h2", "resize_finish")
    world.agents["h2"].cannot.clear()
    world.wait_state(one, VM_RESIZED)
    assert held(world) == ["h1", "h2"]


@pytest.mark.parametrize("action", ["migrate", "live_migrate"])
def test_the_steps_of_a_move_are_events_of_its_operation(world: CellWorld, one: str, action: str) -> None:
    """Nova's start_time, finish_time and result of each; the one under way has no end yet."""
    world.agents["h2"].cannot.add("prepare")
    world.agents["h1"].silent = True
    move(world, one, action)
    source = "send" if action == "migrate" else "migrate"
    wait_for(lambda: source in world.agents["h1"].verbs)
    under_way = step_under_way(world.task(one))
    assert (under_way.event, under_way.finished_at_us, under_way.result) == (f"{action}_{source}", 0, "")
    world.agents["h1"].finish(source, world.agents["h1"].named("step")[-1])
    ended(world, one)
    events = events_of(world, one)
    assert [event.event.removeprefix(f"{action}_") for event in events] == [
        "schedule", "claim", "reach", "prepare", "undo_prepare", *PLANS[action].steps[1:],
    ]  # fmt: skip
    assert [event.message for event in events if event.result == "Error"] == ["broken", "broken"]
    assert {event.host for event in events[5:]} == {"h3"}
    assert all(0 < event.started_at_us <= event.finished_at_us for event in events)
    assert all(earlier.finished_at_us <= later.started_at_us for earlier, later in pairwise(events))


def test_a_step_that_fails_without_end_has_few_events(world: CellWorld, one: str) -> None:
    world.agents["h2"].cannot.add("activate")
    move(world, one, "migrate")
    wait_for(lambda: world.agents["h2"].verbs.count("activate") > ATTEMPTS_TOLD_MAX + 10)
    world.agents["h2"].cannot.clear()
    world.wait_state(one, VM_RESIZED)
    told = [event for event in events_of(world, one) if event.event == "migrate_activate"]
    assert [event.result for event in told] == ["Error"] * ATTEMPTS_TOLD_MAX + ["Success"]


def events_of(world: CellWorld, uuid: str, operation_id: str = "op-m") -> list[InstanceActionEvent]:
    """Those of an operation, in the order in which they ended."""
    rows = [INSTANCE_ACTION_EVENTS.from_row(row) for row in world.database.tables["instance_action_events"].values()]
    mine = [row for row in rows if (row.instance_uuid, row.operation_id) == (uuid, operation_id)]
    return sorted(mine, key=lambda row: row.finished_at_us)


def test_a_host_asked_for_by_name_is_the_only_one_tried_and_never_the_present_one(world: CellWorld, one: str) -> None:
    with pytest.raises(ActionInvalid, match="the host where the server exists"):
        move(world, one, "migrate", "h1")
    world.full.add("h3")
    move(world, one, "migrate", "h3")
    assert ended(world, one).result == "Error"
    assert world.instance(one).host == "h1"


def test_confirm_and_revert_need_a_move_that_waits_and_end_it_once(world: CellWorld, one: str) -> None:
    for action in ("confirm_resize", "revert_resize"):
        with pytest.raises(InstanceBusy):
            move(world, one, action)
    migrated(world, one)
    move(world, one, "confirm_resize")
    world.wait_state(one, VM_ACTIVE)
    for action in ("confirm_resize", "revert_resize"):
        with pytest.raises(InstanceBusy):
            move(world, one, action, operation_id=f"op-{action}")


def test_a_delete_of_a_migrated_server_destroys_both_copies_and_releases_both_claims(
    world: CellWorld, one: str
) -> None:
    migrated(world, one)
    world.delete(one)
    world.wait_state(one, VM_DELETED)
    assert (where(world, one), held(world)) == (([], []), [])


@pytest.mark.parametrize("host", ["h1", "h2"])
def test_a_silent_host_parks_a_move_and_its_return_carries_it_on(world: CellWorld, one: str, host: str) -> None:
    agent = world.agents[host]
    agent.silent = True
    move(world, one, "migrate")
    wait_for(lambda: agent.named("step"))
    pass_deadline(world, one)
    wait_for(lambda: (task := world.task(one)) is not None and task.state == TASK_PARKED)
    assert (world.instance(one).vm_state, world.instance(one).task_state) == (VM_ERROR, None)
    agent.silent = False
    agent.finish(agent.verbs[-1], agent.named("step")[-1])
    world.wait_state(one, VM_RESIZED)
    assert (world.instance(one).fault, held(world)) == (None, ["h1", "h2"])


# vm_state, the hosts that have the domain, those that run it, those where room is claimed
FINAL = {
    "migrate": (VM_RESIZED, ["h1", "h2"], ["h2"], ["h1", "h2"]),
    "resize": (VM_RESIZED, ["h1", "h2"], ["h2"], ["h1", "h2"]),
    "live_migrate": (VM_ACTIVE, ["h2"], ["h2"], ["h2"]),
    "evacuate": (VM_ACTIVE, ["h1", "h2"], ["h2"], ["h2"]),  # what h1 has goes when it comes back
    "confirm_resize": (VM_ACTIVE, ["h2"], ["h2"], ["h2"]),
    "revert_resize": (VM_ACTIVE, ["h1"], ["h1"], ["h1"]),
    "shelve": (VM_SHELVED_OFFLOADED, [], [], []),
    "shelve_here": (VM_SHELVED, ["h1"], [], ["h1"]),
    "shelve_offload": (VM_SHELVED_OFFLOADED, [], [], []),
    "unshelve": (VM_ACTIVE, ["h1"], ["h1"], ["h1"]),
    "unshelve_here": (VM_ACTIVE, ["h1"], ["h1"], ["h1"]),
}


class OwnerDied(Exception):
    """What becomes of a commit whose owner is gone."""


class Death:
    """The owner dies at a step of a kind of task: ``before`` the commit that ends it, or right after that."""

    def __init__(self, world: CellWorld, kind: str, step: str, before: bool) -> None:
        self.came = self._ends = self._over = False
        self._world, self._place, self._before = world, (kind, step), before
        self._take = world.ledger.take
        world.ledger.take = self.take

    def over(self) -> None:
        self._over = True  # what is still to be told of the dead owner's tickets must not hurt the next one
        self._world.ledger.take = self._take

    def take(self, ticket: Ticket) -> None:
        decide, keys = ticket.decide, ticket.keys
        ticket.decide = lambda change: self._decided(change, keys, decide)
        ticket.on_done(self._look)
        self._take(ticket)

    def _decided(self, change, keys, decide):
        present = [change.get(*key) for key in keys if key[0] is TASKS and change.loaded(*key)]
        at_place = any((task.kind, task.step) == self._place for task in present if task is not None)
        if self._before and at_place and not self.came:
            self.came = True
            raise OwnerDied
        done = decide(change)
        self._ends = at_place and not any(
            put.image is not None and (put.image.kind, put.image.step) == self._place
            for put in change.puts.values()
            if put.table is TASKS
        )
        return done

    def _look(self, ticket: Ticket) -> None:
        if ticket.error is None and self._ends and not self._before:
            self.came = True
        if self.came and not self._over:
            self._world.engine.lose([ticket.partition])


def die_at(
    world: CellWorld, uuid: str, kind: str, step: str, before: bool, begin: Callable[[], str] | None = None
) -> str:
    """Begin the move (or what ``begin`` begins, of the server that it returns), lose its owner there, and let the next
    one carry it to its end. Returns the server."""
    death = Death(world, kind, step, before)
    if begin is None:
        move(world, uuid, kind)
    else:
        uuid = begin()
    wait_for(lambda: death.came)
    death.over()
    task = world.task(uuid)
    world.engine.lose([partition_of(uuid)])
    if task is not None:
        assert (task.step == step) == before
        world.engine.gained([(world.instance(uuid), task)])
    wait_for(lambda: world.instance(uuid).task_id is None)
    return uuid


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("kind", "step"), [(kind, step) for kind, plan in WITHIN.items() for step in plan.steps])
def test_the_owner_dies_at_a_step_and_the_next_one_carries_on_to_the_same_end(
    kind: str, step: str, before: bool
) -> None:
    world, uuid = ready_for(kind)
    try:
        die_at(world, uuid, kind, step, before)
        vm_state, there, running, claims = FINAL[kind]
        assert world.instance(uuid).vm_state == vm_state
        assert where(world, uuid)[0] == there
        assert [host for host in where(world, uuid)[1] if host not in world.forced] == running
        assert held(world) == claims
    finally:
        world.close()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    ("kind", "step"),
    [(kind, step) for kind, plan in WITHIN.items() if STEP_PREPARE in plan.steps for step in plan.undos(plan.steps[3])]
    + [
        ("migrate", "rolled_back"),
        ("resize", "rolled_back"),
        ("live_migrate", "rolled_back"),
        ("evacuate", "rolled_back"),
    ],
)
def test_the_owner_dies_on_the_way_back_and_the_server_is_what_it_was(kind: str, step: str, before: bool) -> None:
    world = CellWorld("h1", "h2", "h3")
    try:
        uuid = world.build()
        former = world.wait_state(uuid, VM_ACTIVE)
        world.agents["h1"].cannot |= {"send", "migrate"}
        if kind == "evacuate":
            force_down(world, "h1")
            world.full |= {"h2", "h3"}
        die_at(world, uuid, kind, step, before)
        row = world.instance(uuid)
        assert (row.host, row.claim, row.vm_state, row.task_state) == ("h1", former.claim, VM_ACTIVE, None)
        assert where(world, uuid) == (["h1"], ["h1"])
        assert held(world) == ["h1"]
    finally:
        world.close()


def test_the_steps_before_the_switch_know_their_way_back() -> None:
    plan = PLANS["migrate"]
    assert plan.undos(STEP_SCHEDULE) == plan.undos(STEP_CLAIM) == []
    assert plan.undos(STEP_PREPARE) == ["undo_prepare"]
    assert plan.undos(STEP_SEND) == ["undo_send", "undo_prepare"]
    assert plan.undos("undo_send") == ["undo_prepare"]
    assert plan.after(STEP_SEND) == STEP_SWITCH


@pytest.mark.parametrize("action", ["migrate", "live_migrate", "evacuate"])
@pytest.mark.parametrize("back", ["confirm_resize", "revert_resize"])
def test_a_move_that_waits_is_never_forgotten_by_another(world: CellWorld, one: str, action: str, back: str) -> None:
    migrated(world, one)
    before = world.instance(one)
    world.act(one, "reset_state", administrator=True, vm_state=VM_ERROR)
    if action != "evacuate":
        world.put(one, vm_state=VM_ACTIVE)
    with pytest.raises(InstanceBusy):
        move(world, one, action)
    assert world.instance(one).move == before.move
    world.act(one, "reset_state", administrator=True, vm_state=VM_ACTIVE)
    assert world.instance(one).vm_state == VM_RESIZED
    move(world, one, back, operation_id="op-b")
    host = "h2" if back == "confirm_resize" else "h1"
    assert world.wait_state(one, VM_ACTIVE).host == host
    assert (where(world, one)[0], held(world)) == ([host], [host])


def test_a_destination_lost_behind_the_switch_leaves_the_copy_to_go_back_to(world: CellWorld, one: str) -> None:
    world.agents["h2"].cannot.add("activate")
    move(world, one, "migrate")
    wait_for(lambda: "activate" in world.agents["h2"].verbs)
    force_down(world, "h2")
    row = world.wait_state(one, VM_ERROR)
    assert (row.move.former_host, held(world)) == ("h1", ["h1", "h2"])
    with pytest.raises(InstanceBusy, match="neither confirmed nor reverted"):
        move(world, one, "evacuate", operation_id="op-e")
    world.act(one, "reset_state", administrator=True, vm_state=VM_ACTIVE)
    move(world, one, "revert_resize", operation_id="op-r")
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.host, row.move, where(world, one)[1], held(world)) == ("h1", None, ["h1"], ["h1"])
