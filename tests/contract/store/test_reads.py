"""Reads: by key, by page, and the lists of clients."""

import time
from collections.abc import Callable

import gevent
import msgspec
import pytest

from tests.contract.store.lane_writer import LaneWriter, insert, update
from tests.contract.store.samples import TINY, build_request, claim, host, instance, new_uuid
from zcompute.db.errors import ConnectionLost
from zcompute.db.store import Store
from zcompute.db.tables import BUILD_REQUESTS, CELLS, CLAIMS, FLAVORS, HOSTS, INSTANCES, OPERATIONS
from zcompute.objects.build_request import Operation
from zcompute.objects.cell import CellInfo
from zcompute.objects.messages.instances import InstanceQuery
from zcompute.objects.name_pattern import like_of
from zcompute.objects.partition import ConductorInfo, partition_of


def test_fetch_answers_what_is_there(store: Store, writer: LaneWriter) -> None:
    stored = [instance() for _ in range(5)]
    writer.commit(insert(INSTANCES, *stored))
    keys = [(each.uuid,) for each in stored]
    assert store.fetch(INSTANCES, [*keys, (new_uuid(),), ("ünknown",), keys[0]]) == dict(zip(keys, stored, strict=True))
    assert store.fetch(INSTANCES, []) == {}


def test_fetch_of_more_keys_than_a_statement_takes(store: Store, writer: LaneWriter) -> None:
    stored = [host(f"h{number}") for number in range(1200)]
    writer.commit(insert(HOSTS, *stored))
    assert len(store.fetch(HOSTS, [(each.name,) for each in stored])) == 1200


