"""A resize and the project's quota: raised before any effect, settled whatever becomes of it, on the root's real
decisions."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.conductor.cell.cell_world import CellWorld
from tests.unit.conductor.cell.test_moves import BIG, ended, held, move, where
from tests.unit.conductor.ledger_world import flavor, wait_for
from zcompute.bus.errors import Unavailable
from zcompute.conductor.cell.resizing import amount_with
from zcompute.conductor.cell.root_outbox import RootOutbox
from zcompute.conductor.cell.settings import CellSettings
from zcompute.db.tables import INSTANCE_ACTIONS, TASKS, USAGES
from zcompute.objects.command import StepArguments
from zcompute.objects.errors import ActionInvalid, InstanceBusy, QuotaExceeded
from zcompute.objects.instance import VM_ACTIVE, VM_DELETED, VM_RESIZED
from zcompute.objects.quota import Amount, Limits

SMALL, LARGE = (1, 512), (4, 4096)


class ResizeWorld(CellWorld):
    """With the words to the root sent as they are owed."""

    def __init__(self, *hosts: str) -> None:
        super().__init__(*hosts)
        env: Any = SimpleNamespace(ledger=self.ledger, store=self.ledger_world.store, cell="c1")
        settings = CellSettings(outbox_retry_ms_min=1, outbox_retry_ms_max=5)
        root: Any = self.root
        self.sender = RootOutbox(env, root, settings)

    def settled(self, uuid: str) -> tuple[int, int]:
        """What the server is charged once all words have been sent."""
        for entry in self.owed:
            self.sender.owed(entry)
        wait_for(lambda: not self.database.tables["root_outbox"])
        return self.root.charged(uuid)

    def close(self) -> None:
        self.sender.stop()
        super().close()


@pytest.fixture
def world() -> Iterator[ResizeWorld]:
    world = ResizeWorld("h1", "h2", "h3")
    yield world
    world.close()


@pytest.fixture
def one(world: ResizeWorld) -> str:
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    return uuid


def resize(world: ResizeWorld, uuid: str, to: Any = BIG, operation_id: str = "op-r") -> None:
    world.act(uuid, "resize", operation_id=operation_id, arguments=StepArguments(flavor=to))


def resized(world: ResizeWorld, uuid: str) -> None:
    world.root.know(world.instance(uuid))
    resize(world, uuid)
    world.wait_state(uuid, VM_RESIZED)


def test_a_resize_is_charged_before_it_begins_and_its_claims_are_of_both_flavors(world: ResizeWorld, one: str) -> None:
    world.root.know(world.instance(one))
    select = world.select

    def charged_by_then(request: Any, **limits: Any) -> Any:
        assert world.root.charged(one) == LARGE
        assert request.amounts.vcpus == BIG.vcpus
        return select(request, **limits)

    world.select = charged_by_then  # type: ignore[method-assign]
    resize(world, one)
    row = world.wait_state(one, VM_RESIZED)
    assert (row.flavor.flavorid, row.move.former_flavor.flavorid) == ("2", "1")
    assert where(world, one) == (["h1", "h2"], ["h2"])
    assert (held(world), world.settled(one)) == (["h1", "h2"], LARGE)
    move(world, one, "confirm_resize")
    assert world.wait_state(one, VM_ACTIVE).flavor.flavorid == "2"
    assert (held(world), world.settled(one)) == (["h2"], LARGE)


def test_a_revert_gives_the_quota_back_once_it_has_ended(world: ResizeWorld, one: str) -> None:
    resized(world, one)
    move(world, one, "revert_resize")
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.flavor.flavorid, row.host, world.settled(one)) == ("1", "h1", SMALL)


def test_a_resize_to_less_gives_back_when_it_is_confirmed_and_asks_nobody_before(world: ResizeWorld, one: str) -> None:
    resized(world, one)
    move(world, one, "confirm_resize")
    world.wait_state(one, VM_ACTIVE)
    assert world.settled(one) == LARGE
    world.root.words.clear()
    resize(world, one, flavor("1"), operation_id="op-less")
    world.wait_state(one, VM_RESIZED)
    assert [name for name, _ in world.root.words if name == "raise"] == []
    assert world.settled(one) == LARGE
    move(world, one, "confirm_resize", operation_id="op-c")
    world.wait_state(one, VM_ACTIVE)
    assert world.settled(one) == SMALL


def test_a_resize_that_finds_no_room_gives_back(world: ResizeWorld, one: str) -> None:
    world.root.know(world.instance(one))
    world.full |= {"h2", "h3"}
    resize(world, one)
    assert "No valid host" in ended(world, one, "op-r").message
    row = world.wait_state(one, VM_ACTIVE)
    assert (row.flavor.flavorid, world.settled(one), held(world)) == ("1", SMALL, ["h1"])


def test_over_the_quota_nothing_happens(world: ResizeWorld, one: str) -> None:
    world.root.know(world.instance(one))
    world.root.limits = Limits(instances=10, cores=3, ram_mb=51200)
    before = world.instance(one)
    with pytest.raises(QuotaExceeded, match="Quota exceeded for cores: Requested 3, but already used 1 of 3 cores"):
        resize(world, one)
    row = world.instance(one)
    assert (row.vm_state, row.task_state, row.task_id, row.flavor) == (VM_ACTIVE, None, None, before.flavor)
    assert world.settled(one) == SMALL
    assert world.database.row(INSTANCE_ACTIONS, (one, "op-r")) is None


def test_while_the_root_is_away_a_resize_that_needs_it_is_refused_and_one_to_less_goes_on(
    world: ResizeWorld, one: str
) -> None:
    resized(world, one)
    move(world, one, "confirm_resize")
    world.wait_state(one, VM_ACTIVE)
    world.root.away = True
    with pytest.raises(Unavailable, match="was not resized"):
        resize(world, one, flavor("3", vcpus=8, memory_mb=4096), operation_id="op-more")
    assert world.instance(one).task_id is None
    resize(world, one, flavor("1"), operation_id="op-less")
    world.wait_state(one, VM_RESIZED)
    world.root.away = False
    assert world.settled(one) == LARGE


def test_an_answer_of_the_root_that_is_lost_leaves_nothing_charged_and_the_next_try_begins(
    world: ResizeWorld, one: str
) -> None:
    world.root.know(world.instance(one))
    world.root.answers_lost = 1
    with pytest.raises(Unavailable):
        resize(world, one)
    assert world.instance(one).task_id is None
    assert world.settled(one) == SMALL
    resize(world, one)
    world.wait_state(one, VM_RESIZED)
    assert world.settled(one) == LARGE


def test_the_late_word_of_an_earlier_resize_never_lowers_what_a_later_one_has_raised(
    world: ResizeWorld, one: str
) -> None:
    resized(world, one)
    world.settled(one)
    move(world, one, "revert_resize")
    world.wait_state(one, VM_ACTIVE)  # its word has not been sent yet
    word = world.sender._settling._word(world.owed[-1]).amount
    world.agents["h2"].silent = True
    resize(world, one, operation_id="op-again")
    wait_for(lambda: world.task(one).kind == "resize")
    assert world.root.charged(one) == LARGE
    world.root._resizing.settle(word, SimpleNamespace(remaining_ms=lambda: 1000))
    assert world.root.charged(one) == LARGE
    assert world.settled(one) == LARGE


def test_a_resize_refused_because_another_task_began_meanwhile_is_charged_what_that_one_leaves(
    world: ResizeWorld, one: str
) -> None:
    world.root.know(world.instance(one))
    ask = world.root.call

    def locked_meanwhile(key: str, method: Any, request: Any, *, timeout_ms: int) -> Any:
        world.root.call = ask  # type: ignore[method-assign]
        reply = ask(key, method, request, timeout_ms=timeout_ms)
        world.agents["h1"].silent = True
        world.act(one, "reboot_hard")
        return reply

    world.root.call = locked_meanwhile  # type: ignore[method-assign]
    with pytest.raises(InstanceBusy):
        resize(world, one)
    assert world.task(one).body.action == "reboot_hard"
    assert world.settled(one) == SMALL


def test_a_repeat_of_a_resize_begins_nothing_and_raises_nothing(world: ResizeWorld, one: str) -> None:
    resized(world, one)
    words = len(world.root.words)
    resize(world, one)
    assert len(world.root.words) == words
    assert world.instance(one).vm_state == VM_RESIZED


def test_the_same_flavor_and_none_of_a_disk_are_refused_in_novas_words(world: ResizeWorld, one: str) -> None:
    with pytest.raises(ActionInvalid, match="When resizing, instances must change flavor!"):
        resize(world, one, flavor("1"))
    with pytest.raises(ActionInvalid, match="Resize to zero disk flavor is not allowed"):
        resize(world, one, flavor("9", vcpus=9, root_gb=0))
    assert world.root.words == []


def test_a_deleted_server_is_charged_nothing_however_late_its_words_come(world: ResizeWorld, one: str) -> None:
    resized(world, one)
    world.delete(one)
    world.wait_state(one, VM_DELETED)
    late = [entry for entry in world.owed if entry.kind == "resized"]
    world.root.ledger.rows.pop((USAGES.name, (one,)))
    for entry in late:
        world.sender.owed(entry)
    wait_for(lambda: not [key for key in world.database.tables["root_outbox"] if "resized" in key])
    assert world.root.ledger.get(USAGES, one) is None


def test_what_is_charged_is_the_larger_of_both_each_resource_by_itself(world: ResizeWorld, one: str) -> None:
    instance = world.instance(one)
    assert amount_with(instance, flavor("1")) is None
    assert amount_with(instance, flavor("5", vcpus=1, memory_mb=256)) is None
    assert amount_with(instance, flavor("5", vcpus=2, memory_mb=256)) == Amount(instances=1, cores=2, ram_mb=512)
    assert world.database.tables[TASKS.name] == {}
