"""The conductor's side of credit per lane: what a lane has no room for is answered at once, and nothing else waits."""

from collections.abc import Iterator

import gevent
import pytest

from tests.unit.conductor.cell.cell_world import Agent, CellWorld
from tests.unit.conductor.ledger_world import INSTANCES, instance, wait_for
from zcompute.conductor.lane import Lane
from zcompute.db.store import ConductorRow
from zcompute.objects.partition import partition_of
from zcompute.objects.report import VERDICT_APPLIED, VERDICT_BUSY, VERDICT_NOT_OWNER, Observation

UUIDS = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(12)]


@pytest.fixture
def world() -> Iterator[CellWorld]:
    made = CellWorld("h1")
    rows = [instance(uuid, host="h1", generation=1, vm_state="active") for uuid in UUIDS]
    made.database.seed(INSTANCES, *rows)
    yield made
    made.close()


def observe(agent: Agent, uuid: str, power_state: int) -> None:
    agent.report(Observation(instance_uuid=uuid, host="h1", generation=1, power_state=power_state))


def test_a_stalled_lane_takes_its_credit_and_says_busy_at_once(world: CellWorld) -> None:
    agent, ledger_world = world.agents["h1"], world.ledger_world
    ledger_world.connection.gate.clear()
    for uuid in UUIDS[:4]:
        observe(agent, uuid, 4)
    wait_for(lambda: len(agent.acks) == 2)
    assert agent.verdicts == [VERDICT_BUSY] * 2
    assert all(ack.lane == ledger_world.lane_id and ack.retry_after_ms > 0 for ack in agent.acks)
    assert agent.lanes.owed == {ledger_world.lane_id: 2}
    ledger_world.connection.gate.set()
    wait_for(lambda: len(agent.acks) == 4)
    assert [(ack.verdict, ack.lane) for ack in agent.acks[2:]] == [(VERDICT_APPLIED, ledger_world.lane_id)] * 2
    assert agent.lanes.owed == {}


def test_a_stalled_lane_keeps_back_no_other(world: CellWorld) -> None:
    agent, ledger_world = world.agents["h1"], world.ledger_world
    second = ledger_world.store.register(ConductorRow("s1", "i1", "tcp://127.0.0.1:1"), 1)[0]
    lane = Lane(
        second,
        1,
        ledger_world.store.open_lane(second, 1),
        ledger_world.limits,
        settled=world.ledger.settled,
        undo=world.ledger.undo,
        fail=ledger_world.end,
    )
    running = gevent.spawn(lane.run)
    quick = [uuid for uuid in UUIDS if partition_of(uuid) % 2]
    slow = [uuid for uuid in UUIDS if uuid not in quick]
    moved = sorted({partition_of(uuid) for uuid in quick})
    for partition in moved:
        world.database.partitions[partition] = (second, 9)
    world.ledger.gain((partition, 9, lane, 0) for partition in moved)
    ledger_world.connection.gate.clear()
    for uuid in (*slow, *quick[:2]):
        observe(agent, uuid, 4)
    wait_for(lambda: agent.verdicts.count(VERDICT_APPLIED) == 2)
    assert {ack.key for ack in agent.acks if ack.verdict == VERDICT_APPLIED} == set(quick[:2])
    assert agent.verdicts.count(VERDICT_BUSY) == len(slow) - 2
    ledger_world.connection.gate.set()
    wait_for(lambda: not agent.lanes.owed)
    running.kill()


def test_who_is_not_the_owner_says_by_which_map(world: CellWorld) -> None:
    agent = world.agents["h1"]
    observe(agent, UUIDS[0], 4)
    wait_for(lambda: agent.acks)
    world.ledger.lose([partition_of(UUIDS[0])])
    world.ledger.map.version = 17
    observe(agent, UUIDS[0], 1)
    wait_for(lambda: len(agent.acks) == 2)
    assert (agent.acks[1].verdict, agent.acks[1].version, agent.acks[1].lane) == (VERDICT_NOT_OWNER, 17, 0)
    assert agent.lanes.owed == {}
