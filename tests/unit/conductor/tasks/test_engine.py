from dataclasses import replace

import msgspec
import pytest

from tests.unit.conductor.cell.cell_world import QUICK, CellWorld
from tests.unit.conductor.ledger_world import wait_for
from tests.unit.conductor.tasks.samples import new_build
from zcompute.bus.errors import Busy
from zcompute.conductor.tasks.build_walk import STEP_SPAWN
from zcompute.conductor.tasks.decision import Snapshot
from zcompute.conductor.tasks.delete_walk import STEP_FINISH
from zcompute.conductor.tasks.run import TaskRun
from zcompute.db.tables import TASKS
from zcompute.objects.errors import InstanceBusy, InstanceNotFound
from zcompute.objects.instance import TASK_DELETING, TASK_SPAWNING, VM_ACTIVE, VM_BUILDING, VM_DELETED, VM_ERROR
from zcompute.objects.partition import partition_of
from zcompute.objects.report import VERDICT_APPLIED, VERDICT_SUPERSEDED
from zcompute.objects.task import TASK_PARKED


@pytest.fixture
def make():
    worlds = []

    def build(*hosts, **fields):
        worlds.append(CellWorld(*hosts, **fields))
        return worlds[-1]

    yield build
    for world in worlds:
        world.close()


replace_task = msgspec.structs.replace


def short():
    return replace(QUICK, build_deadline_s=1, delete_deadline_s=1)


def test_a_build_ends_active_with_one_spawn_one_claim_and_four_commits_here(make):
    world = make("h1", "h2")
    before = len(world.database.commits)
    uuid = world.build()
    row = world.wait_state(uuid, VM_ACTIVE)
    agent = world.agents["h1"]
    assert (row.host, row.generation, row.power_state) == ("h1", 1, 1)
    assert len(agent.named("spawn")) == 1
    assert agent.named("spawn")[0].reporter_generation == 1
    assert list(world.claims.values()) == ["h1"]
    assert world.database.tables["tasks"] == {}
    assert len([batch for batch in world.database.commits[before:] if batch.changes]) == 4  # the claim's is elsewhere
    wait_for(lambda: agent.verdicts == [VERDICT_APPLIED])
    wait_for(lambda: world.engine.counts() == (0, 0, 0))


def test_the_same_request_again_builds_nothing(make):
    world = make("h1")
    uuid = world.build()
    world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.build()
    assert len(world.agents["h1"].named("spawn")) == 1
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)
    world.build()
    assert world.instance(uuid).vm_state == VM_DELETED


def test_refused_claims_go_from_candidate_to_candidate(make):
    world = make("h1", "h2", "h3")
    world.full = {"h1", "h2"}
    row = world.wait_state(world.build(), VM_ACTIVE)
    assert row.host == "h3"
    assert list(world.claims.values()) == ["h3"]
    assert len(world.selections) == 1


def test_silence_repeats_the_same_claim(make):
    world = make("h1")
    world.silent_claims = 2
    world.wait_state(world.build(), VM_ACTIVE)
    assert world.calls["claim"] == 3
    assert len(world.claims) == 1


def test_no_room_at_all_goes_back_to_the_root_with_the_reasons(make):
    world = make("h1")
    world.full = {"h1"}
    uuid = world.build()
    wait_for(lambda: world.owed)
    entry = world.owed[0]
    assert (entry.kind, entry.build_request.uuid) == ("refused", uuid)
    assert "h1: full" in entry.reason
    assert "RamFilter" in entry.reason
    row = world.instance(uuid)
    assert (row.vm_state, row.task_id) == (VM_BUILDING, None)
    assert world.selections[-1].ignore_hosts == ["h1"]
    with pytest.raises(InstanceBusy):
        world.delete(uuid)


def test_a_failed_spawn_releases_its_claim_and_is_built_elsewhere(make):
    world = make("h1", "h2")
    world.agents["h1"].broken = True
    row = world.wait_state(world.build(), VM_ACTIVE)
    assert (row.host, row.generation) == ("h2", 2)
    assert list(world.claims.values()) == ["h2"]
    assert world.agents["h1"].domains == set()


