"""Shelved servers through the engine: off the shelf where they were or elsewhere, and what becomes of them when
something fails. Each step across its owner's death is in test_moves, deletes are in test_delete_of_moves."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.conductor.cell.cell_world import QUICK, CellWorld
from tests.unit.conductor.cell.test_moves import (
    IMAGE,
    die_at,
    ended,
    force_down,
    held,
    move,
    pass_deadline,
    ready_for,
    where,
)
from tests.unit.conductor.ledger_world import wait_for
from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.cell.auto_offload import AutoOffload
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.tasks.aborts import ABORTED_MOVE, Word, abort
from zcompute.conductor.tasks.imaging import OUTBOX_IMAGED
from zcompute.db.tables import INSTANCES
from zcompute.objects.errors import ActionForbidden, InstanceBusy
from zcompute.objects.image import IMAGE_ACTIVE, IMAGE_DELETED, IMAGE_ERROR
from zcompute.objects.instance import (
    VM_ACTIVE,
    VM_DELETED,
    VM_ERROR,
    VM_PAUSED,
    VM_SHELVED,
    VM_SHELVED_OFFLOADED,
    VM_STOPPED,
    VM_SUSPENDED,
)
from zcompute.objects.partition import partition_of
from zcompute.objects.task import TASK_PARKED


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


@pytest.fixture
def shelved() -> Iterator[tuple[CellWorld, str]]:
    """A server that is shelved and still on h1."""
    world, uuid = ready_for("unshelve_here")
    yield world, uuid
    world.close()


def offloaded(world: CellWorld, uuid: str) -> None:
    move(world, uuid, "shelve", operation_id="op-shelve")
    world.wait_state(uuid, VM_SHELVED_OFFLOADED)


def words(world: CellWorld) -> list[tuple[str, str]]:
    """What the root is owed of images, in order."""
    return [(entry.image.image_id, entry.image.status) for entry in world.owed if entry.kind == OUTBOX_IMAGED]


def test_a_shelved_server_is_shut_down_made_an_image_and_on_no_host(world: CellWorld, one: str) -> None:
    before = world.instance(one)
    offloaded(world, one)
    row = world.instance(one)
    assert world.agents["h1"].verbs == ["stop", "snapshot"]
    assert (row.host, row.claim, row.task_id, row.shelved_image_ref) == (None, None, None, IMAGE)
    assert row.generation == before.generation + 1
    assert (where(world, one), held(world)) == (([], []), [])
    assert words(world) == [(IMAGE, IMAGE_ACTIVE)]


def test_it_comes_back_on_another_host_made_of_its_image_which_goes_then(world: CellWorld, one: str) -> None:
    offloaded(world, one)
    before = world.instance(one)
    world.full.add("h1")
    move(world, one, "unshelve")
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.host, row.shelved_image_ref, row.spec.image_ref) == ("h2", None, before.spec.image_ref)
    assert (where(world, one), held(world)) == ((["h2"], ["h2"]), ["h2"])
    assert world.agents["h2"].spawned_of[-1] == IMAGE
    assert world.agents["h2"].named("adopt")[-1].reporter_generation == row.generation
    assert row.launched_at_us > before.launched_at_us
    assert words(world) == [(IMAGE, IMAGE_ACTIVE), (IMAGE, IMAGE_DELETED)]


@pytest.mark.parametrize(("verb", "vm_state"), [("stop", VM_STOPPED), ("pause", VM_PAUSED), ("suspend", VM_SUSPENDED)])
def test_whatever_it_was_before_it_runs_when_it_is_unshelved(
    world: CellWorld, one: str, verb: str, vm_state: str
) -> None:
    world.act(one, verb)
    world.wait_state(one, vm_state)
    offloaded(world, one)
    assert world.agents["h1"].verbs[1:] == (["snapshot"] if verb == "stop" else ["stop", "snapshot"])
    move(world, one, "unshelve")
    assert world.wait_state(one, VM_ACTIVE).host == "h1"


def test_one_that_is_still_on_its_host_is_started_there(shelved: tuple[CellWorld, str]) -> None:
    world, uuid = shelved
    row = world.instance(uuid)
    assert (row.host, row.shelved_image_ref, row.shelved_at_us is not None) == ("h1", IMAGE, True)
    assert (where(world, uuid), held(world)) == ((["h1"], []), ["h1"])
    move(world, uuid, "unshelve")
    row = world.wait_state(uuid, VM_ACTIVE)
    assert (row.host, row.shelved_image_ref, row.shelved_at_us) == ("h1", None, None)
    assert (where(world, uuid), held(world)) == ((["h1"], ["h1"]), ["h1"])
    assert words(world) == [(IMAGE, IMAGE_ACTIVE), (IMAGE, IMAGE_DELETED)]


def test_a_server_that_cannot_be_started_again_is_still_shelved(shelved: tuple[CellWorld, str]) -> None:
    world, uuid = shelved
    world.agents["h1"].cannot.add("start")
    move(world, uuid, "unshelve")
    found, row = ended(world, uuid), world.instance(uuid)
    assert (found.result, found.message) == ("Error", "broken")
    assert (row.vm_state, row.task_state, row.shelved_image_ref) == (VM_SHELVED, None, IMAGE)


def test_only_administrators_offload_and_only_what_is_shelved_and_on_a_host(shelved: tuple[CellWorld, str]) -> None:
    world, uuid = shelved
    with pytest.raises(ActionForbidden):
        world.act(uuid, "shelve_offload")
    move(world, uuid, "shelve_offload")
    world.wait_state(uuid, VM_SHELVED_OFFLOADED)
    assert (where(world, uuid)[0], held(world)) == ([], [])
    with pytest.raises(InstanceBusy, match="in vm_state shelved_offloaded"):
        move(world, uuid, "shelve_offload", operation_id="op-again")


@pytest.mark.parametrize("action", ["start", "stop", "reboot_hard", "migrate", "shelve", "pause", "rebuild"])
def test_what_is_on_no_host_is_asked_for_nothing_else(world: CellWorld, one: str, action: str) -> None:
    offloaded(world, one)
    before = world.instance(one)
    with pytest.raises(InstanceBusy, match="in vm_state shelved_offloaded"):
        move(world, one, action)
    assert world.instance(one) == before


def test_a_shelve_without_the_id_of_its_image_is_refused(world: CellWorld, one: str) -> None:
    with pytest.raises(InvalidRequest, match="image"):
        world.act(one, "shelve")
    assert world.instance(one).vm_state == VM_ACTIVE


def test_a_repeat_of_a_shelve_makes_no_second_image(world: CellWorld, one: str) -> None:
    offloaded(world, one)
    move(world, one, "shelve", operation_id="op-shelve")
    assert world.agents["h1"].verbs.count("snapshot") == 1
    assert words(world) == [(IMAGE, IMAGE_ACTIVE)]


# -- what fails ---------------------------------------------------------------------------------------------------


def test_without_room_anywhere_it_stays_on_the_shelf_and_the_history_says_why(world: CellWorld, one: str) -> None:
    offloaded(world, one)
    before = world.instance(one)
    world.full |= {"h1", "h2", "h3"}
    move(world, one, "unshelve")
    found, row = ended(world, one), world.instance(one)
    assert (found.result, found.message[:25]) == ("Error", "No valid host was found. ")
    assert (row.vm_state, row.task_state, row.host, row.fault) == (VM_SHELVED_OFFLOADED, None, None, None)
    assert (row.shelved_image_ref, row.generation, held(world)) == (IMAGE, before.generation, [])
    world.full.clear()
    move(world, one, "unshelve", operation_id="op-again")
    assert world.wait_state(one, VM_ACTIVE).host == "h1"


@pytest.mark.parametrize("wrong", ["broken", "unlinked"])
def test_a_host_that_cannot_make_it_of_its_image_gives_way_to_the_next(world: CellWorld, one: str, wrong: str) -> None:
    offloaded(world, one)
    if wrong == "broken":
        world.agents["h1"].cannot.add("spawn")
    else:
        world.commands.detach("h1", world.agents["h1"])
    move(world, one, "unshelve")
    assert world.wait_state(one, VM_ACTIVE).host == "h2"
    assert (where(world, one)[0], held(world)) == (["h2"], ["h2"])


def test_a_claim_goes_though_what_was_begun_there_is_cleared_away_late(world: CellWorld, one: str) -> None:
    offloaded(world, one)
    there = world.agents["h1"]
    cleared = len(there.named("destroy"))
    there.cannot |= {"spawn", "destroy"}
    move(world, one, "unshelve")
    wait_for(lambda: len(there.named("destroy")) > cleared + 2)
    assert held(world) == ["h1"]
    there.cannot.clear()
    assert world.wait_state(one, VM_ACTIVE).host == "h2"
    assert held(world) == ["h2"]


def test_a_host_that_is_forced_down_while_it_makes_it_gives_way_to_the_next(world: CellWorld, one: str) -> None:
    offloaded(world, one)
    there = world.agents["h1"]
    there.silent = True
    move(world, one, "unshelve")
    wait_for(lambda: len(there.named("spawn")) > 1)
    force_down(world, "h1")
    assert world.wait_state(one, VM_ACTIVE).host == "h2"
    assert held(world) == ["h2"]


@pytest.mark.parametrize(
    ("verb", "vm_state", "after"),
    [("", VM_ACTIVE, VM_ACTIVE), ("stop", VM_STOPPED, VM_STOPPED), ("suspend", VM_SUSPENDED, VM_STOPPED)],
)
def test_a_disk_that_cannot_be_made_an_image_leaves_the_server_as_it_was(
    world: CellWorld, one: str, verb: str, vm_state: str, after: str
) -> None:
    """What was in memory only is lost by then: such a server is stopped."""
    if verb:
        world.act(one, verb)
        world.wait_state(one, vm_state)
    world.agents["h1"].cannot.add("snapshot")
    move(world, one, "shelve")
    found, row = ended(world, one), world.instance(one)
    assert (found.result, found.message) == ("Error", "broken")
    assert (row.vm_state, row.task_state, row.host, row.shelved_image_ref) == (after, None, "h1", None)
    assert where(world, one) == (["h1"], ["h1"] if after == VM_ACTIVE else [])
    assert (held(world), words(world)) == (["h1"], [(IMAGE, IMAGE_ERROR)])


def test_a_server_that_cannot_be_shut_down_is_what_it_was(world: CellWorld, one: str) -> None:
    world.act(one, "suspend")
    world.wait_state(one, VM_SUSPENDED)
    world.agents["h1"].cannot.add("stop")
    move(world, one, "shelve")
    assert (ended(world, one).result, world.instance(one).vm_state) == ("Error", VM_SUSPENDED)
    assert words(world) == [(IMAGE, IMAGE_ERROR)]


def test_a_host_that_is_not_linked_was_told_nothing(world: CellWorld, one: str) -> None:
    world.commands.detach("h1", world.agents["h1"])
    move(world, one, "shelve")
    found = ended(world, one)
    assert (found.message, world.instance(one).vm_state) == ("host h1 is not linked", VM_ACTIVE)
    assert world.agents["h1"].verbs == []


@pytest.mark.parametrize("step", ["shut_down", "snapshot"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_the_owner_dies_on_the_way_back_and_the_server_runs_again(step: str, before: bool) -> None:
    world, uuid = ready_for("shelve")
    try:
        world.agents["h1"].cannot.add("snapshot")
        step = "undo_shut_down" if step == "shut_down" else "rolled_back"
        die_at(world, uuid, "shelve", step, before)
        row = world.instance(uuid)
        assert (row.vm_state, row.task_state, row.host) == (VM_ACTIVE, None, "h1")
        assert (where(world, uuid), held(world)) == ((["h1"], ["h1"]), ["h1"])
    finally:
        world.close()


@pytest.mark.parametrize("step", ["undo_build", "rolled_back"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_the_owner_dies_on_the_way_back_to_the_shelf(step: str, before: bool) -> None:
    world, uuid = ready_for("unshelve")
    try:
        for agent in world.agents.values():
            agent.cannot.add("spawn")
        die_at(world, uuid, "unshelve", step, before)
        row = world.instance(uuid)
        assert (row.vm_state, row.task_state, row.host, row.claim) == (VM_SHELVED_OFFLOADED, None, None, None)
        assert (where(world, uuid), held(world)) == (([], []), [])
        assert row.shelved_image_ref == IMAGE
    finally:
        world.close()


def test_a_host_lost_behind_the_switch_leaves_an_image_to_evacuate_from(world: CellWorld, one: str) -> None:
    offloaded(world, one)
    there = world.agents["h1"]
    spawned = there.finish

    def lost(verb: str, order: Any) -> None:
        spawned(verb, order)
        if verb == "spawn":
            force_down(world, "h1")

    there.finish = lost
    move(world, one, "unshelve")
    row = world.wait_state(one, VM_ERROR)
    assert (row.host, row.shelved_image_ref, held(world)) == ("h1", IMAGE, ["h1"])
    move(world, one, "evacuate", operation_id="op-e")
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.host, row.shelved_image_ref, world.agents["h2"].spawned_of[-1]) == ("h2", None, IMAGE)
    assert words(world)[-1] == (IMAGE, IMAGE_DELETED)


def test_a_lost_host_is_left_without_its_word(shelved: tuple[CellWorld, str]) -> None:
    """Its data is the image: what it still has goes when it comes back."""
    world, uuid = shelved
    force_down(world, "h1")
    move(world, uuid, "shelve_offload")
    row = world.wait_state(uuid, VM_SHELVED_OFFLOADED)
    assert (row.host, held(world)) == (None, [])
    move(world, uuid, "unshelve", operation_id="op-u")
    assert world.wait_state(uuid, VM_ACTIVE).host == "h2"


@pytest.mark.parametrize(("agent_verb", "steps"), [("snapshot", "snapshot"), ("destroy", "clean_source")])
def test_a_silent_host_parks_it_and_its_return_carries_it_on(
    world: CellWorld, one: str, agent_verb: str, steps: str
) -> None:
    there = world.agents["h1"]
    finish = there.finish
    there.finish = lambda verb, order: None if verb == agent_verb else finish(verb, order)
    move(world, one, "shelve")
    wait_for(lambda: (task := world.task(one)) is not None and task.step == steps)
    wait_for(lambda: agent_verb in [*there.verbs, *(name for name, _ in there.commands)])
    pass_deadline(world, one)
    wait_for(lambda: (task := world.task(one)) is not None and task.state == TASK_PARKED)
    assert (world.instance(one).vm_state, world.instance(one).host) == (VM_ERROR, "h1")
    there.finish = finish
    finish(agent_verb, there.commands[-1][1])
    row = world.wait_state(one, VM_SHELVED_OFFLOADED)
    assert (row.fault, row.shelved_image_ref, held(world)) == (None, IMAGE, [])


def test_an_operator_aborts_a_snapshot_and_the_server_runs_again(world: CellWorld, one: str) -> None:
    there = world.agents["h1"]
    finish = there.finish
    there.finish = lambda verb, order: None if verb == "snapshot" else finish(verb, order)
    move(world, one, "shelve")
    wait_for(lambda: "snapshot" in there.verbs)
    instance, task = world.instance(one), world.task(one)
    decision = abort(Word(instance, task, 1000, QUICK))
    assert (decision.task.step, decision.task.body.result) == ("undo_shut_down", ABORTED_MOVE)


# -- what an administrator, a delete and time do ------------------------------------------------------------------


def test_a_reset_of_its_state_forgets_no_image(world: CellWorld, one: str) -> None:
    offloaded(world, one)
    world.act(one, "reset_state", administrator=True, vm_state=VM_ERROR)
    assert world.instance(one).shelved_image_ref == IMAGE
    world.act(one, "reset_state", administrator=True, vm_state=VM_ACTIVE)
    assert world.instance(one).vm_state == VM_SHELVED_OFFLOADED
    move(world, one, "unshelve")
    assert world.wait_state(one, VM_ACTIVE).host == "h1"


@pytest.mark.parametrize("kind", ["unshelve", "unshelve_here"])
def test_a_delete_of_a_shelved_server_takes_its_image_along(kind: str) -> None:
    world, uuid = ready_for(kind)
    try:
        world.delete(uuid)
        row = world.wait_state(uuid, VM_DELETED)
        assert (where(world, uuid)[0], held(world), row.shelved_image_ref) == ([], [], None)
        assert words(world) == [(IMAGE, IMAGE_ACTIVE), (IMAGE, IMAGE_DELETED)]
    finally:
        world.close()


def test_a_soft_delete_of_what_is_on_no_host_is_done_at_once() -> None:
    world = CellWorld("h1", reclaims=True)
    try:
        uuid = world.build()
        world.wait_state(uuid, VM_ACTIVE)
        offloaded(world, uuid)
        world.delete(uuid)
        world.wait_state(uuid, VM_DELETED)
    finally:
        world.close()


def test_a_soft_delete_of_a_shelved_server_takes_its_image_and_a_restore_starts_it() -> None:
    world = CellWorld("h1", settings=replace(QUICK, shelved_offload_time_s=-1), reclaims=True)
    try:
        uuid = world.build()
        world.wait_state(uuid, VM_ACTIVE)
        move(world, uuid, "shelve")
        world.wait_state(uuid, VM_SHELVED)
        world.delete(uuid)
        row = world.wait_state(uuid, "soft-delete")
        assert (row.host, row.shelved_image_ref) == ("h1", None)
        world.act(uuid, "restore")
        world.wait_state(uuid, VM_ACTIVE)
        assert words(world)[-1] == (IMAGE, IMAGE_DELETED)
    finally:
        world.close()


def test_the_sweep_offloads_what_it_has_seen_and_nothing_that_was_unshelved_since(
    shelved: tuple[CellWorld, str],
) -> None:
    world, uuid = shelved
    seen = world.instance(uuid)
    move(world, uuid, "unshelve")
    world.wait_state(uuid, VM_ACTIVE)
    world.actions.offload(seen)
    assert world.instance(uuid).vm_state == VM_ACTIVE
    move(world, uuid, "shelve", operation_id="op-again")
    world.wait_state(uuid, VM_SHELVED)
    world.actions.offload(seen)
    assert world.instance(uuid).vm_state == VM_SHELVED
    world.actions.offload(world.instance(uuid))
    world.wait_state(uuid, VM_SHELVED_OFFLOADED)
    assert held(world) == []


def test_it_is_offloaded_when_its_time_is_over_and_not_before(shelved: tuple[CellWorld, str]) -> None:
    world, uuid = shelved

    def expired(table: Any, partition: int, column: str, before_us: int, limit: int) -> list[Any]:
        assert (table, column, limit) == (INSTANCES, "shelved_at_us", CellSettings().offload_rows_max)
        row = world.instance(uuid)
        return [row] if partition_of(uuid) == partition and (row.shelved_at_us or before_us) < before_us else []

    store: Any = SimpleNamespace(expired=expired)
    sweep = AutoOffload(world.ledger, store, 3600, CellSettings(), world.actions.offload)
    assert sweep.look() == 0
    world.put(uuid, shelved_at_us=world.ledger.now_us() - 7200 * 1_000_000, locked=True, locked_by_admin=True)
    assert sweep.look() == 1
    row = world.wait_state(uuid, VM_SHELVED_OFFLOADED)
    assert (row.host, row.shelved_at_us, row.locked) == (None, None, True)
    assert sweep.look() == 0


@pytest.mark.parametrize("after_s", [0, -1])
def test_what_is_offloaded_at_once_or_never_is_not_looked_for(world: CellWorld, after_s: int) -> None:
    store: Any = None
    sweep = AutoOffload(world.ledger, store, after_s, CellSettings(), world.actions.offload)
    sweep.start()
    assert sweep._greenlet is None


def test_the_index_has_what_waits_and_nothing_else(shelved: tuple[CellWorld, str]) -> None:
    world, uuid = shelved
    since_us = world.instance(uuid).shelved_at_us
    world.act(uuid, "lock")
    assert world.instance(uuid).shelved_at_us == since_us
    world.act(uuid, "reset_state", administrator=True, vm_state=VM_ERROR)
    assert world.instance(uuid).shelved_at_us is None
    world.act(uuid, "reset_state", administrator=True, vm_state=VM_ACTIVE)
    row = world.instance(uuid)
    assert (row.vm_state, row.shelved_at_us >= since_us) == (VM_SHELVED, True)
    world.agents["h1"].silent = True
    move(world, uuid, "shelve_offload")
    assert world.instance(uuid).shelved_at_us is None
