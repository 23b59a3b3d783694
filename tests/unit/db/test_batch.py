"""Batches are sent in one order, whatever order they were made in."""

from typing import Any

import pytest

from tests.contract.store.samples import claim, host, instance, new_uuid, task
from zcompute.db.batch import Batch, Delete, HandOver, Insert, Update, ordered
from zcompute.db.errors import BadRow
from zcompute.db.native import packet
from zcompute.db.row_errors import bad_row
from zcompute.db.tables import CLAIMS, HOSTS, INSTANCES, TASKS


def insert(table: Any, *stored: Any) -> Insert:
    return Insert(table, [table.to_row(each, 1) for each in stored])


def batch(*changes: Any, hand_over: HandOver | None = None) -> Batch:
    return Batch(lane_id=3, term=1, number=7, nonce=99, changes=list(changes), hand_over=hand_over)


def test_tables_and_rows_are_sorted_and_deletes_go_first() -> None:
    names = ["b", "c", "a"]
    hosts = insert(HOSTS, *(host(name) for name in names))
    changes = ordered([insert(TASKS, task()), Delete(TASKS, [("z",), ("a",)]), hosts, insert(INSTANCES, instance())])
    assert [(type(change).__name__, change.table.name) for change in changes] == [
        ("Insert", "instances"),
        ("Insert", "hosts"),
        ("Delete", "tasks"),
        ("Insert", "tasks"),
    ]
    assert [row[0] for row in changes[1].rows] == ["a", "b", "c"]  # type: ignore[union-attr]  # its kind: checked above
    assert changes[2].keys == [("a",), ("z",)]  # type: ignore[union-attr]  # its kind: checked above


def test_empty_changes_fall_away() -> None:
    assert ordered([Insert(HOSTS, []), Delete(HOSTS, []), Update(HOSTS, ("revision",), [])]) == []


@pytest.mark.parametrize("columns", [("state",), ("revision", "name"), ("revision", "nonsense")])
def test_an_update_names_revision_and_mutable_columns(columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="update of hosts"):
        ordered([Update(HOSTS, columns, [("h1", *columns)])])


def test_the_number_of_rows_counts_all_changes() -> None:
    assert batch(insert(HOSTS, host("a"), host("b")), Delete(CLAIMS, [("u", "t", 1)])).rows() == 3


def test_an_empty_batch_is_a_packet_of_the_watermark_only() -> None:
    words = packet.render(batch())
    assert b"applied = 7, nonce = 99 WHERE lane_id = 3 AND alive = 1 AND term = 1 AND applied = 6" in words
    assert words.count(b"UPDATE ") == 1
    assert b"FOR UPDATE" not in words


def test_the_same_batch_renders_to_the_same_bytes() -> None:
    one, two = insert(CLAIMS, claim(), claim()), insert(HOSTS, host())
    assert packet.render(batch(one, two)) == packet.render(batch(two, one))


def test_a_hand_over_locks_both_lanes_in_order_before_the_fence() -> None:
    words = packet.render(batch(hand_over=HandOver([9, 4], 2)))
    first, second = words.index(b"lane_id = 2 FOR UPDATE"), words.index(b"lane_id = 3 FOR UPDATE")
    assert first < second < words.index(b"SET applied = 7")
    assert b"partition_id IN (4,9)" in words


def test_a_batch_beyond_the_packet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet, "PACKET_BYTES_MAX", 1000)
    with pytest.raises(BadRow, match="at most 1000"):
        packet.render(batch(insert(INSTANCES, instance())))


def test_a_value_without_a_literal_is_refused_by_its_key() -> None:
    bad = instance(name={"a": "dict"})
    with pytest.raises(BadRow) as failure:
        packet.render(batch(insert(INSTANCES, instance(), bad)))
    assert failure.value.key == (bad.uuid,)


def test_the_row_of_a_duplicate_entry_is_found_even_when_the_server_cuts_it_off() -> None:
    twice = claim(task_id="t" * 60)
    named = f"Duplicate entry '{twice.instance_uuid}-{'t' * 60}"[: 64 + len("Duplicate entry '")]
    found = bad_row(batch(insert(CLAIMS, claim(), twice)), "claims", f"{named}' for key 'PRIMARY'")
    assert found.key == CLAIMS.key_of(twice)


def test_a_reason_that_names_no_row_leaves_the_row_unknown() -> None:
    found = bad_row(batch(insert(TASKS, task(id=new_uuid()))), "tasks", "the moon is full")
    assert (found.key, found.reason) == (None, "the moon is full")
