"""What a batch does, and what makes it do nothing at all."""

import msgspec
import pytest

from tests.contract.store.conftest import conductor
from tests.contract.store.lane_writer import LaneWriter, delete, insert, update
from tests.contract.store.samples import claim, host, instance, new_uuid, task
from zcompute.db.errors import AlreadyApplied, BadRow, Fenced, GuardFailed
from zcompute.db.store import Store
from zcompute.db.tables import CLAIMS, HOSTS, INSTANCES, TASKS
from zcompute.objects.instance import Instance


def changed(stored: Instance, **fields: object) -> Instance:
    return msgspec.structs.replace(stored, **{"revision": stored.revision + 1, **fields})


def found(store: Store, *stored: Instance) -> list[Instance | None]:
    rows = store.fetch(INSTANCES, [(each.uuid,) for each in stored])
    return [rows.get((each.uuid,)) for each in stored]


def test_a_batch_inserts_updates_and_deletes_in_one_transaction(store: Store, writer: LaneWriter) -> None:
    first, second, third = instance(), instance(), instance()
    writer.commit(insert(INSTANCES, first, second), insert(HOSTS, host()))
    newer = changed(first, vm_state="active", task_state=None, name="x'; \\", fault=None)
    writer.commit(insert(INSTANCES, third), update(INSTANCES, newer), delete(INSTANCES, (second.uuid,)))
    assert found(store, first, second, third) == [newer, None, third]


def test_an_empty_batch_moves_the_watermark_only(writer: LaneWriter) -> None:
    writer.commit()
    writer.commit()
    stranger = writer.batch()
    stranger.number = 2
    with pytest.raises(Fenced):
        writer.connection.commit(stranger)


def test_an_update_may_set_some_columns_only(store: Store, writer: LaneWriter) -> None:
    stored = instance()
    writer.commit(insert(INSTANCES, stored))
    newer = changed(stored, progress=50, name="not sent")
    writer.commit(update(INSTANCES, newer, columns=("progress", "revision")))
    kept = found(store, stored)[0]
    assert kept is not None
    assert (kept.progress, kept.name, kept.revision) == (50, stored.name, 2)


def test_a_stale_revision_fails_the_guard_and_rolls_everything_back(store: Store, writer: LaneWriter) -> None:
    first, second = instance(revision=5), instance()
    writer.commit(insert(INSTANCES, first))
    batch = writer.batch(insert(INSTANCES, second), update(INSTANCES, changed(first, revision=5, host="stale")))
    with pytest.raises(GuardFailed) as failure:
        writer.connection.commit(batch)
    assert failure.value.table == "instances"
    assert found(store, first, second) == [first, None]
    writer.commit(insert(INSTANCES, second))


def test_a_row_that_is_gone_fails_the_guard_of_update_and_delete(store: Store, writer: LaneWriter) -> None:
    with pytest.raises(GuardFailed, match="instances"):
        writer.commit(update(INSTANCES, changed(instance())))
    with pytest.raises(GuardFailed, match="claims"):
        writer.commit(delete(CLAIMS, (new_uuid(), "t", 1)))


def test_a_resend_of_a_committed_batch_is_already_applied_and_changes_nothing(store: Store, writer: LaneWriter) -> None:
    stored = instance()
    batch = writer.batch(insert(INSTANCES, stored))
    writer.send(batch)
    with pytest.raises(AlreadyApplied):
        writer.connection.commit(batch)
    assert found(store, stored) == [stored]
    writer.commit()


def test_another_nonce_under_the_same_number_is_fenced(store: Store, writer: LaneWriter) -> None:
    writer.commit()
    other = writer.batch(insert(INSTANCES, instance()))
    other.number = writer.number
    with pytest.raises(Fenced):
        writer.connection.commit(other)


def test_a_gap_in_the_numbers_is_fenced(writer: LaneWriter) -> None:
    ahead = writer.batch()
    ahead.number = 2
    with pytest.raises(Fenced):
        writer.connection.commit(ahead)