def test_a_host_that_is_not_linked_is_passed_over(make):
    world = make("h1", "h2")
    world.agents["h1"].up = False
    row = world.wait_state(world.build(), VM_ACTIVE)
    assert row.host == "h2"
    assert list(world.claims.values()) == ["h2"]


def test_a_host_that_was_told_is_never_passed_over(make):
    world = make("h1", "h2", settings=short())
    world.agents["h1"].silent = True
    uuid = world.build()
    row = world.wait_state(uuid, VM_ERROR)
    assert (row.host, world.task(uuid).state) == ("h1", TASK_PARKED)
    assert "no answer from h1" in row.fault.message
    assert world.agents["h2"].commands == []
    assert list(world.claims.values()) == ["h1"]  # kept: the host may run it
    agent = world.agents["h1"]
    agent.finish("spawn", agent.named("spawn")[-1])
    row = world.wait_state(uuid, VM_ACTIVE)
    assert row.fault is None


@pytest.mark.parametrize("waits_for", ["a scheduler", "the owner of the host"])
def test_a_build_behind_its_deadline_that_no_host_was_told_of_ends_in_error_without_a_task(make, waits_for):
    world = make("h1", settings=short())
    if waits_for == "a scheduler":
        world.hosts = []
    else:
        world.silent_claims = 1_000_000
    uuid = world.build()
    wait_for(lambda: world.instance(uuid).task_id is None, timeout_s=5)
    row = world.instance(uuid)
    assert (row.vm_state, row.task_state, row.host, row.claim) == (VM_ERROR, None, None, None)
    assert "did not end before its deadline" in row.fault.message
    assert (world.claims, world.database.tables["tasks"], world.agents["h1"].commands) == ({}, {}, [])
    wait_for(lambda: world.engine.counts() == (0, 0, 0))
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)


def test_a_parked_build_is_asked_for_again_when_its_host_is_back(make):
    world = make("h1", settings=short())
    agent = world.agents["h1"]
    agent.silent = True
    uuid = world.build()
    world.wait_state(uuid, VM_ERROR)
    wait_for(lambda: world.engine.counts()[1] == 0)
    agent.silent = False
    world.attach(agent)
    world.wait_state(uuid, VM_ACTIVE)


def test_a_parked_build_that_then_fails_stays_in_error_without_claim_or_task(make):
    world = make("h1", settings=short())
    agent = world.agents["h1"]
    agent.silent = agent.broken = True
    uuid = world.build()
    world.wait_state(uuid, VM_ERROR)
    agent.finish("spawn", agent.named("spawn")[-1])
    wait_for(lambda: world.instance(uuid).task_id is None)
    row = world.instance(uuid)
    assert (row.vm_state, row.host, row.claim, row.fault.message) == (VM_ERROR, None, None, "broken")
    assert world.claims == {}
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)


def test_a_new_owner_adopts_before_it_spawns_again(make):
    world = make("h1")
    agent = world.agents["h1"]
    agent.silent = True
    uuid = world.build()
    wait_for(lambda: agent.named("spawn"))
    agent.silent = False
    world.lose_and_regain(uuid)
    world.wait_state(uuid, VM_ACTIVE)
    names = [name for name, _ in agent.commands]
    assert names[names.index("adopt") + 1] == "spawn"
    assert agent.named("adopt")[0].generation == 2
    assert agent.named("spawn")[-1].generation == 2


def test_a_result_under_the_former_owners_generation_is_superseded(make):
    world = make("h1")
    agent = world.agents["h1"]
    agent.silent = True
    uuid = world.build()
    wait_for(lambda: agent.named("spawn"))
    first = agent.named("spawn")[0]
    world.lose_and_regain(uuid)
    wait_for(lambda: len(agent.named("spawn")) >= 2 and agent.named("spawn")[-1].generation == 2)
    agent.finish("spawn", first)
    wait_for(lambda: agent.verdicts == [VERDICT_SUPERSEDED])
    assert world.instance(uuid).vm_state == VM_BUILDING
    agent.finish("spawn", agent.named("spawn")[-1])
    world.wait_state(uuid, VM_ACTIVE)


