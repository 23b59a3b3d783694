"""The conductor's side of credit per lane: what a lane has no room for is answered at once, and nothing else waits."""

from collections.abc import Iterator
from types import SimpleNamespace

import gevent
import msgspec
import pytest

from tests.unit.conductor.cell.cell_world import Agent, CellWorld
from tests.unit.conductor.ledger_world import INSTANCES, instance, wait_for
from zcompute.bus import Report
from zcompute.conductor.lane import Lane
from zcompute.db.store import ConductorRow
from zcompute.db.tables import NOTIFICATIONS
from zcompute.objects.base import unpack
from zcompute.objects.notification import Notification, payload_document
from zcompute.objects.partition import partition_of
from zcompute.objects.relay import RelayedReport
from zcompute.objects.report import (
    VERDICT_ALREADY_THERE,
    VERDICT_APPLIED,
    VERDICT_BUSY,
    VERDICT_NOT_OWNER,
    Observation,
)

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


def test_what_the_agent_had_to_fold_is_told_once_in_the_transaction_of_the_state(world: CellWorld) -> None:
    agent = world.agents["h1"]
    seen = Observation(instance_uuid=UUIDS[0], host="h1", generation=1, power_state=4, folded=3)
    for _ in range(2):
        world.reports.received(agent, [Report(UUIDS[0], 7, msgspec.msgpack.encode(seen))])  # type: ignore[arg-type]
    wait_for(lambda: agent.verdicts == [VERDICT_APPLIED, VERDICT_ALREADY_THERE])
    rows = [NOTIFICATIONS.from_row(row) for _, row in sorted(world.database.tables["notifications"].items())]
    assert [row.event_type for row in rows] == ["instance.update", "instance.events_folded"]
    body = unpack(rows[1].body, Notification)
    assert payload_document(body.payload)["data"]["count"] == 3
    observe(agent, UUIDS[0], 1)
    wait_for(lambda: len(agent.acks) == 3)
    assert len(world.database.tables["notifications"]) == 2, "that one is stale"


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


@pytest.fixture
def fellow(world: CellWorld) -> Agent:
    """Another conductor that hands on for host h1; its epoch 1 has been checked."""
    made = Agent(world, "h1")
    made.peer = SimpleNamespace(role="conductor", cell="c1", service_id="k2", hosts=frozenset())
    world.attachments.attach(made, {"h1": 1})
    return made


def hand_on(fellow: Agent, number: int, seq: int, power_state: int, *, host: str = "h1", epoch: int = 1) -> None:
    body = Observation(instance_uuid=UUIDS[0], host="h1", generation=1, power_state=power_state)
    relayed = RelayedReport(
        host=host, service_id="a", incarnation="i", agent_epoch=epoch, seq=seq, payload=msgspec.msgpack.encode(body)
    )
    fellow.world.reports.received(fellow, [Report(UUIDS[0], number, msgspec.msgpack.encode(relayed))])


def test_the_agents_sequence_decides_and_the_relays_number_is_answered(world: CellWorld, fellow: Agent) -> None:
    hand_on(fellow, number=9, seq=6, power_state=4)
    wait_for(lambda: fellow.verdicts == [VERDICT_APPLIED])
    hand_on(fellow, number=10, seq=5, power_state=1)
    hand_on(fellow, number=11, seq=6, power_state=4)
    wait_for(lambda: len(fellow.acks) == 3)
    assert [(ack.seq, ack.verdict) for ack in fellow.acks[1:]] == [(10, "stale"), (11, "already_there")]
    row = world.instance(UUIDS[0])
    assert (row.power_state, row.observed_seq, row.agent_epoch) == (4, 6, 1)


def test_the_same_report_over_both_ways_is_applied_once(world: CellWorld, fellow: Agent) -> None:
    agent = world.agents["h1"]
    observe(agent, UUIDS[0], 4)
    hand_on(fellow, number=1, seq=1, power_state=4)
    wait_for(lambda: agent.acks and fellow.acks)
    assert sorted([*agent.verdicts, *fellow.verdicts]) == ["already_there", VERDICT_APPLIED]


def test_a_relay_speaks_only_of_the_host_that_it_vouches_for(world: CellWorld, fellow: Agent) -> None:
    world.attachments.attach(fellow, {"h2": 1})
    hand_on(fellow, number=1, seq=1, power_state=4, host="h2")
    wait_for(lambda: fellow.verdicts == ["invalid"])


def test_what_a_fellow_hands_on_is_never_handed_on_again(world: CellWorld, fellow: Agent) -> None:
    handed: list[object] = []
    world.relay.report = lambda *what: handed.append(what)
    world.ledger.lose([partition_of(UUIDS[0])])
    hand_on(fellow, number=1, seq=1, power_state=4)
    wait_for(lambda: fellow.verdicts == [VERDICT_NOT_OWNER])
    assert handed == []


def test_a_compute_that_sends_a_relayed_report_is_refused(world: CellWorld) -> None:
    agent = world.agents["h1"]
    hand_on(agent, number=1, seq=1, power_state=4)
    wait_for(lambda: agent.verdicts == ["invalid"])
    assert world.instance(UUIDS[0]).observed_seq == 0
