"""What is to go is found by an index: what is kept is not read, however much of it there is."""

from typing import Any

import pytest
import sqlalchemy as sa

from tests.contract.store.lane_writer import LaneWriter, insert
from tests.contract.store.samples import instance, new_uuid
from zcompute.db import migrate, reads
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCE_ACTION_EVENTS, INSTANCE_ACTIONS, INSTANCES, OPERATIONS, TableCodec
from zcompute.objects.build_request import Operation
from zcompute.objects.history import InstanceAction, InstanceActionEvent
from zcompute.objects.instance import Instance
from zcompute.objects.partition import partition_of

PARTITION = 7
KEPT = 3000
GONE = 30
NOW_US = 1_000_000
EVENTS_MAX = 2000


class Asking:
    """A session that keeps the statement, to be explained."""

    def __init__(self) -> None:
        self.sql = ""
        self.values: dict[str, Any] = {}

    def select(self, sql: str, **values: Any) -> list[Any]:
        self.sql, self.values = sql, values
        return []

    def objects(self, table: TableCodec[Any], sql: str, **values: Any) -> list[Any]:
        return self.select(sql, **values)


def plan(url: str, asked: Asking) -> list[dict[str, Any]]:
    """How the database means to carry out what was asked."""
    with migrate.connected(url) as connection:
        explain = "EXPLAIN " if url.startswith("mysql") else "EXPLAIN QUERY PLAN "
        if url.startswith("mysql"):
            for table in ("instances", "instance_actions", "instance_action_events", "operations"):
                if sa.inspect(connection).has_table(table):
                    connection.execute(sa.text(f"ANALYZE TABLE {table}"))
        statement = sa.text(explain + asked.sql)
        lists = [name for name, value in asked.values.items() if isinstance(value, list)]
        statement = statement.bindparams(*(sa.bindparam(name, expanding=True) for name in lists))
        return [dict(row) for row in connection.execute(statement, asked.values).mappings()]


def assert_found_by(url: str, asked: Asking, index: str, rows_max: int) -> None:
    (step,) = plan(url, asked)
    if url.startswith("mysql"):
        assert (step["key"], step["type"]) == (index, "range"), step
        assert int(step["rows"]) <= rows_max, step
        assert "filesort" not in (step["Extra"] or ""), step
    else:
        assert step["detail"].startswith("SEARCH"), step
        assert f"USING INDEX {index}" in step["detail"], step


def in_partition(count: int) -> list[str]:
    """Uuids of one partition, so that the partition alone tells little."""
    found: list[str] = []
    while len(found) < count:
        uuid = new_uuid()
        if partition_of(uuid) == PARTITION:
            found.append(uuid)
    return found


def action(uuid: str, number: int, finished_at_us: int | None) -> InstanceAction:
    return InstanceAction(
        instance_uuid=uuid, operation_id=f"op-{number}", action="create", finished_at_us=finished_at_us
    )


def test_actions_that_are_to_go_are_found_by_their_age(store: Store, writer: LaneWriter) -> None:
    uuids = in_partition(3)
    kept = [action(uuids[n % 3], n, None if n % 10 == 0 else NOW_US + n) for n in range(KEPT)]
    gone = [action(uuids[n % 3], KEPT + n, NOW_US - 1 - n) for n in range(GONE)]
    elsewhere = [action(new_uuid(1), n, 5) for n in range(3)]
    writer.commit(insert(INSTANCE_ACTIONS, *kept, *gone, *elsewhere))
    found = store.expired(INSTANCE_ACTIONS, PARTITION, "finished_at_us", NOW_US, 20)
    assert [row.finished_at_us for row in found] == [NOW_US - 1 - n for n in range(GONE - 1, GONE - 21, -1)]
    assert len(store.expired(INSTANCE_ACTIONS, PARTITION, "finished_at_us", NOW_US, 100)) == GONE
    assert store.expired(INSTANCE_ACTIONS, PARTITION, "finished_at_us", 1, 100) == []
    asked = Asking()
    reads.expired(asked, INSTANCE_ACTIONS, PARTITION, "finished_at_us", NOW_US, 500)  # type: ignore[arg-type]
    assert_found_by(store.url, asked, "ix_instance_actions_finished", 2 * GONE)


