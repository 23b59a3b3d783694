"""Numbers of notifications: gapless, in the order of commits, whatever is refused, resent, lost or handed over."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.conductor.ledger_fake import LOST_AFTER, LOST_BEFORE
from tests.unit.conductor.ledger_world import FLAVORS, GLOBAL, World, wait_for
from zcompute.bus.errors import InvalidRequest
from zcompute.conductor.errors import LedgerMisuse, WrongPartition
from zcompute.conductor.ledger import Change
from zcompute.conductor.settings import LedgerLimits
from zcompute.db.batch import HandOver
from zcompute.db.store import ConductorRow
from zcompute.db.tables import INSTANCE_ACTION_EVENTS
from zcompute.objects.base import unpack
from zcompute.objects.history import InstanceActionEvent
from zcompute.objects.notification import Notification
from zcompute.objects.partition import partition_of

UUID = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def put_and_tell(world: World, flavorid: str, *names: str, **fields: Any) -> Any:
    """A decision that puts a flavor and tells of it, once under each name."""
    put = world.put_flavor(flavorid, **fields)

    def decide(change: Change) -> None:
        put(change)
        for name in names:
            change.notify(Notification(event_type=name, publisher_id="c1"))

    return decide


def told(world: World) -> list[tuple[int, int, str]]:
    return [(row[0], row[1], row[3]) for row in world.database.tables["notifications"].values()]


def test_each_decision_of_a_batch_keeps_its_notifications_in_order_though_its_rows_coalesce(world: World) -> None:
    world.connection.gate.clear()
    world.submit("1", put_and_tell(world, "1", "first"))
    wait_for(lambda: len(world.connection.sent) > world.lane.applied)
    tickets = [world.submit("1", put_and_tell(world, "1", f"a{n}", f"b{n}", memory_mb=n)) for n in range(3)]
    world.connection.gate.set()
    for ticket in tickets:
        ticket.wait(1000)
    names = ["first", "a0", "b0", "a1", "b1", "a2", "b2"]
    assert told(world) == [(GLOBAL, n, name) for n, name in enumerate(names, 1)]
    assert world.database.last_n[GLOBAL] == world.ledger.last_n(GLOBAL) == 7
    assert world.database.commits[-1].rows() == 1 + 6


def test_a_refused_change_leaves_no_gap_and_those_behind_it_are_numbered_anew(world: World) -> None:
    world.connection.gate.clear()
    world.submit("0", put_and_tell(world, "0", "first"))
    wait_for(lambda: len(world.connection.sent) > world.lane.applied)
    good = [world.submit(str(n), put_and_tell(world, str(n), f"good{n}")) for n in (1, 2)]
    bad = world.submit("3", put_and_tell(world, "3", "bad", name="x" * 300))
    good += [world.submit(str(n), put_and_tell(world, str(n), f"good{n}")) for n in (4, 5)]
    world.connection.gate.set()
    for ticket in good:
        ticket.wait(1000)
    with pytest.raises(InvalidRequest):
        bad.wait(1000)
    names = ["first", "good1", "good2", "good4", "good5"]
    assert told(world) == [(GLOBAL, n, name) for n, name in enumerate(names, 1)]


def test_what_decide_raises_tells_nothing(world: World) -> None:
    def decide(change: Change) -> None:
        put_and_tell(world, "1", "never")(change)
        raise KeyError("no")

    with pytest.raises(KeyError):
        world.commit("1", decide)
    world.commit("1", put_and_tell(world, "1", "once"))
    assert told(world) == [(GLOBAL, 1, "once")]


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER])
def test_a_batch_that_is_resent_tells_once(world: World, fault: str) -> None:
    world.connection.faults.append(fault)
    world.commit("1", put_and_tell(world, "1", "once"))
    world.commit("1", put_and_tell(world, "1", "twice"))
    assert told(world) == [(GLOBAL, 1, "once"), (GLOBAL, 2, "twice")]


def test_a_foreign_number_ends_the_incarnation(world: World) -> None:
    world.commit("1", put_and_tell(world, "1", "once"))
    world.database.last_n[GLOBAL] = 9
    world.submit("1", put_and_tell(world, "1", "never"))
    wait_for(lambda: world.reason)
    assert "last_n" in world.reason
    assert told(world) == [(GLOBAL, 1, "once")]


def test_the_next_owner_goes_on_where_the_last_word_left_off(world: World) -> None:
    world.commit("1", put_and_tell(world, "1", "once"))
    (heir,) = world.store.register(ConductorRow("s2", "i2", ""), 1)
    world.ledger.leave([GLOBAL])
    world.lane.hand_over(HandOver([GLOBAL], heir)).wait(1000)
    world.ledger.lose([GLOBAL])
    assert GLOBAL not in world.lane.last_n
    row = next(row for row in world.store.read_map().partitions if row.partition_id == GLOBAL)
    assert (row.lane_id, row.last_n) == (heir, 1)


def test_listeners_hear_what_has_committed_in_order(world: World) -> None:
    heard: list[tuple[int, int, list[str]]] = []

    def broken(partition: int, first: int, notes: Any) -> None:
        raise RuntimeError("a listener's mistake")

    world.ledger.on_told(broken)
    world.ledger.on_told(lambda p, first, notes: heard.append((p, first, [note.event_type for note in notes])))
    world.connection.gate.clear()
    world.submit("1", put_and_tell(world, "1", "a", "b"))
    last = world.submit("1", put_and_tell(world, "1", "c"))
    assert heard == []
    world.connection.gate.set()
    last.wait(1000)
    assert heard == [(GLOBAL, 1, ["a", "b"]), (GLOBAL, 3, ["c"])]


def test_a_hook_sees_every_change_of_rows_and_may_tell_of_it(world: World) -> None:
    seen: list[Any] = []

    def hook(change: Change) -> None:
        seen.append([(put.former, put.image) for put in change.puts.values()])
        change.notify(Notification(event_type="derived", publisher_id="c1"))

    world.ledger.on_decided(hook)
    put = world.commit("1", world.put_flavor("1"))
    world.commit("1", lambda change: change.get(FLAVORS, ("1",)))
    assert seen == [[(None, put)]]
    assert told(world) == [(GLOBAL, 1, "derived")]


def test_a_payload_over_the_limit_is_left_out_and_that_is_said() -> None:
    world = World(LedgerLimits(retry_ms_min=1, notification_bytes_max=200))

    def decide(change: Change) -> None:
        for size in (10, 1000):
            change.notify(Notification(event_type="big", publisher_id="c1", payload=b"x" * size))

    world.ledger.commit(GLOBAL, [], decide, timeout_ms=1000)
    bodies = [unpack(row[5], Notification) for row in world.database.tables["notifications"].values()]
    assert [(len(body.payload), body.truncated) for body in bodies] == [(10, False), (0, True)]
    world.close()


def test_notifications_count_for_the_limits_of_a_batch() -> None:
    world = World(LedgerLimits(retry_ms_min=1, batch_rows_max=4))
    world.connection.gate.clear()
    world.submit("0", put_and_tell(world, "0"))
    wait_for(lambda: len(world.connection.sent) > world.lane.applied)
    tickets = [world.submit(str(n), put_and_tell(world, str(n), "a")) for n in range(1, 5)]
    wait_for(lambda: world.lane.queued_rows == 1 + 8)
    world.connection.gate.set()
    for ticket in tickets:
        ticket.wait(1000)
    assert [batch.rows() for batch in world.database.commits if batch.changes] == [1, 4, 4]
    assert world.lane.queued_rows == 0
    world.close()


def test_a_purge_goes_through_the_lane(world: World) -> None:
    for name in "abc":
        world.commit("1", put_and_tell(world, "1", name))
    world.ledger.commit(GLOBAL, [], lambda change: change.purge(1, 2), timeout_ms=1000)
    assert told(world) == [(GLOBAL, 3, "c")]
    assert world.database.last_n[GLOBAL] == 3


def event(**fields: Any) -> InstanceActionEvent:
    return InstanceActionEvent(instance_uuid=UUID, operation_id="op", task_id="t", event="compute_spawn", **fields)


def test_an_appended_row_is_inserted_unread_and_a_repeat_fails_alone(world: World) -> None:
    partition = partition_of(UUID)
    before = len(world.database.fetches)
    world.ledger.commit(partition, [], lambda c: c.append(INSTANCE_ACTION_EVENTS, event()), timeout_ms=1000)
    with pytest.raises(InvalidRequest):
        world.ledger.commit(partition, [], lambda c: c.append(INSTANCE_ACTION_EVENTS, event()), timeout_ms=1000)
    world.ledger.commit(partition, [], lambda c: c.append(INSTANCE_ACTION_EVENTS, event(attempt=2)), timeout_ms=1000)
    assert len(world.database.fetches) == before
    assert len(world.database.tables["instance_action_events"]) == 2


def test_only_rows_that_never_change_are_appended_and_only_at_home(world: World) -> None:
    with pytest.raises(LedgerMisuse):
        world.ledger.commit(GLOBAL, [], lambda c: c.append(FLAVORS, world.put_flavor("1")(c)), timeout_ms=1000)
    with pytest.raises(WrongPartition):
        world.ledger.commit(
            (partition_of(UUID) + 1) % 256, [], lambda c: c.append(INSTANCE_ACTION_EVENTS, event()), timeout_ms=1000
        )
