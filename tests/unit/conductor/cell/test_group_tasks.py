"""Members of server groups through the engine: where builds and moves let them be, and what is left of their places."""

from collections import Counter
from collections.abc import Iterator
from uuid import uuid4

import msgspec
import pytest

from tests.unit.conductor.cell.cell_world import CellWorld
from tests.unit.conductor.ledger_world import wait_for
from zcompute.conductor.cell.settings import CellSettings
from zcompute.db.tables import GROUP_PLACEMENTS, INSTANCE_ACTIONS
from zcompute.objects.command import StepArguments
from zcompute.objects.group import AFFINITY, ANTI_AFFINITY, SOFT_AFFINITY, SOFT_ANTI_AFFINITY, GroupRule
from zcompute.objects.instance import VM_ACTIVE, VM_DELETED, VM_RESIZED, ServerSpec

GROUP = "6f70656e-7374-4163-8b00-0000000000aa"


@pytest.fixture
def world() -> Iterator[CellWorld]:
    world = CellWorld("h1", "h2", "h3")
    yield world
    world.close()


def member(world: CellWorld, policy: str, per_host: int = 1) -> str:
    spec = ServerSpec(group=GroupRule(uuid=GROUP, policy=policy, max_server_per_host=per_host))
    return world.build(uuid=str(uuid4()), spec=spec)


def active(world: CellWorld, policy: str) -> str:
    uuid = member(world, policy)
    world.wait_state(uuid, VM_ACTIVE)
    return uuid


def places(world: CellWorld) -> list[tuple[str, str]]:
    rows = [GROUP_PLACEMENTS.from_row(row) for row in world.database.tables[GROUP_PLACEMENTS.name].values()]
    return sorted((row.instance_uuid, row.host) for row in rows)


def move(world: CellWorld, uuid: str, action: str, host: str = "") -> None:
    world.act(uuid, action, administrator=True, operation_id=f"op-{action}", arguments=StepArguments(peer_host=host))


def outcome(world: CellWorld, uuid: str, action: str) -> str:
    def over() -> str:
        row = world.database.row(INSTANCE_ACTIONS, (uuid, f"op-{action}"))
        return f"{row.result} {row.message}" if row is not None and row.finished_at_us else ""

    wait_for(over)
    return over()


def test_a_server_without_a_group_asks_nothing_of_one(world: CellWorld) -> None:
    world.wait_state(world.build(), VM_ACTIVE)
    assert (world.calls["claim"], [name for name in world.calls if name.startswith("group.")]) == (1, [])


def test_members_with_anti_affinity_end_on_hosts_of_their_own_and_the_next_finds_none(world: CellWorld) -> None:
    uuids = [member(world, ANTI_AFFINITY) for _ in range(3)]
    hosts = {world.wait_state(uuid, VM_ACTIVE).host for uuid in uuids}
    assert hosts == {"h1", "h2", "h3"}
    one_more = member(world, ANTI_AFFINITY)
    wait_for(lambda: any(entry.instance_uuid == one_more for entry in world.owed))
    (refused,) = [entry for entry in world.owed if entry.instance_uuid == one_more]
    assert refused.kind == "refused"
    assert "ServerGroupAntiAffinityFilter turned away 3 hosts" in refused.reason
    assert places(world) == sorted((uuid, world.instance(uuid).host) for uuid in uuids)


def test_twenty_at_once_are_never_two_on_one_host() -> None:
    world = CellWorld(*(f"h{number}" for number in range(20)))
    try:
        uuids = [member(world, ANTI_AFFINITY) for _ in range(20)]
        hosts = Counter(world.wait_state(uuid, VM_ACTIVE).host for uuid in uuids)
        assert max(hosts.values()) == 1
        assert len(places(world)) == 20
    finally:
        world.close()


def test_twenty_at_once_with_affinity_are_all_on_one_host() -> None:
    world = CellWorld("h1", "h2", "h3", "h4")
    try:
        uuids = [member(world, AFFINITY) for _ in range(20)]
        assert len({world.wait_state(uuid, VM_ACTIVE).host for uuid in uuids}) == 1
    finally:
        world.close()


def test_affinity_follows_the_first_member_wherever_the_scheduler_would_go(world: CellWorld) -> None:
    first = active(world, AFFINITY)
    assert world.instance(first).host == "h1"
    world.hosts = ["h3", "h2", "h1"]
    assert world.instance(active(world, AFFINITY)).host == "h1"
    world.full.add("h1")
    full = member(world, AFFINITY)
    wait_for(lambda: world.owed)
    assert "h1: full" in world.owed[-1].reason
    assert full not in dict(places(world))


@pytest.mark.parametrize(("policy", "second"), [(SOFT_AFFINITY, "h1"), (SOFT_ANTI_AFFINITY, "h2")])
def test_soft_policies_are_followed_where_there_is_a_choice(world: CellWorld, policy: str, second: str) -> None:
    assert world.instance(active(world, policy)).host == "h1"
    assert world.instance(active(world, policy)).host == second
    if policy == SOFT_AFFINITY:
        world.full.add("h1")
        assert world.instance(active(world, policy)).host == "h2"
    else:
        world.hosts = ["h1"]
        assert world.instance(active(world, policy)).host == "h1"


def test_a_place_is_given_back_where_the_room_was_refused(world: CellWorld) -> None:
    world.full.add("h1")
    uuid = active(world, ANTI_AFFINITY)
    assert (world.instance(uuid).host, places(world)) == ("h2", [(uuid, "h2")])


