"""Coalescing keeps what the decisions would have done one by one; the cache stays within its limit."""

from collections import deque
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.conductor.ledger_fake import FakeDatabase
from tests.unit.conductor.ledger_world import FLAVORS, GLOBAL, flavor, instance
from zcompute.conductor.batching import changes_of, take_prefix
from zcompute.conductor.cache import Entry, RowCache, RowKey
from zcompute.conductor.change import Change, Ticket
from zcompute.conductor.rendering import render_put
from zcompute.conductor.settings import LedgerLimits
from zcompute.db.batch import Batch, HandOver, Update
from zcompute.db.store import LaneRow
from zcompute.db.tables import CLAIMS, INSTANCES
from zcompute.objects.base import pack
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import Claim
from zcompute.objects.instance import Fault
from zcompute.objects.partition import partition_of

HOST = "host-1"
OPERATIONS = st.lists(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["put", "delete"]), st.integers(0, 9)), min_size=1, max_size=4
    ),
    max_size=12,
)


def decide(cache: dict[RowKey, Entry], table: Any, steps: list[tuple[str, str, int]]) -> Ticket:
    """One decision, as the ledger makes it."""
    partition = GLOBAL if table is FLAVORS else partition_of(HOST)
    change = Change(partition, 1, 0, cache.get)
    for name, what, value in steps:
        key = (name,) if table is FLAVORS else (name, "t", 1)
        if what == "delete":
            change.delete(table, key)
        elif table is FLAVORS:
            change.put(table, flavor(name, memory_mb=value))
        else:
            change.put(
                table, Claim(instance_uuid=name, task_id="t", attempt=1, host=HOST, amounts=Amounts(vcpus=value))
            )
    ticket = Ticket(partition, (), None)
    ticket.puts = [put for put in change.puts.values() if put.image is not None or put.former is not None]
    for put in ticket.puts:
        render_put(put, partition)
        cache[put.rowkey].row, cache[put.rowkey].revision = put.image, put.revision
    return ticket


@given(OPERATIONS, OPERATIONS, st.sampled_from(["flavors", "claims"]))
def test_any_grouping_of_decisions_into_batches_ends_in_the_same_rows(
    first: list[Any], second: list[Any], name: str
) -> None:
    table: Any = FLAVORS if name == "flavors" else CLAIMS
    keys = [((letter,) if table is FLAVORS else (letter, "t", 1)) for letter in "abc"]
    cache = {(table.name, key): Entry(None, 0) for key in keys}
    database = FakeDatabase()
    database.lanes[1] = LaneRow(1, "i", "s", True)
    database.kill("", [1])
    for number, group in enumerate((first, second), 1):
        tickets = [decide(cache, table, steps) for steps in group]
        database.apply(Batch(1, 1, number, number, changes_of(tickets)))
    for key in keys:
        assert database.row(table, key) == cache[(table.name, key)].row


def test_an_update_sends_only_the_columns_that_changed() -> None:
    former = flavor("1", extra_specs={"a": "b"})
    cache = {("flavors", ("1",)): Entry(former, 1)}
    change = Change(GLOBAL, 1, 0, cache.get)
    change.put(FLAVORS, msgspec.structs.replace(former, memory_mb=9))
    ticket = Ticket(GLOBAL, (), None)
    ticket.puts = list(change.puts.values())
    render_put(ticket.puts[0], GLOBAL)
    (update,) = changes_of([ticket])
    assert isinstance(update, Update)
    assert update.columns == ("memory_mb", "revision")
    assert update.rows == [("1", 9, 2)]


def test_what_a_decision_names_is_written_and_nothing_else_is_compared() -> None:
    former = flavor("1", extra_specs={"a": "b"})
    named = ("memory_mb", "vcpus", "revision")
    change = Change(GLOBAL, 1, 0, {("flavors", ("1",)): Entry(former, 1)}.get)
    change.put(FLAVORS, msgspec.structs.replace(former, memory_mb=9), named)
    assert sent(change) == (("vcpus", "memory_mb", "revision"), [("1", former.vcpus, 9, 2)])


def test_a_row_that_is_put_twice_is_compared_as_a_whole_whatever_was_named() -> None:
    former = flavor("1")
    for first, second in (((), ("memory_mb", "revision")), (("memory_mb", "revision"), ())):
        change = Change(GLOBAL, 1, 0, {("flavors", ("1",)): Entry(former, 1)}.get)
        once = msgspec.structs.replace(former, swap_mb=3)
        change.put(FLAVORS, once, first or None)
        change.put(FLAVORS, msgspec.structs.replace(once, memory_mb=9), second or None)
        assert sent(change) == (("memory_mb", "swap_mb", "revision"), [("1", 9, 3, 2)])


def test_packed_columns_are_compared_whatever_was_named() -> None:
    former = instance("a")
    change = Change(partition_of("a"), 1, 0, {("instances", ("a",)): Entry(former, 1)}.get)
    change.put(INSTANCES, msgspec.structs.replace(former, progress=3), ("progress", "fault", "revision"))
    assert sent(change) == (("progress", "revision"), [("a", 3, 2)])


def sent(change: Change) -> tuple[tuple[str, ...], list[Any]]:
    """The columns and rows of the one update that the change comes to."""
    ticket = Ticket(change.partition, (), None)
    ticket.puts = list(change.puts.values())
    render_put(ticket.puts[0], change.partition)
    assert ticket.puts[0].size_bytes > 0
    (update,) = changes_of([ticket])
    assert isinstance(update, Update)
    return update.columns, update.rows