def test_scan_pages_in_key_order_without_gap_or_repeat(store: Store, writer: LaneWriter) -> None:
    claims = [claim(instance_uuid=new_uuid(at // 4), attempt=at % 4) for at in range(40)]
    writer.commit(insert(CLAIMS, *claims))
    seen, after = [], None
    while page := store.scan(CLAIMS, limit=7, after=after):
        seen += page
        after = CLAIMS.key_of(page[-1])
    assert seen == sorted(claims, key=CLAIMS.key_of)


def test_scan_by_partition_and_columns(store: Store, writer: LaneWriter) -> None:
    claims = [claim(f"h{at % 5}", attempt=at) for at in range(20)]
    writer.commit(insert(CLAIMS, *claims), insert(HOSTS, host("a"), host("b", disabled_reason="broken")))
    partition = partition_of("h1")
    assert {each.host for each in store.scan(CLAIMS, partitions=[partition], limit=100)} == {"h1"}
    assert len(store.scan(CLAIMS, partitions=[partition, partition_of("h2")], limit=100)) == 8
    assert store.scan(CLAIMS, partitions=[], limit=100) == []
    assert len(store.scan(CLAIMS, where={"host": ["h3", "h4"], "attempt": 3}, limit=100)) == 1
    assert [each.name for each in store.scan(HOSTS, where={"disabled_reason": None}, limit=10)] == ["a"]
    assert store.scan(HOSTS, limit=0) == []
    with pytest.raises(ValueError, match="no column"):
        store.scan(HOSTS, where={"nonsense": 1}, limit=1)


def page(store: Store, **fields: object) -> list[str]:
    query = msgspec.convert({"project_id": "p1", "limit": 100, **fields}, InstanceQuery)
    return [each.uuid for each in store.list_instances(query)]


def test_lists_are_newest_first_and_the_marker_is_exclusive(store: Store, writer: LaneWriter) -> None:
    # Several of one microsecond: then the uuid decides, downwards.
    stored = [instance(uuid=new_uuid(at), created_at_us=at // 3) for at in range(20)]
    writer.commit(insert(INSTANCES, *stored, instance(project_id="p2")))
    expected = [each.uuid for each in reversed(stored)]
    assert page(store) == expected
    assert page(store, limit=6) == expected[:6]
    marker = next(each for each in stored if each.uuid == expected[6])
    assert page(store, limit=5, after=[marker.created_at_us, marker.uuid]) == expected[7:12]
    assert len(page(store, project_id=None)) == 21
    assert page(store, project_id="p3") == []


def test_lists_filter_by_status_name_and_host(store: Store, writer: LaneWriter) -> None:
    active = instance(vm_state="active", task_state="deleting", name="web_1", host="h1")
    building = instance(name="WEB-2")
    broken = instance(vm_state="error", task_state=None, name="db%1", host="h2")
    deleted = instance(vm_state="deleted", name="gone")
    writer.commit(insert(INSTANCES, active, building, broken, deleted))
    assert page(store, statuses=["ACTIVE"]) == [active.uuid]
    assert set(page(store, statuses=["ACTIVE", "ERROR", "NONSENSE"])) == {active.uuid, broken.uuid}
    assert page(store, statuses=["NONSENSE"]) == []
    assert page(store, statuses=["BUILD"]) == [building.uuid]
    assert page(store, statuses=["DELETED"]) == []
    assert page(store, statuses=["DELETED"], deleted=True) == [deleted.uuid]
    assert set(page(store)) == {active.uuid, building.uuid, broken.uuid}
    assert page(store, name_like=like_of("web")) == [active.uuid]
    assert page(store, name_like=like_of("%")) == [broken.uuid]
    assert page(store, name_like=like_of("b_1")) == [active.uuid]
    assert page(store, name_like=like_of("'\\\\")) == []
    assert page(store, host="h2") == [broken.uuid]


def test_build_requests_are_listed_newest_first_also_those_to_be_deleted(root: Store, root_writer: LaneWriter) -> None:
    requests = [build_request(created_at_us=at, uuid=new_uuid(at)) for at in range(4)]
    broken = build_request(created_at_us=9, state="error")
    deleting = build_request(created_at_us=5, delete_requested=True)
    root_writer.commit(insert(BUILD_REQUESTS, *requests, broken, deleting))
    query = InstanceQuery(project_id="p1", limit=100)
    assert root.list_build_requests(query) == [broken, deleting, *reversed(requests)]
    assert root.list_build_requests(msgspec.structs.replace(query, statuses=["ERROR"])) == [broken]
    assert len(root.list_build_requests(msgspec.structs.replace(query, statuses=["BUILD"]))) == 5
    assert root.list_build_requests(msgspec.structs.replace(query, statuses=["ACTIVE"])) == []
    assert root.list_build_requests(msgspec.structs.replace(query, host="h1")) == []


def test_the_roots_tables_hold_what_was_put_in(root: Store, root_writer: LaneWriter) -> None:
    operation = Operation(operation_id="o1", project_id="p1", kind="create", digest="d", uuids=[new_uuid()])
    conductors = [ConductorInfo(service_id="con1", incarnation="i", address="tcp://127.0.0.1:20000")]
    cell = CellInfo(name="c1", conductors=conductors)
    root_writer.commit(insert(OPERATIONS, operation), insert(CELLS, cell), insert(FLAVORS, TINY))
    assert root.fetch(OPERATIONS, [("p1", "o1"), ("o1", "p1")]) == {("p1", "o1"): operation}
    newer = msgspec.structs.replace(cell, conductors=[], revision=2)
    root_writer.commit(update(CELLS, newer))
    assert root.fetch(CELLS, [("c1",)]) == {("c1",): newer}
    assert root.scan(FLAVORS, limit=10) == [TINY]


def test_more_readers_than_connections_all_get_their_turn(store: Store) -> None:
    readers = [gevent.spawn(store.read_map) for _ in range(40)]
    gevent.joinall(readers, timeout=20, raise_error=True)
    assert all(reader.value.cell == "c1" for reader in readers)


def test_the_primarys_time_is_utc(store: Store) -> None:
    assert abs(store.now_us() - time.time_ns() // 1000) < 5_000_000


def test_a_closed_store_answers_nothing(new_url: Callable[[str], str], open_at: Callable[[str], Store]) -> None:
    store = open_at(new_url("cell"))
    store.ping()
    store.close()
    store.close()
    with pytest.raises(ConnectionLost):
        store.ping()