def test_a_silent_named_host_parks_the_take_over(make):
    world = make("h1", settings=short())
    agent = world.agents["h1"]
    agent.silent = True
    uuid = world.build()
    wait_for(lambda: agent.named("spawn"))
    agent.mute = True
    world.lose_and_regain(uuid)
    world.wait_state(uuid, VM_ERROR)
    assert len(agent.named("spawn")) >= 1


def test_a_step_that_this_release_does_not_know_is_left_alone(make):
    world = make("h1")
    agent = world.agents["h1"]
    agent.silent = True
    uuid = world.build()
    wait_for(lambda: agent.named("spawn"))
    world.engine.lose(range(256))
    row, task = world.instance(uuid), world.task(uuid)
    count = len(agent.commands)
    world.engine.gained([(row, msgspec.structs.replace(task, kind="resize"))])
    wait_for(lambda: world.engine.counts() == (1, 0, 0))
    assert (world.task(uuid), len(agent.commands)) == (task, count)


def test_a_delete_destroys_releases_and_owes_the_root(make):
    world = make("h1")
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.delete(uuid)
    row = world.wait_state(uuid, VM_DELETED)
    assert row.deleted_at_us is not None
    assert (world.agents["h1"].domains, world.claims, world.database.tables["tasks"]) == (set(), {}, {})
    wait_for(lambda: [entry.kind for entry in world.owed] == ["deleted"])
    assert len(world.database.tables["root_outbox"]) == 1
    with pytest.raises(InstanceNotFound):
        world.delete(uuid, operation_id="another")


def test_a_delete_replaces_a_running_build(make):
    world = make("h1")
    agent = world.agents["h1"]
    agent.silent = True
    uuid = world.build()
    wait_for(lambda: agent.named("spawn"))
    first = agent.named("spawn")[0]
    world.delete(uuid)
    assert world.instance(uuid).task_state == TASK_DELETING
    wait_for(lambda: agent.named("destroy"))
    agent.finish("spawn", first)  # the build's word comes too late
    wait_for(lambda: agent.verdicts == [VERDICT_SUPERSEDED])
    agent.finish("destroy", agent.named("destroy")[-1])
    world.wait_state(uuid, VM_DELETED)
    assert (agent.domains, world.claims) == (set(), {})
    wait_for(lambda: world.engine.counts() == (0, 0, 0))


def test_a_delete_with_an_unknown_task_in_memory_reads_it(make):
    world = make("h1")
    agent = world.agents["h1"]
    agent.silent = True
    uuid = world.build()
    wait_for(lambda: agent.named("spawn"))
    world.engine.lose(range(256))  # as between the gain of a partition and the reading of its tasks
    agent.silent = False
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)


def test_a_forced_down_host_counts_as_destroyed(make):
    world = make("h1")
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.agents["h1"].up = False
    world.forced = {"h1"}
    world.delete(uuid)
    world.wait_state(uuid, VM_DELETED)
    assert world.claims == {}


def test_a_destroy_that_fails_is_tried_again(make):
    world = make("h1")
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    agent = world.agents["h1"]
    agent.broken = True
    world.delete(uuid)
    wait_for(lambda: len(agent.named("destroy")) >= 2)
    agent.broken = False
    world.wait_state(uuid, VM_DELETED)
    attempts = [(order.attempt, order.generation) for order in agent.named("destroy")]
    assert attempts == sorted(set(attempts))