def test_another_term_is_fenced(store: Store, writer: LaneWriter) -> None:
    other = LaneWriter(store, writer.lane_id, term=2)
    with pytest.raises(Fenced):
        other.commit()


def test_a_dead_lane_is_fenced_and_changes_nothing(store: Store, writer: LaneWriter) -> None:
    stored = instance()
    writer.commit(insert(INSTANCES, stored))
    heir = store.register(conductor("con2"), 1)
    store.take_over(["con1-1"], heir, 1)
    with pytest.raises(Fenced):
        writer.commit(update(INSTANCES, changed(stored, host="zombie")))
    assert found(store, stored) == [stored]


def test_a_duplicate_key_is_named_and_nothing_is_kept(store: Store, writer: LaneWriter) -> None:
    there, fresh = instance(), instance()
    writer.commit(insert(INSTANCES, there))
    with pytest.raises(BadRow) as failure:
        writer.commit(insert(INSTANCES, fresh, there), insert(HOSTS, host()))
    assert (failure.value.table, failure.value.key) == ("instances", (there.uuid,))
    assert found(store, there, fresh) == [there, None]
    assert store.fetch(HOSTS, [("h1",)]) == {}


def test_a_second_task_of_an_instance_is_named_by_its_own_key(writer: LaneWriter) -> None:
    first = task()
    second = task(instance_uuid=first.instance_uuid)
    writer.commit(insert(TASKS, first))
    with pytest.raises(BadRow) as failure:
        writer.commit(insert(TASKS, task(), second))
    assert (failure.value.table, failure.value.key) == ("tasks", (second.id,))


def test_a_task_may_replace_another_of_its_instance_in_one_batch(store: Store, writer: LaneWriter) -> None:
    first = task()
    second = task(instance_uuid=first.instance_uuid)
    writer.commit(insert(TASKS, first))
    writer.commit(insert(TASKS, second), delete(TASKS, (first.id,)))
    assert list(store.fetch(TASKS, [(first.id,), (second.id,)])) == [(second.id,)]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "x" * 256},
        {"project_id": "not ascii: ä"},
        {"power_state": 2**31},
        {"observed_seq": 2**63},
        {"name": "lone \ud800 surrogate"},
        {"user_id": None},
    ],
    ids=lambda fields: next(iter(fields)) + str(len(str(fields))),
)
def test_values_that_do_not_fit_are_refused_by_name(
    store: Store, writer: LaneWriter, fields: dict[str, object]
) -> None:
    good, bad = instance(), instance(**fields)
    with pytest.raises(BadRow) as failure:
        writer.commit(insert(INSTANCES, good, bad))
    assert (failure.value.table, failure.value.key) == ("instances", (bad.uuid,))
    assert found(store, good) == [None]
    writer.commit(insert(INSTANCES, good))
    with pytest.raises(BadRow) as failure:
        writer.commit(update(INSTANCES, changed(good, **fields)))
    assert failure.value.key == (good.uuid,)
    assert found(store, good) == [good]


def test_the_longest_values_fit(store: Store, writer: LaneWriter) -> None:
    stored = instance(name="🐧" * 255, project_id="p" * 255, observed_seq=2**63 - 1, power_state=-(2**31))
    writer.commit(insert(INSTANCES, stored))
    assert found(store, stored) == [stored]


def test_keys_that_differ_by_case_or_a_space_are_different_rows(store: Store, writer: LaneWriter) -> None:
    names = ["Host", "host", "host "]
    writer.commit(insert(HOSTS, *(host(name) for name in names)))
    assert {key[0] for key in store.fetch(HOSTS, [(name,) for name in names])} == set(names)


def test_a_large_batch_of_composite_keys(store: Store, writer: LaneWriter) -> None:
    claims = [claim(attempt=number) for number in range(300)]
    writer.commit(insert(CLAIMS, *claims))
    keys = [CLAIMS.key_of(each) for each in claims]
    assert store.fetch(CLAIMS, keys) == dict(zip(keys, claims, strict=True))
    writer.commit(delete(CLAIMS, *keys[:299]))
    assert store.scan(CLAIMS, limit=10) == [claims[299]]
