"""createImage at its server's owner: the root is owed one word of every image, whichever way its task ends."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.unit.conductor.cell.cell_world import QUICK, CellWorld
from tests.unit.conductor.ledger_world import wait_for
from zcompute.bus.errors import Busy, InvalidRequest
from zcompute.conductor.tasks.imaging import OUTBOX_IMAGED, made
from zcompute.db.tables import NOTIFICATIONS, ROOT_OUTBOX
from zcompute.objects.actions import SNAPSHOT
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.command import StepArguments
from zcompute.objects.image import IMAGE_ACTIVE, IMAGE_ERROR, ImageOutcome
from zcompute.objects.instance import TASK_IMAGE_SNAPSHOT, VM_ACTIVE, VM_DELETED, VM_ERROR
from zcompute.objects.report import OUTCOME_DONE, StepResult
from zcompute.objects.task import TASK_PARKED

IMAGE = "11111111-0000-4000-8000-000000000000"
OF_IT = {"arguments": StepArguments(image_ref=IMAGE), "operation_id": "op-i"}


@pytest.fixture
def world() -> Iterator[CellWorld]:
    world = CellWorld("h1")
    yield world
    world.close()


@pytest.fixture
def one_second() -> Iterator[CellWorld]:
    """A world in which an action may last no longer."""
    world = CellWorld("h1", settings=replace(QUICK, act_deadline_s_max=1))
    yield world
    world.close()


@pytest.fixture
def one(world: CellWorld) -> str:
    """A server that runs on h1."""
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    return uuid


def owed(world: CellWorld) -> list[OutboxEntry]:
    """Durable words of images; each is known to the sender too."""
    rows = [ROOT_OUTBOX.from_row(row) for row in world.database.tables[ROOT_OUTBOX.name].values()]
    found = [row for row in rows if row.kind == OUTBOX_IMAGED]
    known = [(entry.instance_uuid, entry.generation) for entry in world.owed if entry.kind == OUTBOX_IMAGED]
    assert sorted(known) == sorted((row.instance_uuid, row.generation) for row in found)
    return found


def outcome(world: CellWorld) -> ImageOutcome:
    wait_for(lambda: owed(world))
    (entry,) = owed(world)
    assert entry.image is not None
    return entry.image


def test_the_server_is_what_it_was_and_the_root_is_told_of_the_image(world: CellWorld, one: str) -> None:
    world.agents["h1"].silent = True
    world.act(one, SNAPSHOT.key, **OF_IT)
    wait_for(lambda: world.agents["h1"].named("step"))
    row = world.wait_state(one, VM_ACTIVE, TASK_IMAGE_SNAPSHOT)
    assert owed(world) == []
    world.agents["h1"].finish("snapshot", world.agents["h1"].named("step")[-1])
    world.wait_state(one, VM_ACTIVE)
    assert outcome(world) == ImageOutcome(image_id=IMAGE, status=IMAGE_ACTIVE, size_bytes=5, checksum="c5")
    assert row.power_state == world.instance(one).power_state
    rows = [NOTIFICATIONS.from_row(stored) for stored in world.database.tables[NOTIFICATIONS.name].values()]
    told = [row for row in rows if row.event_type.startswith("instance.snapshot.")]
    assert [row.event_type for row in told] == ["instance.snapshot.start", "instance.snapshot.end"]
    assert all(IMAGE.encode() in row.body for row in told)


def test_two_images_of_a_server_are_two_words(world: CellWorld, one: str) -> None:
    for number in range(2):
        arguments = StepArguments(image_ref=f"i{number}")
        world.act(one, SNAPSHOT.key, arguments=arguments)
        wait_for(lambda number=number: len(owed(world)) == number + 1)
    assert sorted(entry.image.image_id for entry in owed(world) if entry.image) == ["i0", "i1"]


def test_a_repeat_is_the_same_operation(world: CellWorld, one: str) -> None:
    world.act(one, SNAPSHOT.key, **OF_IT)
    outcome(world)
    world.act(one, SNAPSHOT.key, **OF_IT)
    assert (world.agents["h1"].images, len(owed(world))) == (1, 1)


def test_an_image_that_the_hypervisor_refuses_is_in_error_and_its_server_is_not(world: CellWorld, one: str) -> None:
    world.agents["h1"].cannot.add("snapshot")
    world.act(one, SNAPSHOT.key, **OF_IT)
    assert outcome(world) == ImageOutcome(image_id=IMAGE, status=IMAGE_ERROR, reason="broken")
    world.wait_state(one, VM_ACTIVE)


def test_an_agent_of_an_older_release_makes_none(world: CellWorld, one: str) -> None:
    world.agents["h1"].old = True
    world.act(one, SNAPSHOT.key, **OF_IT)
    assert outcome(world).status == IMAGE_ERROR


def test_a_delete_takes_the_place_of_the_snapshot_and_says_so_at_once(world: CellWorld, one: str) -> None:
    world.agents["h1"].silent = True
    world.act(one, SNAPSHOT.key, **OF_IT)
    world.wait_state(one, VM_ACTIVE, TASK_IMAGE_SNAPSHOT)
    world.delete(one)
    assert "deleted" in outcome(world).reason
    wait_for(lambda: world.agents["h1"].named("destroy"))
    world.agents["h1"].finish("destroy", world.agents["h1"].named("destroy")[-1])
    world.wait_state(one, VM_DELETED)
    assert outcome(world).status == IMAGE_ERROR


def test_a_host_that_is_forced_down_makes_none(world: CellWorld, one: str) -> None:
    world.agents["h1"].silent = True
    world.act(one, SNAPSHOT.key, **OF_IT)
    wait_for(lambda: world.agents["h1"].named("step"))
    world.agents["h1"].up = False
    world.commands.detach("h1", world.agents["h1"])
    world.forced.add("h1")
    world.commands.force_down("h1", True)
    assert "forced down" in outcome(world).reason


def test_while_a_silent_host_may_still_make_it_nothing_is_said(one_second: CellWorld) -> None:
    world = one_second
    one = world.build()
    world.wait_state(one, VM_ACTIVE)
    world.agents["h1"].silent = True
    world.act(one, SNAPSHOT.key, **OF_IT)
    wait_for(lambda: (task := world.task(one)) is not None and task.state == TASK_PARKED)
    assert world.instance(one).vm_state == VM_ERROR
    assert owed(world) == []
    world.agents["h1"].finish("snapshot", world.agents["h1"].named("step")[-1])
    world.wait_state(one, VM_ACTIVE)
    assert outcome(world).status == IMAGE_ACTIVE


@pytest.mark.parametrize("dies_before_the_result", [True, False])
def test_the_next_owner_tells_it_once(world: CellWorld, one: str, *, dies_before_the_result: bool) -> None:
    world.agents["h1"].silent = dies_before_the_result
    world.act(one, SNAPSHOT.key, **OF_IT)
    if dies_before_the_result:
        world.wait_state(one, VM_ACTIVE, TASK_IMAGE_SNAPSHOT)
        world.agents["h1"].silent = False
        world.lose_and_regain(one)
    assert outcome(world).status == IMAGE_ACTIVE
    world.wait_state(one, VM_ACTIVE)
    assert len(owed(world)) == 1


def test_an_image_without_an_id_is_refused(world: CellWorld, one: str) -> None:
    with pytest.raises(InvalidRequest, match="image"):
        world.act(one, SNAPSHOT.key)


def test_without_room_for_its_word_it_is_not_begun(world: CellWorld, one: str) -> None:
    def full(under_way: int) -> None:
        raise Busy("no room", retry_after_ms=1)

    world.actions._owing_room = full
    with pytest.raises(Busy):
        world.act(one, SNAPSHOT.key, **OF_IT)
    world.act(one, "stop")


@pytest.mark.parametrize("size", ["", "-1", "1e9", "٣", "9" * 30])
def test_what_an_agent_says_of_the_size_fits_its_column(size: str) -> None:
    result = StepResult(
        instance_uuid="u", host="h", generation=1, task_id="t", step="apply", attempt=1, outcome=OUTCOME_DONE,
        answer={"size_bytes": size, "checksum": "x" * 1000},
    )  # fmt: skip
    assert made(IMAGE, result) == ImageOutcome(image_id=IMAGE, status=IMAGE_ACTIVE)