def test_a_delete_that_waits_for_no_host_any_more_is_ended_by_an_owner_that_comes_to_it_late(make):
    world = make("h1")
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.silent_releases = True
    world.delete(uuid)
    wait_for(lambda: world.calls["release"] and world.task(uuid).step == STEP_FINISH)
    world.engine.lose(range(256))
    world.silent_releases = False
    world.engine.gained([(world.instance(uuid), replace_task(world.task(uuid), deadline_at_us=1))])
    world.wait_state(uuid, VM_DELETED)
    assert world.instance(uuid).fault is None
    assert world.claims == {}


def test_a_delete_that_is_late_when_an_owner_gains_it_asks_its_linked_hosts_before_it_parks(make):
    world = make("h1")
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    world.agents["h1"].silent = True
    world.delete(uuid)
    wait_for(lambda: any(name == "destroy" for name, _ in world.agents["h1"].commands))
    world.engine.lose(range(256))
    world.agents["h1"].silent = False
    world.engine.gained([(world.instance(uuid), replace_task(world.task(uuid), deadline_at_us=1))])
    world.wait_state(uuid, VM_DELETED)
    assert world.instance(uuid).fault is None


def test_a_silent_delete_parks_and_a_second_delete_revives_it(make):
    world = make("h1", settings=short())
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    agent = world.agents["h1"]
    agent.silent = True
    world.delete(uuid)
    world.wait_state(uuid, VM_ERROR)
    agent.silent = False
    world.delete(uuid)  # the same operation: its outcome is known, nothing is done for it
    world.delete(uuid, operation_id="op-d2")
    world.wait_state(uuid, VM_DELETED)


def test_an_agent_that_knows_a_higher_generation_gets_one(make):
    world = make("h1")
    world.agents["h1"].generations["7b02e141-4345-4a36-8377-9833c4cfc97f"] = 3
    row = world.wait_state(world.build(), VM_ACTIVE)
    assert row.command_generation == 3


def test_the_limit_of_tasks_is_told_before_anything_is_written(make):
    world = make("h1", settings=replace(QUICK, tasks_max=0))
    with pytest.raises(Busy):
        world.build()
    assert world.database.tables["tasks"] == {}


def test_tasks_wait_in_order_behind_runners_max(make):
    world = make("h1", settings=replace(QUICK, runners_max=1))
    agent = world.agents["h1"]
    agent.silent = True
    uuids = [f"0000000{number}-0000-4000-8000-000000000000" for number in range(3)]
    for uuid in uuids:
        world.build(uuid=uuid)
    wait_for(lambda: agent.named("spawn"))
    assert world.engine.counts() == (3, 1, 2)
    assert {order.instance_uuid for order in agent.named("spawn")} == {uuids[0]}
    agent.silent = False
    for uuid in uuids:
        world.wait_state(uuid, VM_ACTIVE)


def test_a_lost_partition_ends_its_runners_where_they_are(make):
    world = make("h1")
    agent = world.agents["h1"]
    agent.silent = True
    uuid = world.build()
    wait_for(lambda: agent.named("spawn"))
    world.engine.lose(range(256))
    wait_for(lambda: world.engine.counts() == (0, 0, 0))
    row = world.instance(uuid)
    assert (row.vm_state, row.task_state, world.database.row(TASKS, (row.task_id,)).step) == (
        VM_BUILDING, TASK_SPAWNING, STEP_SPAWN,
    )  # fmt: skip


def test_a_delete_revived_while_its_parked_runner_looks_again_has_its_deadline(make):
    world = make("h1", settings=short())
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    agent = world.agents["h1"]
    agent.silent = True
    world.delete(uuid)
    world.wait_state(uuid, VM_ERROR)
    world.attach(agent)
    wait_for(lambda: world.engine.counts()[1] == 1)  # for revival_s_max
    world.delete(uuid, operation_id="op-d2")
    world.wait_state(uuid, VM_ERROR, TASK_DELETING)
    world.wait_state(uuid, VM_ERROR)
    assert world.task(uuid).state == TASK_PARKED


