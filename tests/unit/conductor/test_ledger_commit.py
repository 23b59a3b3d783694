"""Verdicts: when they leave, what they rest on, and what a refusal, a doubt or a loss does to them."""

from collections.abc import Iterator
from typing import Any

import gevent
import msgspec
import pytest

from tests.unit.conductor.ledger_fake import BUSY, LOST_AFTER, LOST_BEFORE
from tests.unit.conductor.ledger_world import FLAVORS, GLOBAL, INSTANCES, World, flavor, instance, wait_for
from zcompute.bus.errors import Busy, DeadlineExceeded, InvalidRequest, NotOwner
from zcompute.conductor.errors import LedgerMisuse, NotLoaded, WrongPartition
from zcompute.conductor.ledger import Change
from zcompute.conductor.settings import LedgerLimits
from zcompute.db.batch import HandOver
from zcompute.db.errors import ConnectionLost, ReceiverDead
from zcompute.db.store import ConductorRow
from zcompute.db.tables import TASKS
from zcompute.objects.partition import partition_of
from zcompute.objects.task import Task


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_a_commit_returns_what_decide_returned_after_the_row_is_stored(world: World) -> None:
    put = world.commit("1", world.put_flavor("1", name="a"))
    assert put.revision == 1
    assert world.stored("1") == put


def test_no_verdict_leaves_before_its_batch_has_committed(world: World) -> None:
    world.connection.gate.clear()
    ticket = world.submit("1", world.put_flavor("1"))
    with pytest.raises(DeadlineExceeded):
        ticket.wait(50)
    assert not ticket.done
    world.connection.gate.set()
    ticket.wait(1000)
    assert world.stored("1") is not None


def test_a_decision_that_writes_nothing_waits_for_a_batch_that_began_after_it(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="a"))
    world.connection.gate.clear()
    first = world.submit("1", world.put_flavor("1", name="b"))
    wait_for(lambda: len(world.connection.sent) > world.lane.applied)
    reads = [world.submit("1", lambda change: change.get(FLAVORS, ("1",)).name) for _ in range(5)]
    before = world.lane.applied
    world.connection.gate.set()
    assert [read.wait(1000) for read in reads] == ["b"] * 5
    assert first.done
    assert world.lane.applied == before + 2, "one empty batch, shared by all who waited"


def test_an_error_of_decide_keeps_nothing_and_is_raised_after_a_later_batch(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="a"))

    def decide(change: Change) -> None:
        change.put(FLAVORS, flavor("1", name="never"))
        raise KeyError("no")

    world.connection.gate.clear()
    ticket = world.submit("1", decide)
    gevent.sleep(0.02)
    assert not ticket.done
    world.connection.gate.set()
    with pytest.raises(KeyError):
        ticket.wait(1000)
    assert world.commit("1", lambda change: change.get(FLAVORS, ("1",)).name) == "a"


def test_decisions_see_what_was_decided_before_them_though_it_has_not_committed(world: World) -> None:
    world.connection.gate.clear()
    tickets = [world.submit("1", world.add_ram("1")) for _ in range(10)]
    world.connection.gate.set()
    assert [ticket.wait(1000) for ticket in tickets] == list(range(1, 11))
    stored = world.stored("1")
    assert stored is not None
    assert (stored.memory_mb, stored.revision) == (10, 10)


def test_changes_of_one_row_within_a_batch_are_one_row_of_it(world: World) -> None:
    world.commit("1", world.add_ram("1"))
    batches = len(world.database.commits)
    tickets = [world.submit("1", world.add_ram("1")) for _ in range(10)]
    for ticket in tickets:
        ticket.wait(1000)
    rows = [batch.rows() for batch in world.database.commits[batches:]]
    assert sum(rows) == len(rows) <= 2


def test_rows_wanted_at_once_are_read_with_one_fetch(world: World) -> None:
    world.database.seed(FLAVORS, *(flavor(str(n)) for n in range(50)))
    tickets = [world.submit(str(n), world.add_ram(str(n))) for n in range(50)]
    for ticket in tickets:
        ticket.wait(1000)
    assert [len(keys) for _, keys in world.database.fetches] == [50]


def test_a_row_that_is_absent_is_read_once(world: World) -> None:
    for _ in range(3):
        assert world.commit("none", lambda change: change.get(FLAVORS, ("none",))) is None
    assert len(world.database.fetches) == 1


