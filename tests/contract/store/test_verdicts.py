"""Every verdict, by the very path that production takes: reports and conditional changes decided by a real ledger.

A verdict leaves when a batch that began after its decision has committed, whether it changed a row or not.
"""

import uuid
from collections.abc import Iterator
from typing import Any

import gevent
import msgspec
import pytest

from tests.unit.conductor.cell.cell_world import CellWorld
from tests.unit.conductor.ledger_world import instance, wait_for
from zcompute.bus import Report
from zcompute.bus.errors import NotOwner
from zcompute.conductor.incarnation import Incarnation
from zcompute.conductor.ledger import Change
from zcompute.conductor.settings import LeaseSettings, LifeSettings
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCES, Key, TableCodec
from zcompute.objects.errors import InstanceBusy
from zcompute.objects.partition import PARTITIONS, partition_of
from zcompute.objects.report import (
    FINAL_VERDICTS,
    VERDICT_ALREADY_THERE,
    VERDICT_APPLIED,
    VERDICT_INVALID,
    VERDICT_NOT_OWNER,
    VERDICT_NOT_YET,
    VERDICT_NOT_YOURS,
    VERDICT_STALE,
    VERDICT_SUPERSEDED,
    Observation,
)

EPOCH, SEQ, GENERATION = 1, 5, 3


class LivingWorld:
    """What a CellWorld stands on, with a whole life of a conductor on a real store."""

    def __init__(self, store: Store) -> None:
        sqlite = store.url.startswith("sqlite")
        self.store = store
        self.life = Incarnation(
            store,
            "c1",
            "s1",
            "tcp://127.0.0.1:1",
            settings=LifeSettings(lanes=1, lease=LeaseSettings.sqlite() if sqlite else LeaseSettings()),
            probe=lambda *_: False,
        )
        self.ledger = self.life.ledger
        self.database = self
        self._running = gevent.spawn(self.life.run)
        assert self.life.wait_ready(10_000), self.life.reason
        assert len(self.ledger.owned()) == PARTITIONS

    @property
    def batches(self) -> int:
        return sum(lane.batches for lane in self.life._lanes.values())

    def row(self, table: TableCodec[Any], key: Key) -> Any:
        return self.store.fetch(table, [key]).get(key)

    def close(self) -> None:
        self.life.stop(2000)
        self._running.join(timeout=10)


@pytest.fixture
def world(store: Store) -> Iterator[CellWorld]:
    made = CellWorld("h1", "h2", "h3", ledger_world=LivingWorld(store))
    yield made
    made.close()


def granted(world: CellWorld, **fields: Any) -> str:
    """An instance of h1's, observed already."""
    values = {
        "host": "h1", "vm_state": "active", "generation": GENERATION, "agent_epoch": EPOCH, "observed_seq": SEQ,
        "power_state": 1, "task_state": None,
    }  # fmt: skip
    row = instance(str(uuid.uuid4()), **{**values, **fields})
    world.ledger.commit(
        partition_of(row.uuid), [(INSTANCES, (row.uuid,))], lambda change: change.put(INSTANCES, row), timeout_ms=5000
    )
    return row.uuid


def report(world: CellWorld, host: str, uuid: str, seq: int, **fields: Any) -> str:
    """Report that the machine runs, and wait for the verdict."""
    agent = world.agents[host]
    values = {"instance_uuid": uuid, "host": host, "generation": GENERATION, "power_state": 4}
    payload = msgspec.msgpack.encode(Observation(**{**values, **fields}))
    before = len(agent.acks)
    world.reports.received(agent, [Report(uuid, seq, payload)])
    wait_for(lambda: len(agent.acks) > before)
    [ack] = agent.acks[before:]
    assert (ack.key, ack.seq) == (uuid, seq)
    return str(ack.verdict)


# verdict, host, sequence, fields of the report, fields of the instance
CASES = [
    (VERDICT_APPLIED, "h1", SEQ + 1, {}, {}),
    (VERDICT_APPLIED, "h1", 1, {}, {"agent_epoch": EPOCH - 1, "observed_seq": 99}),
    (VERDICT_ALREADY_THERE, "h1", SEQ, {}, {}),
    (VERDICT_STALE, "h1", SEQ - 1, {}, {}),
    (VERDICT_STALE, "h1", SEQ + 9, {}, {"agent_epoch": EPOCH + 1}),
    (VERDICT_SUPERSEDED, "h1", SEQ + 1, {"generation": GENERATION - 1}, {}),
    (VERDICT_SUPERSEDED, "h2", SEQ + 1, {"generation": GENERATION - 1}, {}),
    (VERDICT_SUPERSEDED, "h1", SEQ + 1, {}, {"vm_state": "deleted"}),
    (VERDICT_NOT_YET, "h2", SEQ + 1, {}, {"task_id": "a-task-not-read-yet"}),
    (VERDICT_NOT_YOURS, "h2", SEQ + 1, {}, {}),
    (VERDICT_NOT_YOURS, "h2", SEQ + 1, {"generation": 0}, {}),
    (VERDICT_INVALID, "h1", SEQ + 1, {"generation": GENERATION + 1}, {}),
]