def test_a_result_committed_at_the_deadline_is_not_parked_over(make):
    world = make("h1", settings=short())
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    agent = world.agents["h1"]
    agent.silent = True
    world.delete(uuid)
    wait_for(lambda: agent.named("destroy"))
    gate = world.ledger_world.connection.gate
    gate.clear()
    agent.finish("destroy", agent.named("destroy")[-1])  # on its way to its commit when the deadline passes
    submit, parking = world.ledger.submit, []

    def submitted(*arguments):
        parking.append(submit(*arguments))
        return parking[-1]

    world.ledger.submit = submitted
    wait_for(lambda: parking)
    gate.set()
    world.wait_state(uuid, VM_DELETED)
    assert world.claims == {}


def test_a_later_deadline_counts_from_its_commit(make):
    world = make("h1")
    instance, task = new_build()
    run = TaskRun(world.engine._env, instance, replace_task(task, deadline_at_us=world.ledger.now_us()))
    run.set_deadline()
    later = replace_task(run.task, deadline_at_us=world.ledger.now_us() + 60_000_000, revision=task.revision + 1)
    run.learn(Snapshot(instance, later))
    assert run.left_ms(120_000) > 50_000


def test_a_refused_hand_over_leaves_no_task_without_a_runner(make):
    world = make("h1")
    world.silent_claims = 1_000_000
    uuid = world.build()
    partition = partition_of(uuid)
    world.ledger.on_gain(lambda _: world.engine.gained([(world.instance(uuid), world.task(uuid))]))
    wait_for(lambda: world.calls["claim"])
    world.ledger.leave([partition])
    world.silent_claims = 0
    wait_for(lambda: world.engine.counts() == (0, 0, 0))  # its journal met NotOwner
    world.ledger.stay([partition])
    world.wait_state(uuid, VM_ACTIVE)


def test_a_task_read_too_late_for_its_partition_does_not_hide_it_from_the_next_gain(make):
    world = make("h1")
    agent = world.agents["h1"]
    agent.silent = True
    uuid = world.build()
    wait_for(lambda: agent.named("spawn"))
    row, task = world.instance(uuid), world.task(uuid)
    world.ledger.leave([partition_of(uuid)])
    world.engine.lose([partition_of(uuid)])
    world.engine.gained([(row, task)])
    wait_for(lambda: world.engine.counts() == (0, 0, 0))
    agent.silent = False
    world.ledger.stay([partition_of(uuid)])
    world.engine.gained([(row, task)])
    world.wait_state(uuid, VM_ACTIVE)


def test_runners_that_never_began_give_their_place_up(make):
    world = make("h1", settings=replace(QUICK, runners_max=1))
    (first, first_task), (second, second_task) = new_build(), new_build()
    second = msgspec.structs.replace(second, uuid="00000000-0000-4000-8000-000000000000")
    second_task = replace_task(second_task, instance_uuid=second.uuid)
    world.engine.begin(first, first_task)
    world.engine.begin(second, second_task)
    world.engine.lose([partition_of(first.uuid)])
    assert world.engine.counts() == (1, 1, 0)


@pytest.mark.parametrize("operation_id", ["op-1", "op-2"])
def test_a_delete_repeated_after_its_end_and_a_take_over_has_its_first_outcome(make, operation_id):
    """op-1 began the delete, op-2 came while it was under way: both were accepted."""
    world = make("h1")
    uuid = world.build()
    world.wait_state(uuid, VM_ACTIVE)
    agent = world.agents["h1"]
    agent.silent = True
    world.delete(uuid, operation_id="op-1")
    wait_for(lambda: agent.named("destroy"))
    world.delete(uuid, operation_id="op-2")
    agent.finish("destroy", agent.named("destroy")[-1])
    world.wait_state(uuid, VM_DELETED)
    world.delete(uuid, operation_id=operation_id)
    heir = make(database=world.database)
    heir.delete(uuid, operation_id=operation_id)
    with pytest.raises(InstanceNotFound):
        heir.delete(uuid, operation_id="op-3")
    with pytest.raises(InstanceNotFound):
        heir.delete(uuid, operation_id=operation_id, project_id="another")