def test_decisions_of_a_partition_are_made_in_the_order_of_submission_whatever_must_be_read(world: World) -> None:
    order: list[str] = []

    def note(name: str) -> Any:
        return lambda change: order.append(name)

    world.commit("known", world.put_flavor("known"))
    world.store.fetch_gate.clear()
    tickets = [
        world.submit("new1", note("new1")),
        world.submit("known", note("known")),
        world.submit("new2", note("new2")),
    ]
    gevent.sleep(0.02)
    assert order == []
    world.store.fetch_gate.set()
    for ticket in tickets:
        ticket.wait(1000)
    assert order == ["new1", "known", "new2"]


def test_a_call_that_gives_up_while_its_rows_are_read_is_never_decided(world: World) -> None:
    decided: list[int] = []
    world.store.fetch_gate.clear()
    with pytest.raises(DeadlineExceeded):
        world.commit("1", lambda change: decided.append(1), timeout_ms=30)
    world.store.fetch_gate.set()
    world.commit("1", lambda change: decided.append(2))
    assert decided == [2]


@pytest.mark.parametrize("fault", [LOST_BEFORE, LOST_AFTER])
def test_a_lost_connection_costs_nothing_and_repeats_nothing(world: World, fault: str) -> None:
    world.commit("1", world.add_ram("1"))
    world.connection.faults.append(fault)
    assert world.commit("1", world.add_ram("1")) == 2
    stored = world.stored("1")
    assert stored is not None
    assert stored.memory_mb == 2
    assert world.connection.reconnects == 1
    numbers = [number for number, _ in world.connection.sent]
    assert len({nonce for number, nonce in world.connection.sent if number == numbers[2]}) == 1, "the same bytes again"


def test_a_resend_found_applied_gives_no_verdict_before_a_barrier_has_committed(world: World) -> None:
    world.connection.faults.extend([LOST_AFTER])
    before = world.lane.applied
    world.commit("1", world.add_ram("1"))
    assert world.lane.applied == before + 2
    assert world.database.commits[-1].changes == []


def test_a_barrier_that_is_lost_too_needs_another(world: World) -> None:
    world.connection.faults.extend([LOST_AFTER, "", LOST_AFTER])
    before = world.lane.applied
    assert world.commit("1", world.add_ram("1")) == 1
    assert world.lane.applied == before + 3


def test_a_busy_database_is_asked_again(world: World) -> None:
    world.connection.faults.extend([BUSY, BUSY])
    assert world.commit("1", world.add_ram("1")) == 1


def test_no_database_for_too_long_ends_the_incarnation() -> None:
    world = World(LedgerLimits(retry_ms_min=1, retry_ms_max=5, lane_retry_s_max=0.1))
    world.commit("1", world.add_ram("1"))
    world.database.down = True
    with pytest.raises(NotOwner):
        world.commit("1", world.add_ram("1"))
    assert "no database" in world.reason
    world.close()


def test_a_fenced_lane_ends_all_and_every_waiting_call_is_told(world: World) -> None:
    lost: list[list[int]] = []
    world.ledger.on_lose(lost.append)
    world.commit("1", world.put_flavor("1", name="a"))
    world.connection.gate.clear()
    in_flight = world.submit("1", world.put_flavor("1", name="b"))
    wait_for(lambda: len(world.connection.sent) > world.lane.applied)
    filling = world.submit("1", world.put_flavor("1", name="c"))
    world.store.fetch_gate.clear()
    loading = world.submit("2", world.put_flavor("2"))
    world.database.kill("i1", [])
    world.connection.gate.set()
    for ticket in (in_flight, filling, loading):
        with pytest.raises(NotOwner):
            ticket.wait(1000)
    with pytest.raises(NotOwner):
        world.commit("1", world.put_flavor("1"))
    stored = world.stored("1")
    assert stored is not None
    assert stored.name == "a"
    wait_for(lambda: lost == [list(range(256))])


def test_a_guard_that_fails_ends_the_incarnation(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="a"))
    del world.database.tables["flavors"][("1",)]
    with pytest.raises(NotOwner):
        world.commit("1", world.put_flavor("1", name="b"))
    assert "another row" in world.reason


def test_a_refused_row_fails_its_own_change_only(world: World) -> None:
    world.connection.gate.clear()
    tickets = [world.submit(str(n), world.put_flavor(str(n), name="x" * (300 if n == 7 else 3))) for n in range(20)]
    world.connection.gate.set()
    for n, ticket in enumerate(tickets):
        if n == 7:
            with pytest.raises(InvalidRequest, match="too long"):
                ticket.wait(1000)
        else:
            ticket.wait(1000)
    assert world.stored("7") is None
    assert all(world.stored(str(n)) is not None for n in range(20) if n != 7)
    assert world.commit("7", lambda change: change.get(FLAVORS, ("7",))) is None, "the cache forgot it too"


