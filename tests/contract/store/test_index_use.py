"""The reads of clients use an index, as the server itself says, and sort nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.contract.store.conftest import conductor
from tests.contract.store.lane_writer import LaneWriter, insert
from tests.contract.store.samples import instance, new_uuid
from zcompute.db import lists, migrate, reads
from zcompute.db.drivers import open_store
from zcompute.db.native.connection import Connection
from zcompute.db.native.session import bound
from zcompute.db.private import PrivateMariaDB
from zcompute.db.session import Session
from zcompute.db.tables import INSTANCES, TableCodec
from zcompute.db.url import MariaDbTarget, parse_url
from zcompute.objects.messages.instances import InstanceQuery, SortBy

ROWS = 10_000
BY_NAME = SortBy(key="display_name", descending=False)


class Recorder:
    """A session that only notes the statement."""

    statement = b""

    def objects(self, table: TableCodec[Any], sql: str, **values: Any) -> list[Any]:
        self.statement = bound(sql, values)
        return []


@pytest.fixture(scope="module")
def explain(mariadb: PrivateMariaDB) -> Callable[[Callable[[Session], Any]], dict[str, Any]]:
    """How the server reads a table of ROWS instances of ten projects, for a read."""
    url = mariadb.create_database("explained")
    migrate.upgrade(url, "cell", "c1")
    store = open_store(url)
    writer = LaneWriter.register(store, conductor())
    made = [
        instance(uuid=new_uuid(n), created_at_us=n // 2, project_id=f"p{n % 10}", name=f"n{n % 50}", host=f"h{n % 90}")
        for n in range(ROWS)
    ]
    for at in range(0, ROWS, 500):
        writer.commit(insert(INSTANCES, *made[at : at + 500]))
    writer.connection.close()
    store.close()
    target = parse_url(url)
    assert isinstance(target, MariaDbTarget)

    def explained(read: Callable[[Session], Any]) -> dict[str, Any]:
        recorder = Recorder()
        read(recorder)  # type: ignore[arg-type]  # it has what these reads use
        connection = Connection(target)
        try:
            connection.query(b"ANALYZE TABLE instances")
            (plan,) = connection.named_rows(b"EXPLAIN " + recorder.statement)
            return plan
        finally:
            connection.cut()

    return explained


Explain = Callable[[Callable[[Session], Any]], dict[str, Any]]


def test_reads_by_key_use_the_primary_key(explain: Explain) -> None:
    for count in (1, 2, 100):
        keys = [(new_uuid(n),) for n in range(count)]
        plan = explain(lambda session, keys=keys: reads.fetch(session, INSTANCES, keys))  # type: ignore[misc]
        assert plan["key"] == "PRIMARY"
        assert plan["type"] in ("const", "range")
        assert int(plan["rows"]) <= count


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (InstanceQuery(project_id="p1", limit=100), "ix_instances_project"),
        (InstanceQuery(project_id="p1", limit=100, statuses=["ACTIVE"]), "ix_instances_project"),
        (
            InstanceQuery(project_id="p1", limit=100, after=[700, new_uuid(7)]),
            "ix_instances_project",
        ),
        (InstanceQuery(project_id=None, limit=100), "ix_instances_created"),
        (InstanceQuery(project_id=None, limit=1000), "ix_instances_created"),
        (InstanceQuery(project_id=None, limit=1000, sort=[BY_NAME]), "ix_instances_name"),
        (InstanceQuery(project_id="p1", limit=1000, sort=[BY_NAME]), "ix_instances_project_name"),
        (
            InstanceQuery(project_id="p1", limit=100, sort=[SortBy(key="created_at", descending=False)]),
            "ix_instances_project",
        ),
        (InstanceQuery(project_id="p1", limit=100, sort=[BY_NAME]), "ix_instances_project_name"),
        (
            InstanceQuery(project_id="p1", limit=100, sort=[BY_NAME], after=["n5", new_uuid(5)]),
            "ix_instances_project_name",
        ),
        (InstanceQuery(project_id=None, limit=100, sort=[BY_NAME], after=["n5", new_uuid(5)]), "ix_instances_name"),
        (InstanceQuery(project_id=None, limit=100, sort=[SortBy(key="uuid")], after=[new_uuid(700)]), "PRIMARY"),
        (InstanceQuery(project_id=None, limit=100, sort=[SortBy(key="host")]), "ix_instances_host"),
        (
            InstanceQuery(project_id=None, limit=100, sort=[SortBy(key="host")], after=["h5", new_uuid(5)]),
            "ix_instances_host",
        ),
        (
            InstanceQuery(project_id=None, limit=100, after=[700, new_uuid(7)]),
            "ix_instances_created",
        ),
    ],
)
def test_pages_follow_an_index_and_sort_nothing(explain: Explain, query: InstanceQuery, index: str) -> None:
    plan = explain(lambda session: lists.list_instances(session, query))
    assert plan["key"] == index
    assert "filesort" not in plan["Extra"]
    assert "temporary" not in plan["Extra"]