def observed(cache: dict[RowKey, Entry], uuid: str, **changes: Any) -> Ticket:
    """One decision that changes these fields of an instance."""
    partition = partition_of(uuid)
    change = Change(partition, 1, 0, cache.get)
    former = change.get(INSTANCES, (uuid,))
    assert former is not None
    change.put(INSTANCES, msgspec.structs.replace(former, **changes))
    ticket = Ticket(partition, (), None)
    (put,) = ticket.puts = list(change.puts.values())
    render_put(put, partition)
    cache[put.rowkey].row, cache[put.rowkey].revision = put.image, put.revision
    return ticket


def test_packed_columns_go_to_the_rows_that_changed_them_alone_plain_ones_to_all() -> None:
    cache = {("instances", (uuid,)): Entry(instance(uuid), 1) for uuid in "abc"}
    fault = Fault(message="broken")
    tickets = [
        observed(cache, "a", progress=7),
        observed(cache, "b", power_state=4),
        observed(cache, "c", fault=fault),
        observed(cache, "c", progress=9),
    ]
    plain, packed = changes_of(tickets)
    assert isinstance(plain, Update)
    assert isinstance(packed, Update)
    assert plain.columns == ("power_state", "progress", "revision")
    assert plain.rows == [("a", 0, 7, 2), ("b", 4, 0, 2)]
    assert packed.columns == ("progress", "fault", "revision")
    assert packed.rows == [("c", 9, pack(fault), 3)]


def test_what_is_undone_within_a_batch_still_counts_its_revisions() -> None:
    cache = {("instances", ("a",)): Entry(instance("a"), 1)}
    tickets = [observed(cache, "a", fault=Fault(message="x")), observed(cache, "a", fault=None)]
    (update,) = changes_of(tickets)
    assert isinstance(update, Update)
    assert (update.columns, update.rows) == (("revision",), [("a", 3)])


def test_every_field_of_every_table_has_its_columns() -> None:
    from zcompute.conductor.rendering import _columns_of
    from zcompute.db.tables import CODECS

    for table in CODECS.values():
        if table.update_columns:
            for field in table.kind.__struct_fields__:
                if field not in table.key_columns:
                    assert _columns_of(table, field) != table.update_columns, (table, field)
    assert INSTANCES.update_columns


def test_a_batch_takes_a_prefix_within_its_limits_and_one_decision_at_least() -> None:
    limits = LedgerLimits(batch_rows_max=3, batch_bytes_max=100)
    queue: deque[Ticket] = deque()
    for rows, size in ((2, 10), (1, 10), (1, 10), (9, 10), (1, 99), (1, 2), (0, 0)):
        ticket = Ticket(0, (), None)
        ticket.rows, ticket.size_bytes = rows, size
        queue.append(ticket)
    hand_over = Ticket(-1, (), None)
    hand_over.hand_over = HandOver([1], 2)
    queue.extend([hand_over, Ticket(0, (), None)])
    sizes = []
    while queue:
        sizes.append(len(take_prefix(queue, limits)))
    assert sizes == [2, 1, 1, 1, 2, 1, 1]


def test_the_cache_forgets_the_oldest_but_never_what_is_pending() -> None:
    cache = RowCache(3, 10)
    for n in range(3):
        cache.add(0, ("t", (n,)), n, 1)
    pinned = cache.get(0, ("t", (0,)))
    assert pinned is not None
    pinned.pins = 1
    cache.get(0, ("t", (1,)))
    cache.add(1, ("t", (3,)), 3, 1)
    assert cache.get(0, ("t", (2,))) is None or cache.get(0, ("t", (1,))) is None
    assert cache.get(0, ("t", (0,))) is pinned
    assert len(cache) == 3
    cache.add(1, ("t", (3,)), "an older read", 9)
    kept = cache.get(1, ("t", (3,)))
    assert kept is not None
    assert kept.row == 3
    cache.drop(0)
    assert len(cache) == 1


def test_rows_of_a_partition_that_was_lost_take_no_room_and_never_push_out_those_of_its_return() -> None:
    cache = RowCache(4, 8)
    for _ in range(100):
        for n in range(4):
            cache.add(n % 2, ("t", (n,)), n, 1)
        assert len(cache) == 4
        cache.drop(0)
        assert len(cache) == 2
        assert cache.get(0, ("t", (0,))) is None
        cache.add(0, ("t", (0,)), "again", 2)
        again = cache.get(0, ("t", (0,)))
        assert again is not None
        assert again.row == "again"
        cache.drop(0)
    assert len(cache._queue) <= 4
    for n in range(4, 20):
        cache.add(0, ("t", (n,)), n, 1)
        assert len(cache) <= 4


def test_of_rows_that_are_all_in_use_the_oldest_go() -> None:
    cache = RowCache(3, 2)
    for n in range(9):
        cache.add(0, ("t", (n,)), n, 1)
        for entry in cache.rows(0).values():
            entry.used = True
        assert len(cache) <= 3
        assert cache.get(0, ("t", (n,))) is not None


def test_who_looks_at_a_partitions_rows_sees_that_all_were_forgotten_and_what_is_read_again() -> None:
    cache = RowCache(4, 8)
    rows = cache.rows(0)
    cache.add(0, ("t", (1,)), "old", 1)
    cache.clear()
    assert not rows
    assert len(cache) == 0
    cache.add(0, ("t", (1,)), "new", 2)
    assert rows["t", (1,)].row == "new"