def test_what_was_decided_upon_a_refused_row_is_to_be_submitted_again(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="good"))
    world.connection.gate.clear()
    blocker = world.submit("0", world.put_flavor("0"))
    before = world.submit("1", world.add_ram("1"))
    bad = world.submit("1", world.put_flavor("1", name="x" * 300))
    upon = world.submit("1", world.add_ram("1"))
    keys = world.flavor_keys("1", "2")

    def copy(change: Change) -> None:
        former = change.get(FLAVORS, ("1",))
        assert former is not None
        change.put(FLAVORS, flavor("2", name=former.name[:5]))

    derived = world.ledger.submit(GLOBAL, keys, copy)
    derived_again = world.submit("2", world.add_ram("2"))
    other = world.submit("3", world.add_ram("3"))
    world.connection.gate.set()
    assert blocker.wait(1000)
    assert before.wait(1000) == 513
    with pytest.raises(InvalidRequest):
        bad.wait(1000)
    for ticket in (upon, derived, derived_again):
        with pytest.raises(Busy):
            ticket.wait(1000)
    assert other.wait(1000) == 1
    assert world.commit("1", world.add_ram("1")) == 514
    stored = world.stored("1")
    assert stored is not None
    assert (stored.name, stored.memory_mb) == ("good", 514)
    assert world.stored("2") is None
    assert not world.reason


def test_a_refusal_without_a_key_is_narrowed_down_by_halves(world: World) -> None:
    uuid = "8a3c6b62-0000-4000-8000-000000000001"
    partition = partition_of(uuid)

    def add(task_id: str) -> Any:
        def decide(change: Change) -> None:
            assert change.get(TASKS, (task_id,)) is None
            change.put(TASKS, Task(id=task_id, instance_uuid=uuid, kind="build", step="s"))

        return world.ledger.submit(partition, [(TASKS, (task_id,))], decide)

    world.connection.gate.clear()
    tickets = [add("t1"), *(world.submit(str(n), world.put_flavor(str(n))) for n in range(5)), add("t2")]
    world.connection.gate.set()
    for ticket in tickets[:-1]:
        ticket.wait(1000)
    with pytest.raises(InvalidRequest, match="duplicate"):
        tickets[-1].wait(1000)


def test_a_row_replaced_by_another_with_the_same_unique_value_goes_in_one_commit(world: World) -> None:
    uuid = "8a3c6b62-0000-4000-8000-000000000001"
    partition = partition_of(uuid)
    world.database.seed(TASKS, Task(id="t9", instance_uuid=uuid, kind="build", step="s"))

    def replace(change: Change) -> None:
        change.delete(TASKS, ("t9",))
        change.put(TASKS, Task(id="t1", instance_uuid=uuid, kind="delete", step="s"))

    world.ledger.commit(partition, [(TASKS, ("t9",)), (TASKS, ("t1",))], replace, timeout_ms=1000)
    assert list(world.database.tables["tasks"]) == [("t1",)]


def test_an_unstorable_value_is_refused_before_it_reaches_a_batch(world: World) -> None:
    world.commit("1", world.put_flavor("1"))

    def decide(change: Change) -> None:
        change.put(FLAVORS, flavor("1", extra_specs={"a": object()}))

    with pytest.raises(InvalidRequest):
        world.commit("1", decide)


def test_more_rows_than_a_change_may_have_are_refused() -> None:
    world = World(LedgerLimits(decision_rows_max=3))

    def decide(change: Change) -> None:
        for n in range(4):
            change.put(FLAVORS, flavor(str(n)))

    with pytest.raises(InvalidRequest, match="at most 3"):
        world.ledger.commit(GLOBAL, world.flavor_keys(*"0123"), decide, timeout_ms=1000)
    world.close()


def test_a_full_queue_says_busy_and_recovers() -> None:
    world = World(LedgerLimits(filling_rows_max=5, batch_rows_max=2))
    world.commit("1", world.add_ram("1"))
    world.connection.gate.clear()
    tickets = [world.submit("1", world.add_ram("1")) for _ in range(5)]
    with pytest.raises(Busy) as busy:
        world.submit("1", world.add_ram("1"))
    assert busy.value.retry_after_ms > 0
    world.connection.gate.set()
    assert [ticket.wait(1000) for ticket in tickets] == [2, 3, 4, 5, 6]
    assert world.commit("1", world.add_ram("1")) == 7
    assert (world.lane.queued_rows, world.lane.queued_bytes) == (0, 0)
    world.close()