@pytest.mark.parametrize(
    ("column", "index", "vm_state"),
    [
        ("soft_deleted_at_us", "ix_instances_soft_deleted", "soft-delete"),
        ("resized_at_us", "ix_instances_resized", "resized"),
    ],
)
def test_servers_that_are_due_are_found_by_since_when(
    store: Store, writer: LaneWriter, column: str, index: str, vm_state: str
) -> None:
    uuids = in_partition(KEPT // 5 + GONE)

    def since(at_us: int | None) -> Instance:
        return instance(uuid=uuids.pop(), vm_state="active" if at_us is None else vm_state, **{column: at_us})

    writer.commit(insert(INSTANCES, *(since(None if n % 3 else NOW_US + n) for n in range(KEPT // 5))))
    writer.commit(insert(INSTANCES, *(since(NOW_US - 1 - n) for n in range(GONE))))
    found = store.expired(INSTANCES, PARTITION, column, NOW_US, 20)
    assert [getattr(row, column) for row in found] == [NOW_US - 1 - n for n in range(GONE - 1, GONE - 21, -1)]
    asked = Asking()
    reads.expired(asked, INSTANCES, PARTITION, column, NOW_US, 100)  # type: ignore[arg-type]
    assert_found_by(store.url, asked, index, 2 * GONE)


def test_operations_that_are_to_go_are_found_by_their_age(root: Store, root_writer: LaneWriter) -> None:
    def operation(number: int, created_at_us: int, project: str = "p1") -> Operation:
        return Operation(
            operation_id=f"op-{number}", project_id=project, kind="create", digest="d", uuids=[],
            created_at_us=created_at_us,
        )  # fmt: skip

    kept = [operation(n, NOW_US + n) for n in range(KEPT)]
    gone = [operation(KEPT + n, n + 1) for n in range(GONE)]
    of_others = [operation(n, n + 1, f"q{n % 50}") for n in range(KEPT)]
    root_writer.commit(insert(OPERATIONS, *kept, *gone, *of_others))
    found = root.expired(OPERATIONS, partition_of("p1"), "created_at_us", NOW_US, 100)
    assert [row.created_at_us for row in found] == list(range(1, GONE + 1))
    asked = Asking()
    reads.expired(asked, OPERATIONS, partition_of("p1"), "created_at_us", NOW_US, 500)  # type: ignore[arg-type]
    assert_found_by(root.url, asked, "ix_operations_age", 2 * GONE)


def test_events_of_a_page_of_actions_are_found_by_their_key(store: Store, writer: LaneWriter) -> None:
    """The largest page: 500 actions of as many instances."""
    keys = sorted((new_uuid(), f"op-{number}") for number in range(500))
    events = [
        InstanceActionEvent(instance_uuid=uuid, operation_id=operation, task_id="t", event=f"e{n}", finished_at_us=1)
        for uuid, operation in keys
        for n in range(3)
    ]
    kept = [
        InstanceActionEvent(instance_uuid=new_uuid(), operation_id=f"kept-{n}", task_id="t", event="e")
        for n in range(KEPT)
    ]
    writer.commit(insert(INSTANCE_ACTION_EVENTS, *events, *kept))
    asked = Asking()
    where = {"instance_uuid": [key[0] for key in keys], "operation_id": sorted(key[1] for key in keys)}
    reads.scan(
        asked, INSTANCE_ACTION_EVENTS, partitions=None, where=where, limit=EVENTS_MAX, after=None,  # type: ignore[arg-type]
    )  # fmt: skip
    found = store.scan(INSTANCE_ACTION_EVENTS, where=where, limit=EVENTS_MAX)
    assert len(found) == len(events)
    (step,) = plan(store.url, asked)
    if store.url.startswith("mysql"):
        assert (step["key"], step["type"]) == ("PRIMARY", "range"), step
        assert int(step["rows"]) <= 2 * len(events), step
    else:
        assert step["detail"].startswith("SEARCH"), step


@pytest.mark.parametrize("table", [INSTANCE_ACTIONS, OPERATIONS], ids=lambda table: table.name)
def test_a_column_that_is_none_is_refused(table: TableCodec[Any]) -> None:
    with pytest.raises(ValueError, match="has no column"):
        reads.expired(Asking(), table, 0, "no_such_column", 1, 1)  # type: ignore[arg-type]
