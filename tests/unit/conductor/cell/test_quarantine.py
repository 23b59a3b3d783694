"""A host that was forced down and is back works again only without what is elsewhere or deleted by now."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.unit.conductor.cell.cell_world import Agent, CellWorld
from tests.unit.conductor.ledger_world import wait_for
from tests.unit.conductor.tasks.samples import host
from zcompute.bus.errors import Forbidden, NotOwner, UnknownMethod
from zcompute.conductor.cell import quarantine
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.cell.quarantine import Quarantine
from zcompute.conductor.tasks.decision import FORCED_DOWN
from zcompute.conductor.tasks.ghosts import has_left
from zcompute.db.tables import INSTANCES
from zcompute.objects.command import DomainsReply
from zcompute.objects.errors import HostNotClean
from zcompute.objects.instance import VM_ACTIVE, VM_DELETED, Move
from zcompute.objects.messages.hosts import LeftBehindRequest
from zcompute.objects.methods import DOMAINS
from zcompute.objects.partition import partition_of
from zcompute.objects.task import Task, TaskBody

PEER = SimpleNamespace(peer=SimpleNamespace(role="conductor", cell="c1"))


class Listing(Agent):
    """An agent that says what it has, two a page."""

    old = False

    def call(self, method: Any, request: Any, *, timeout_ms: int) -> Any:
        if method is not DOMAINS:
            return super().call(method, request, timeout_ms=timeout_ms)
        if self.old:
            raise UnknownMethod("no such method")
        behind = sorted(uuid for uuid in self.domains if uuid > request.after)
        return DomainsReply(uuids=behind[:2], more=len(behind) > 2)


class Quarantined(CellWorld):
    """``h1`` is forced down and back."""

    def __init__(self) -> None:
        super().__init__("h1", "h2")
        self.agents["h1"] = Listing(self, "h1")
        self.attach(self.agents["h1"])
        self.table = HostTable()
        self.table.hold(range(256))
        env: Any = SimpleNamespace(ledger=self.ledger, cell="c1", router=self, store=self.ledger_world.store)
        self.quarantine = Quarantine(env, self.table, self.commands, self.engine.ghosts)

    def call(self, key: str, method: Any, request: Any, *, timeout_ms: int) -> Any:
        if isinstance(request, LeftBehindRequest):
            return self.quarantine.left_behind(request, PEER)
        return super().call(key, method, request, timeout_ms=timeout_ms)

    def force_down(self) -> None:
        self.forced = {"h1"}
        self.commands.force_down("h1", True)
        self.table.put(host(name="h1", forced_down=True))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Quarantined]:
    monkeypatch.setattr(quarantine, "LOOK_S", 0.05)
    monkeypatch.setattr(quarantine, "WAY_WAIT_S", 0.1)
    made = Quarantined()
    yield made
    made.quarantine.stop()
    made.close()


@pytest.fixture
def moved(world: Quarantined) -> str:
    """A server that went to h2 while h1 was forced down."""
    uuid = world.build()
    row = world.wait_state(uuid, VM_ACTIVE)
    world.force_down()
    world.put(uuid, host="h2", generation=row.generation + 1, command_generation=row.command_generation + 1)
    return uuid


def test_what_moved_away_keeps_the_host_in_quarantine_until_it_is_destroyed(world: Quarantined, moved: str) -> None:
    with pytest.raises(HostNotClean, match="1 servers that are elsewhere or deleted") as refused:
        world.quarantine.check("h1")
    assert refused.value.details["servers"] == [moved]
    wait_for(lambda: not world.agents["h1"].domains)
    world.quarantine.check("h1")
    [order] = world.agents["h1"].named("destroy")
    assert order.generation == world.instance(moved).command_generation
    assert world.agents["h2"].named("destroy") == []
    assert world.instance(moved).host == "h2"


def test_a_quarantined_host_is_cleaned_without_being_asked_for(world: Quarantined, moved: str) -> None:
    world.quarantine.start()
    wait_for(lambda: not world.agents["h1"].domains)


def test_what_is_its_own_or_nobodys_is_left_alone(world: Quarantined) -> None:
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.agents["h1"].domains |= {"an-operators", "a-second", "z-third"}
    world.force_down()
    world.quarantine.check("h1")
    assert len(world.agents["h1"].domains) == 4


def test_all_pages_of_a_host_are_read(world: Quarantined, moved: str) -> None:
    world.agents["h1"].domains |= {f"0-{number}" for number in range(7)}
    assert world.quarantine.left_on("h1") == [moved]


def test_a_host_that_is_let_in_again_is_told_to_destroy_nothing(world: Quarantined, moved: str) -> None:
    world.forced = set()
    world.engine.ghosts.suspect("h1", moved)
    wait_for(lambda: not world.engine.ghosts._known)
    assert world.agents["h1"].named("destroy") == []


def test_a_host_that_cannot_be_asked_stays_in_quarantine(world: Quarantined) -> None:
    world.force_down()
    world.agents["h1"].old = True
    with pytest.raises(HostNotClean, match="older release"):
        world.quarantine.check("h1")
    world.commands.detach("h1", world.agents["h1"])  # type: ignore[arg-type]  # the agent is its own link
    with pytest.raises(HostNotClean, match="start its agent first"):
        world.quarantine.check("h1")


def test_only_conductors_of_the_cell_tell_and_only_owners_are_told(world: Quarantined, moved: str) -> None:
    request = LeftBehindRequest(host="h1", instance_uuid=moved)
    stranger = SimpleNamespace(peer=SimpleNamespace(role="conductor", cell="c2"))
    with pytest.raises(Forbidden):
        world.quarantine.left_behind(request, stranger)
    env: Any = SimpleNamespace(
        ledger=SimpleNamespace(owns=lambda partition: partition != partition_of(moved)), cell="c1"
    )
    elsewhere = Quarantine(env, world.table, world.commands, world.engine.ghosts)
    with pytest.raises(NotOwner):
        elsewhere.left_behind(request, PEER)


def task(**body: Any) -> Task:
    return Task(id="t1", instance_uuid="u1", kind="evacuate", step="spawn", body=TaskBody(**body))


MOVE = {"kind": "migrate", "former_claim": "t/1", "former_vm_state": VM_ACTIVE, "since_us": 1}


@pytest.mark.parametrize(
    ("change", "under_way", "left"),
    [
        (lambda row: row, None, False),
        (lambda row: msgspec.structs.replace(row, vm_state=VM_DELETED), None, True),
        (lambda row: msgspec.structs.replace(row, host="h2"), None, True),
        (lambda row: msgspec.structs.replace(row, host=None), None, True),
        (lambda row: msgspec.structs.replace(row, host="h2"), task(named_hosts=["h1"]), False),
        (lambda row: row, task(source="h1"), True),
        (lambda row: row, task(source="h1", named_hosts=["h1"]), False),
        (lambda row: row, task(named_hosts=["h1"], refused={"h1": FORCED_DOWN}), True),
        (lambda row: row, task(named_hosts=["h1"], refused={"h1": "no room"}), False),
        (
            lambda row: msgspec.structs.replace(
                row, host="h2", move=Move(former_host="h1", former_flavor=row.flavor, **MOVE)
            ),
            None,
            False,
        ),
    ],
    ids=[
        "own",
        "deleted",
        "elsewhere",
        "nowhere",
        "asked",
        "leaving",
        "leaving-asked",
        "counts-as-clean",
        "refused",
        "to-go-back-to",
    ],
)
def test_who_has_left_a_host(
    world: Quarantined, change: Callable[[Any], Any], under_way: Task | None, left: bool
) -> None:
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    row = world.database.row(INSTANCES, (uuid,))
    assert has_left(change(row), under_way, "h1") is left


def test_what_was_evacuated_is_destroyed_at_its_former_host_when_that_is_back(world: Quarantined) -> None:
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    former = world.agents["h1"]
    former.up = False
    world.force_down()
    world.agents["h2"].silent = True
    world.act(uuid, "evacuate", administrator=True)
    wait_for(lambda: world.agents["h2"].named("spawn"))
    former.up = True
    with pytest.raises(HostNotClean):
        world.quarantine.check("h1")
    assert former.named("destroy") == []  # its owner waits until the evacuation has ended
    world.agents["h2"].finish("spawn", world.agents["h2"].named("spawn")[-1])
    world.wait_state(uuid, VM_ACTIVE)
    with pytest.raises(HostNotClean):
        world.quarantine.check("h1")
    wait_for(lambda: not former.domains)
    world.quarantine.check("h1")
    assert world.agents["h2"].domains == {uuid}


def away(world: Quarantined, agent: Agent) -> None:
    agent.up = False
    world.commands.detach(agent.host, agent)  # type: ignore[arg-type]  # the agent is its own link
    world.force_down()


def back(world: Quarantined, agent: Agent) -> None:
    """Its link is there again; to the operator the host is forced down still."""
    agent.up = True
    world.commands.attach(agent.host, agent)  # type: ignore[arg-type]


def test_a_host_that_counts_as_clean_in_a_delete_under_way_is_not_let_in_with_what_it_has(world: Quarantined) -> None:
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    source, destination = world.agents["h1"], world.agents["h2"]
    world.act(uuid, "migrate", administrator=True)
    world.wait_state(uuid, "resized")
    away(world, source)
    destination.silent = True
    world.delete(uuid)
    wait_for(lambda: (task := world.task(uuid)) is not None and task.body.destroyed == ["h1"])
    back(world, source)
    with pytest.raises(HostNotClean):
        world.quarantine.check("h1")
    destination.finish("destroy", destination.named("destroy")[-1])
    world.wait_state(uuid, VM_DELETED)
    with pytest.raises(HostNotClean):
        world.quarantine.check("h1")
    wait_for(lambda: not source.domains)


@pytest.mark.parametrize("action", ["confirm_resize", "delete"])
def test_a_host_let_in_while_it_is_to_count_as_clean_is_told_to_destroy(world: Quarantined, action: str) -> None:
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    source = world.agents["h1"]
    world.act(uuid, "migrate", administrator=True)
    world.wait_state(uuid, "resized")
    away(world, source)
    marked: list[bool] = []

    def let_in_before_it_is_written(hosts: Any) -> set[str]:
        """The operator's commit is behind this look and before what follows from it."""
        found = world.forced.intersection(hosts)
        if found and not marked:
            world.forced = set()
            world.commands.force_down("h1", False)
            back(world, source)
            marked.append(True)
        return found

    world.engine._env.forced_down = let_in_before_it_is_written
    if action == "delete":
        world.delete(uuid)
    else:
        world.act(uuid, action)
    wait_for(lambda: world.instance(uuid).task_id is None)
    assert marked
    assert uuid not in source.domains