@pytest.mark.parametrize(("verdict", "host", "seq", "fields", "row"), CASES)
def test_each_verdict_on_a_report_leaves_after_a_commit_and_changes_what_it_says(
    world: CellWorld, verdict: str, host: str, seq: int, fields: dict[str, Any], row: dict[str, Any]
) -> None:
    uuid = granted(world, **row)
    before, batches = world.instance(uuid), world.ledger_world.batches
    assert report(world, host, uuid, seq, **fields) == verdict
    assert world.ledger_world.batches > batches
    after = world.instance(uuid)
    if verdict != VERDICT_APPLIED:
        assert after == before
        return
    assert (after.power_state, after.agent_epoch, after.observed_seq) == (4, EPOCH, seq)
    assert after.revision == before.revision + 1
    assert (after.vm_state, after.host, after.decided) == (before.vm_state, before.host, before.decided)


def test_an_instance_that_is_not_there_is_nobodys(world: CellWorld) -> None:
    assert report(world, "h1", str(uuid.uuid4()), 1) == VERDICT_NOT_YOURS


def test_a_report_that_came_twice_is_applied_and_already_there(world: CellWorld) -> None:
    uuid = granted(world)
    assert [report(world, "h1", uuid, SEQ + 1) for _ in range(2)] == [VERDICT_APPLIED, VERDICT_ALREADY_THERE]


def test_who_has_lost_the_partition_says_not_owner(world: CellWorld) -> None:
    uuid = granted(world)
    world.ledger.leave([partition_of(uuid)])
    before = world.instance(uuid)
    assert report(world, "h1", uuid, SEQ + 1) == VERDICT_NOT_OWNER
    assert world.instance(uuid) == before


def test_a_verdict_that_was_decided_by_one_that_is_fenced_never_leaves(world: CellWorld, store: Store) -> None:
    """Neither of a change nor of a read: not_owner is all that may be said."""
    uuid = granted(world)
    [heir] = store.register(msgspec.structs.replace(_me(store), service_id="s2", incarnation="s2-1"), 1)
    store.take_over([world.ledger_world.life.id], [heir], 1)
    assert report(world, "h1", uuid, SEQ + 1) == VERDICT_NOT_OWNER
    with pytest.raises(NotOwner):
        world.ledger.commit(
            partition_of(uuid), [(INSTANCES, (uuid,))], lambda change: change.get(INSTANCES, (uuid,)), timeout_ms=5000
        )
    assert world.instance(uuid).observed_seq == SEQ


def _me(store: Store) -> Any:
    return store.read_map().conductors["s1"]


def test_a_conditional_change_that_meets_another_task_state_says_so_and_changes_nothing(world: CellWorld) -> None:
    """unexpected_task_state, on the wire InstanceBusy: decided against the newest row, in the order of submission."""
    uuid = granted(world)

    def begin(task_state: str) -> Any:
        def decide(change: Change) -> str:
            row = change.get(INSTANCES, (uuid,))
            assert row is not None
            if row.task_state is not None:
                raise InstanceBusy("a task is under way", uuid=uuid, vm_state=row.vm_state, task_state=row.task_state)
            change.put(INSTANCES, msgspec.structs.replace(row, task_state=task_state))
            return task_state

        return decide

    partition, keys = partition_of(uuid), [(INSTANCES, (uuid,))]
    tickets = [world.ledger.submit(partition, keys, begin(name)) for name in ("rebooting", "powering-off", "resizing")]
    assert tickets[0].wait(5000) == "rebooting"
    for ticket in tickets[1:]:
        with pytest.raises(InstanceBusy, match="under way") as refused:
            ticket.wait(5000)
        assert refused.value.details["task_state"] == "rebooting"
    assert world.instance(uuid).task_state == "rebooting"
    assert world.instance(uuid).revision == 2, "one conditional change was taken, none was joined with another"


def test_every_final_verdict_is_among_these() -> None:
    assert {case[0] for case in CASES} >= FINAL_VERDICTS
