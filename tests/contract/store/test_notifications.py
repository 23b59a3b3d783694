"""Notifications are numbered in the change's own transaction, under a guard; retention deletes ranges of them."""

from collections.abc import Callable

import pytest

from tests.contract.store.conftest import conductor
from tests.contract.store.lane_writer import LaneWriter, insert
from tests.contract.store.samples import host, instance
from zcompute.db.batch import Batch, HandOver, Numbering, Purge
from zcompute.db.errors import AlreadyApplied, BadRow, Fenced, GuardFailed
from zcompute.db.store import Store, ToldRow
from zcompute.db.tables import HOSTS, INSTANCES, NOTIFICATIONS
from zcompute.objects.notification import StoredNotification
from zcompute.objects.partition import PARTITIONS

BODY = bytes(range(256))


def told(partition: int, *numbers: int) -> list[StoredNotification]:
    return [
        StoredNotification(partition_id=partition, n=n, created_at_us=n, event_type="instance.update", body=BODY)
        for n in numbers
    ]


def numbered(writer: LaneWriter, *numberings: Numbering) -> Batch:
    """A batch with the notifications of these numberings, and an instance beside them."""
    rows = [each for n in numberings for each in told(n.partition_id, *range(n.before + 1, n.after + 1))]
    batch = writer.batch(insert(INSTANCES, instance()), insert(NOTIFICATIONS, *rows))
    batch.numberings = list(numberings)
    return batch


def last_n(store: Store, *partitions: int) -> list[int]:
    rows = {row.partition_id: row.last_n for row in store.read_map().partitions}
    return [rows[partition] for partition in partitions]


def stored(store: Store, *partitions: int) -> list[tuple[int, int]]:
    rows = store.scan(NOTIFICATIONS, partitions=partitions or None, limit=100)
    return [(row.partition_id, row.n) for row in rows]


@pytest.fixture
def owner(store: Store, writer: LaneWriter) -> LaneWriter:
    """The writer, with all partitions on its lane."""
    store.take_over([], [writer.lane_id], 1)
    return writer


@pytest.mark.parametrize("kind", ["cell", "root"])
def test_numbers_and_notifications_commit_together_in_both_kinds_of_database(
    kind: str, new_url: Callable[[str], str], open_at: Callable[[str], Store]
) -> None:
    store = open_at(new_url(kind))
    writer = LaneWriter.register(store, conductor())
    store.take_over([], [writer.lane_id], 1)
    for before, after in ((0, 2), (2, 3)):
        batch = writer.batch(insert(NOTIFICATIONS, *told(7, *range(before + 1, after + 1))))
        batch.numberings = [Numbering(7, before, after)]
        writer.send(batch)
    assert last_n(store, 6, 7, 8) == [0, 3, 0]
    assert store.scan(NOTIFICATIONS, partitions=[7], limit=10) == told(7, 1, 2, 3)
    assert store.scan(NOTIFICATIONS, partitions=[7], limit=1, after=(7, 1)) == told(7, 2)
    writer.connection.close()


def test_many_partitions_move_in_one_batch(store: Store, owner: LaneWriter) -> None:
    owner.send(numbered(owner, Numbering(200, 0, 2), Numbering(3, 0, 1), Numbering(77, 0, 3)))
    assert last_n(store, 3, 77, 200) == [1, 3, 2]
    assert stored(store) == [(3, 1), (77, 1), (77, 2), (77, 3), (200, 1), (200, 2)]


def test_what_was_told_is_seen_with_what_is_kept_of_it(store: Store, owner: LaneWriter) -> None:
    owner.send(numbered(owner, Numbering(200, 0, 2), Numbering(3, 0, 5)))
    batch = owner.batch()
    batch.purges = [Purge(3, 1, 2), Purge(200, 1, 2)]
    owner.send(batch)
    rows = {row.partition_id: row for row in store.read_told()}
    assert sorted(rows) == list(range(PARTITIONS))
    assert rows[3] == ToldRow(3, last_n=5, first=3, last=5, kept=3)
    assert rows[200] == ToldRow(200, last_n=2)
    assert rows[0] == ToldRow(0, last_n=0)


@pytest.mark.parametrize("wrong", [Numbering(5, 1, 2), Numbering(5, 4, 6)])
def test_another_last_n_than_expected_fails_the_guard_and_rolls_all_back(
    store: Store, owner: LaneWriter, wrong: Numbering
) -> None:
    owner.send(numbered(owner, Numbering(5, 0, 2)))
    owner.send(numbered(owner, Numbering(6, 0, 1)))
    batch = numbered(owner, Numbering(6, 1, 2), wrong)
    batch.changes.append(insert(HOSTS, host()))
    batch.changes = [change for change in batch.changes if change.table is not NOTIFICATIONS]
    with pytest.raises(GuardFailed) as failure:
        owner.connection.commit(batch)
    assert failure.value.table == "partitions"
    assert last_n(store, 5, 6) == [2, 1]
    assert store.fetch(HOSTS, [("h1",)]) == {}
    owner.send(numbered(owner, Numbering(5, 2, 3)))


def test_a_partition_of_another_lane_fails_the_guard(store: Store, owner: LaneWriter) -> None:
    other = LaneWriter.register(store, conductor("con2"))
    with pytest.raises(GuardFailed):
        other.send(numbered(other, Numbering(5, 0, 1)))
    owner.commit(hand_over=HandOver([5], other.lane_id))
    with pytest.raises(GuardFailed):
        owner.send(numbered(owner, Numbering(5, 0, 1)))
    other.send(numbered(other, Numbering(5, 0, 1)))
    assert last_n(store, 5) == [1]
    other.connection.close()


def test_a_fenced_lane_numbers_nothing(store: Store, owner: LaneWriter) -> None:
    owner.send(numbered(owner, Numbering(5, 0, 1)))
    heir = store.register(conductor("con2"), 1)
    store.take_over(["con1-1"], heir, 1)
    with pytest.raises(Fenced):
        owner.send(numbered(owner, Numbering(5, 1, 2)))
    assert last_n(store, 5) == [1]


def test_a_resend_numbers_nothing_again(store: Store, owner: LaneWriter) -> None:
    batch = numbered(owner, Numbering(5, 0, 2))
    owner.send(batch)
    with pytest.raises(AlreadyApplied):
        owner.connection.commit(batch)
    assert last_n(store, 5) == [2]
    assert stored(store) == [(5, 1), (5, 2)]


def test_a_refused_change_takes_the_numbers_back(store: Store, owner: LaneWriter) -> None:
    there = instance()
    owner.commit(insert(INSTANCES, there))
    batch = numbered(owner, Numbering(5, 0, 2))
    batch.changes.append(insert(INSTANCES, there))
    with pytest.raises(BadRow):
        owner.connection.commit(batch)
    assert last_n(store, 5) == [0]
    assert stored(store) == []


def test_a_purge_deletes_a_range_of_one_partition_and_may_be_repeated(store: Store, owner: LaneWriter) -> None:
    owner.send(numbered(owner, Numbering(5, 0, 4), Numbering(6, 0, 4)))
    for _ in range(2):
        batch = owner.batch()
        batch.purges = [Purge(5, 1, 3), Purge(9, 1, 1000)]
        owner.send(batch)
    assert stored(store, 5) == [(5, 4)]
    assert stored(store, 6) == [(6, 1), (6, 2), (6, 3), (6, 4)]
    assert last_n(store, 5) == [4]