def test_an_answer_that_is_lost_after_the_commit_is_asked_for_again_and_counts_once(world: CellWorld) -> None:
    world.silent_reserves = 2
    uuid = active(world, ANTI_AFFINITY)
    assert places(world) == [(uuid, "h1")]
    assert world.calls["group.reserve"] == 3


def test_a_deleted_member_leaves_its_place(world: CellWorld) -> None:
    first = active(world, ANTI_AFFINITY)
    world.delete(first)
    world.wait_state(first, VM_DELETED)
    assert places(world) == []
    assert world.instance(active(world, ANTI_AFFINITY)).host == "h1"


@pytest.mark.parametrize("stage", ["claiming", "spawning"])
def test_a_delete_during_the_build_leaves_nothing(world: CellWorld, stage: str) -> None:
    for agent in world.agents.values():
        agent.silent = stage == "spawning"
    if stage == "claiming":
        world.silent_claims = 1_000_000
    uuid = member(world, ANTI_AFFINITY)
    wait_for(lambda: world.agents["h1"].named("spawn") if stage == "spawning" else world.calls["claim"] > 1)
    assert places(world) == [(uuid, "h1")]
    for agent in world.agents.values():
        agent.silent = False
    world.silent_claims = 0
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)
    wait_for(lambda: places(world) == [])


@pytest.mark.parametrize("end", ["confirm_resize", "revert_resize"])
def test_a_cold_migration_holds_both_places_until_it_is_confirmed_or_reverted(world: CellWorld, end: str) -> None:
    uuid = active(world, ANTI_AFFINITY)
    move(world, uuid, "migrate")
    world.wait_state(uuid, VM_RESIZED)
    assert places(world) == [(uuid, "h1"), (uuid, "h2")]
    other = active(world, ANTI_AFFINITY)
    assert world.instance(other).host == "h3"
    move(world, uuid, end)
    left = world.wait_state(uuid, VM_ACTIVE).host
    assert left == ("h2" if end == "confirm_resize" else "h1")
    assert places(world) == sorted([(uuid, left), (other, "h3")])


def test_a_live_migration_goes_past_the_hosts_of_the_others(world: CellWorld) -> None:
    first, second = active(world, ANTI_AFFINITY), active(world, ANTI_AFFINITY)
    assert [world.instance(uuid).host for uuid in (first, second)] == ["h1", "h2"]
    move(world, first, "live_migrate", "h2")
    assert "anti-affinity allows 1" in outcome(world, first, "live_migrate")
    assert places(world) == sorted([(first, "h1"), (second, "h2")])


def test_a_member_with_affinity_leaves_the_others_by_no_move_and_alone_by_any(world: CellWorld) -> None:
    first, second = active(world, AFFINITY), active(world, AFFINITY)
    move(world, first, "live_migrate")
    assert "No valid host was found" in outcome(world, first, "live_migrate")
    assert world.wait_state(first, VM_ACTIVE).host == "h1"
    world.delete(second)
    world.wait_state(second, VM_DELETED)
    move(world, first, "migrate")
    assert world.wait_state(first, VM_RESIZED).host == "h2"


def test_an_evacuation_asks_the_group_too(world: CellWorld) -> None:
    first, second = active(world, ANTI_AFFINITY), active(world, ANTI_AFFINITY)
    world.forced.add("h1")
    world.commands.detach("h1", world.agents["h1"])
    world.commands.force_down("h1", True)
    move(world, first, "evacuate")
    assert outcome(world, first, "evacuate").startswith("Success")
    assert (world.instance(first).host, world.instance(second).host) == ("h3", "h2")
    assert places(world) == sorted([(first, "h3"), (second, "h2")])


def test_the_owner_of_the_member_dies_between_place_and_room(world: CellWorld) -> None:
    world.silent_claims = 1_000_000
    uuid = member(world, ANTI_AFFINITY)
    wait_for(lambda: world.calls["claim"] > 0)
    world.lose_and_regain(uuid)
    world.silent_claims = 0
    assert world.wait_state(uuid, VM_ACTIVE).host == "h1"
    assert places(world) == [(uuid, "h1")]


def aged(world: CellWorld) -> None:
    for key, row in world.database.tables[GROUP_PLACEMENTS.name].items():
        old = msgspec.structs.replace(GROUP_PLACEMENTS.from_row(row), created_at_us=1)
        world.database.tables[GROUP_PLACEMENTS.name][key] = GROUP_PLACEMENTS.to_row(old, GROUP_PLACEMENTS.home_of(old))


def test_the_sweeper_leaves_what_a_server_or_its_task_names(world: CellWorld) -> None:
    uuid = active(world, ANTI_AFFINITY)
    move(world, uuid, "migrate")
    world.wait_state(uuid, VM_RESIZED)
    aged(world)
    assert world.placements.sweep() == 0
    assert len(places(world)) == 2


def test_the_sweeper_takes_what_nobody_names_once_it_is_old_enough(world: CellWorld) -> None:
    uuid = active(world, ANTI_AFFINITY)
    world.put(uuid, claim="another/1")
    assert CellSettings().claim_age_s_min > 1
    assert world.placements.sweep() == 0
    aged(world)
    assert world.placements.sweep() == 1
    assert places(world) == []
    assert world.instance(active(world, ANTI_AFFINITY)).host == "h1"