def test_too_many_calls_waiting_for_rows_say_busy() -> None:
    world = World(LedgerLimits(waiting_decisions_max=2))
    world.store.fetch_gate.clear()
    tickets = [world.submit(str(n), world.add_ram(str(n))) for n in range(2)]
    with pytest.raises(Busy):
        world.submit("9", world.add_ram("9"))
    world.store.fetch_gate.set()
    for ticket in tickets:
        ticket.wait(1000)
    assert world.commit("9", world.add_ram("9")) == 1
    world.close()


def test_misuse_is_an_error_of_the_call_that_makes_it(world: World) -> None:
    world.commit("1", world.put_flavor("1"))
    with pytest.raises(NotLoaded):
        world.commit("1", lambda change: change.get(FLAVORS, ("2",)))
    with pytest.raises(NotLoaded):
        world.commit("1", lambda change: change.put(FLAVORS, flavor("2")))
    with pytest.raises(LedgerMisuse):
        world.commit("1", lambda change: change.put(FLAVORS, change.get(FLAVORS, ("1",))))
    with pytest.raises(LedgerMisuse):
        world.commit("1", lambda change: world.submit("1", lambda inner: None))
    uuid = "8a3c6b62-0000-4000-8000-000000000001"
    keys = [(INSTANCES, (uuid,))]
    assert partition_of(uuid) != GLOBAL
    with pytest.raises(WrongPartition):
        world.ledger.commit(GLOBAL, keys, lambda change: change.put(INSTANCES, instance(uuid)), timeout_ms=1000)
    world.database.seed(INSTANCES, instance(uuid.replace("1", "2")))
    with pytest.raises(WrongPartition):
        world.ledger.commit(GLOBAL, [(INSTANCES, (uuid.replace("1", "2"),))], lambda change: None, timeout_ms=1000)
    assert not world.reason


def test_a_read_that_fails_is_tried_again_and_an_unreadable_row_fails_alone(world: World) -> None:
    world.store.fetch_errors.append(ConnectionLost("gone"))
    assert world.commit("1", world.add_ram("1")) == 1
    world.database.seed(FLAVORS, flavor("good"), flavor("bad"))
    row = world.database.tables["flavors"][("bad",)]
    at = FLAVORS.columns.index("extra_specs")
    world.database.tables["flavors"][("bad",)] = (*row[:at], b"\xc1", *row[at + 1 :])
    good, bad = world.submit("good", world.add_ram("good")), world.submit("bad", world.add_ram("bad"))
    assert good.wait(1000) == 513
    with pytest.raises(msgspec.DecodeError):
        bad.wait(1000)
    assert world.commit("good", world.add_ram("good")) == 514


def test_insert_and_delete_within_a_batch_leave_nothing_and_a_row_that_comes_back_is_an_update(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="a"))
    world.connection.gate.clear()
    blocker = world.submit("0", world.put_flavor("0"))
    gevent.sleep(0.01)
    come = world.submit("2", world.put_flavor("2"))
    go = world.submit("2", lambda change: change.delete(FLAVORS, ("2",)))
    leave = world.submit("1", lambda change: change.delete(FLAVORS, ("1",)))
    again = world.submit("1", world.put_flavor("1", name="b"))
    world.connection.gate.set()
    for ticket in (blocker, come, go, leave, again):
        ticket.wait(1000)
    stored = world.stored("1")
    assert stored is not None
    assert (stored.name, stored.revision) == ("b", 2)
    assert world.stored("2") is None


def test_callbacks_run_once_and_one_that_fails_keeps_nobody_back(world: World) -> None:
    seen: list[Any] = []

    def fail(_: Any) -> None:
        raise RuntimeError("a caller's mistake")

    ticket = world.submit("1", world.add_ram("1"))
    ticket.on_done(fail)
    ticket.on_done(lambda done: seen.append(done.result))
    ticket.wait(1000)
    ticket.on_done(lambda done: seen.append(done.result))
    wait_for(lambda: seen == [1, 1])
    assert not world.reason


def test_a_partition_leaves_behind_all_that_was_decided_on_it(world: World) -> None:
    other = world.store.register(ConductorRow("s2", "i2", "tcp://127.0.0.1:2"), 1)[0]
    world.commit("1", world.put_flavor("1", name="a"))
    world.connection.gate.clear()
    decided = world.submit("1", world.put_flavor("1", name="b"))
    world.store.fetch_gate.clear()
    waiting = world.submit("2", world.put_flavor("2"))
    world.ledger.leave([GLOBAL])
    with pytest.raises(NotOwner):
        waiting.wait(10)
    assert not world.ledger.owns(GLOBAL)
    with pytest.raises(NotOwner):
        world.submit("1", world.put_flavor("1"))
    gone = world.lane.hand_over(HandOver([GLOBAL], other))
    world.connection.gate.set()
    gone.wait(1000)
    assert decided.wait(1000)
    assert world.database.partitions[GLOBAL] == (other, world.database.map_version)
    stored = world.stored("1")
    assert stored is not None
    assert stored.name == "b"
    world.ledger.lose([GLOBAL])
    world.store.fetch_gate.set()
    assert not world.reason


def test_a_dead_receiver_leaves_the_partition_where_it_is(world: World) -> None:
    world.commit("1", world.put_flavor("1", name="a"))
    world.ledger.leave([GLOBAL])
    ticket = world.lane.hand_over(HandOver([GLOBAL], 99))
    with pytest.raises(ReceiverDead):
        ticket.wait(1000)
    gained: list[list[int]] = []
    world.ledger.on_gain(gained.append)
    world.ledger.stay([GLOBAL])
    assert world.commit("1", world.add_ram("1")) == 513
    assert gained == [[GLOBAL]], "whoever met NotOwner meanwhile begins again"


def test_rows_read_for_an_ownership_that_ended_are_thrown_away(world: World) -> None:
    world.database.seed(FLAVORS, flavor("1", name="old"))
    world.store.fetch_gate.clear()
    ticket = world.submit("1", world.add_ram("1"))
    gevent.sleep(0.01)
    world.ledger.lose([GLOBAL])
    with pytest.raises(NotOwner):
        ticket.wait(100)
    world.database.seed(FLAVORS, flavor("1", name="new"))
    world.ledger.gain([(GLOBAL, 2, world.lane, 0)])
    again = world.submit("1", lambda change: change.get(FLAVORS, ("1",)).name)
    world.store.fetch_gate.set()
    assert again.wait(1000) == "new"


def test_a_row_evicted_after_its_commit_is_read_as_committed() -> None:
    world = World(LedgerLimits(cache_rows_max=2))
    for round_ in range(1, 4):
        for n in range(6):
            assert world.commit(str(n), world.add_ram(str(n))) == round_
    assert not world.reason
    world.close()


def test_a_row_wanted_twice_is_not_brought_back_by_the_older_read() -> None:
    """The second read begins when the first has brought the row; it changes, commits and is evicted meanwhile."""
    world = World(LedgerLimits(cache_rows_max=5))
    uuids = [uuid for n in range(3000) if partition_of(uuid := f"00000000-0000-4000-8000-{n:012d}") != GLOBAL][:4]

    def touch() -> None:
        for uuid in uuids:
            world.ledger.commit(partition_of(uuid), [(INSTANCES, (uuid,))], lambda change: None, timeout_ms=1000)

    touch()
    world.database.seed(FLAVORS, flavor("k", memory_mb=0), *(flavor(f"x{n}") for n in range(4)))
    world.store.fetch_gate.clear()

    def decide(change: Change) -> Any:
        world.store.fetch_gate.clear()  # for the second read, which begins now
        return world.add_ram("k")(change)

    first = world.submit("k", decide)
    wait_for(lambda: len(world.database.fetches) == 5)
    second = world.ledger.submit(GLOBAL, world.flavor_keys("x0", "x1", "x2", "x3", "k"), world.add_ram("k"))
    world.connection.gate.clear()
    world.store.fetch_gate.set()
    wait_for(lambda: len(world.database.fetches) == 6)
    world.connection.gate.set()
    assert first.wait(1000) == 1
    touch()
    world.store.fetch_gate.set()
    assert second.wait(1000) == 2
    assert not world.reason
    world.close()


def test_a_decision_on_more_rows_than_its_limit_is_refused() -> None:
    world = World(LedgerLimits(decision_keys_max=3))
    with pytest.raises(InvalidRequest, match="at most 3"):
        world.ledger.submit(GLOBAL, world.flavor_keys(*"0123"), lambda change: None)
    world.close()


def test_what_was_decided_upon_a_refused_change_is_answered_when_the_life_ends(world: World) -> None:
    world.connection.gate.clear()
    bad = world.submit("1", world.put_flavor("1", name="x" * 1000))
    wait_for(lambda: world.lane._in_flight)
    upon_it = world.submit("1", world.add_ram("1"))
    undo = world.lane._undo

    def undo_and_stall(*what: Any) -> None:
        world.connection.gate.clear()  # the batch that lets the refusals out never comes back
        undo(*what)

    world.lane._undo = undo_and_stall
    world.connection.gate.set()
    wait_for(lambda: len(world.lane._refused) == 2)
    world.end("stopped")
    for ticket in (bad, upon_it):
        with pytest.raises(NotOwner):
            ticket.wait(100)
