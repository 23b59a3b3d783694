"""The accounting against a plain model: creates, deletes, resizes, refused rows, evictions, lost connections and
take-overs in any order, on the real ledger. What has committed never passes the limit, and totals are their rows."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import gevent
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.conductor.ledger_fake import LOST_AFTER, LOST_BEFORE, FakeDatabase
from tests.unit.conductor.ledger_world import World
from tests.unit.conductor.root.fakes import create_request
from zcompute.bus.errors import Busy, InvalidRequest, NotOwner
from zcompute.conductor.root import intake, placement
from zcompute.conductor.root.charging import charge, total_key, total_of
from zcompute.conductor.root.totals import check_totals
from zcompute.conductor.settings import LedgerLimits
from zcompute.db.tables import BUILD_REQUESTS, MAPPINGS, PROJECT_USAGES, USAGES
from zcompute.objects.errors import QuotaExceeded
from zcompute.objects.flavor import Flavor
from zcompute.objects.messages.region import MappingReleaseRequest
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import Amount, Limits

PROJECTS = ("p1", "p2", "p3")
LIMITS = Limits(instances=6, cores=9, ram_mb=8192)
# Few rows in memory, but more than a decision names: totals are evicted, and read again.
SETTINGS = LedgerLimits(
    retry_ms_min=1, retry_ms_max=2, lane_retry_s_max=5.0, cache_rows_max=40, evict_scan_max=64, dependent_retry_ms=1
)
TOO_LONG = "x" * 300
WAIT_MS = 5000

projects = st.sampled_from(PROJECTS)
steps = st.one_of(
    st.tuples(st.just("create"), projects, st.integers(1, 4), st.integers(1, 3), st.booleans()),
    st.tuples(st.just("delete"), projects, st.integers(0, 7)),
    st.tuples(st.just("resize"), projects, st.integers(0, 7), st.integers(1, 4)),
    st.tuples(st.just("refused"), projects),
    st.tuples(st.just("fault"), st.sampled_from([LOST_BEFORE, LOST_AFTER])),
    st.tuples(st.just("settle")),
    st.tuples(st.just("take_over")),
)


class Books:
    """A conductor's ledger over a database that outlives it, with decisions under way."""

    def __init__(self) -> None:
        self.database = FakeDatabase("root")
        self.world = World(SETTINGS, self.database)
        self.under_way: list[Any] = []
        self.made = 0

    def submit(self, project: str, keys: list[Any], decide: Any) -> None:
        self.under_way.append(self.world.ledger.submit(partition_of(project), keys, decide))

    def create(self, project: str, max_count: int, cores: int, named_badly: bool) -> None:
        self.made += 1
        name = TOO_LONG if named_badly else "web"
        request = create_request(max_count, operation_id=f"op-{self.made}", project_id=project, name=name)
        uuids = [f"{self.made:08d}-{at:04d}-4000-8000-000000000000" for at in range(max_count)]
        flavor = Flavor(flavorid="1", name="f", vcpus=cores, memory_mb=cores * 512, root_gb=1)
        self.submit(
            project,
            intake.create_keys(request, uuids),
            lambda change: intake.create_servers(
                change, request, flavor, uuids, "r-1", lambda amounts, tried: "c1", "req", LIMITS
            ),
        )

    def delete(self, project: str, uuid: str) -> None:
        """The cell's word that it is gone, as often as it likes."""
        told = MappingReleaseRequest(uuid=uuid, project_id=project, cell="c1", generation=1)
        self.submit(project, intake.server_keys(uuid, project), lambda change: placement.mapping_deleted(change, told))

    def resize(self, project: str, uuid: str, cores: int) -> None:
        def decide(change: Any) -> None:
            usage, total = change.get(USAGES, (uuid,)), total_of(change, project)
            if usage is not None and total.cores - usage.cores + cores <= (LIMITS.cores or 0):
                charge(change, [replace(usage, cores=cores)])

        self.submit(project, intake.server_keys(uuid, project), decide)

    def settle(self) -> None:
        for ticket in self.under_way:
            try:
                ticket.wait(WAIT_MS)
            except (QuotaExceeded, InvalidRequest, Busy, NotOwner):
                continue
        self.under_way.clear()

    def take_over(self) -> None:
        """The conductor dies with what it has under way; the next one knows nothing."""
        self.world.close()
        self.database.kill("i1", [])
        for lane_id, lane in list(self.database.lanes.items()):
            self.database.lanes[lane_id] = type(lane)(lane.lane_id, lane.incarnation, lane.service_id, False)
        self.under_way.clear()
        self.world = World(SETTINGS, self.database)

    def close(self) -> None:
        self.world.close()

    def uuid_of(self, project: str, number: int) -> str | None:
        rows = sorted(u.uuid for u in self.usages() if u.project_id == project)
        return rows[number % len(rows)] if rows else None

    def usages(self) -> list[Any]:
        return [USAGES.from_row(row) for row in self.database.tables[USAGES.name].values()]

    def check_committed(self) -> None:
        """Whatever has committed: within the limits, a usage row for each mapping."""
        for project in PROJECTS:
            total = self.database.row(PROJECT_USAGES, (project,))
            if total is not None:
                assert total.instances <= (LIMITS.instances or 0), total
                assert total.cores <= (LIMITS.cores or 0), total
                assert total.ram_mb <= (LIMITS.ram_mb or 0), total
        assert {u.uuid for u in self.usages()} == {key[0] for key in self.database.tables[MAPPINGS.name]}
        assert {key[0] for key in self.database.tables[BUILD_REQUESTS.name]} <= {u.uuid for u in self.usages()}

    def check_totals(self) -> None:
        """What the owner keeps is what its rows say, by its own account and by the reconciler's."""
        for project in PROJECTS:
            kept = self.world.ledger.commit(
                partition_of(project), [total_key(project)], lambda change, p=project: total_of(change, p).used,
                timeout_ms=WAIT_MS,
            )  # fmt: skip
            row = self.database.row(PROJECT_USAGES, (project,))
            assert kept == (Amount() if row is None else row.used)
            partition = partition_of(project)
            assert check_totals(self.world.ledger, self.world.store, partition, repairs=False) == []


@contextmanager
def watched(books: Books) -> Iterator[None]:
    """Every commit is checked as it is made."""
    apply = books.database.apply

    def checked(batch: Any) -> None:
        apply(batch)
        books.check_committed()

    books.database.apply = checked  # type: ignore[method-assign]  # the fake's own transaction, looked at
    yield


@settings(max_examples=80, deadline=None)
@given(st.lists(steps, max_size=40))
def test_no_order_of_events_passes_a_limit_or_leaks(taken: list[Any]) -> None:
    with closing(Books()) as books, watched(books), gevent.Timeout(60):
        for step, *given_ in taken:
            if step == "create":
                project, max_count, cores, badly = given_
                books.create(project, max_count, cores, badly)
            elif step == "refused":
                books.create(given_[0], 1, 1, True)
            elif step in ("delete", "resize"):
                uuid = books.uuid_of(given_[0], given_[1])
                if uuid is not None and step == "delete":
                    books.delete(given_[0], uuid)
                elif uuid is not None:
                    books.resize(given_[0], uuid, given_[2])
            elif step == "fault":
                books.world.connection.faults.append(given_[0])
            elif step == "settle":
                books.settle()
            else:
                books.take_over()
        books.world.connection.faults.clear()
        books.settle()
        books.check_committed()
        books.check_totals()


def test_a_total_is_read_once_and_not_for_each_server() -> None:
    with closing(Books()) as books:
        for _ in range(5):
            books.create("p1", 1, 1, False)
            books.settle()
        read = [keys for name, keys in books.database.fetches if name == PROJECT_USAGES.name]
        assert read == [[("p1",)]]


def test_a_total_that_is_wrong_is_found_and_put_right() -> None:
    """As a fault of ours, or of a hand in the database, would leave it."""
    with closing(Books()) as books:
        books.create("p1", 2, 1, False)
        books.settle()
        (first, *_), home = list(books.database.tables[USAGES.name]), partition_of("p1")
        del books.database.tables[USAGES.name][first]
        ledger, store = books.world.ledger, books.world.store
        found = check_totals(ledger, store, home, repairs=False)
        assert [(one.kind, one.subject, one.repaired) for one in found] == [("total_wrong", "p1", False)]
        assert [one.repaired for one in check_totals(ledger, store, home, repairs=True)] == [True]
        assert check_totals(ledger, store, home, repairs=False) == []
        kept = ledger.commit(home, [total_key("p1")], lambda change: total_of(change, "p1").used, timeout_ms=WAIT_MS)
        assert kept == Amount(instances=1, cores=1, ram_mb=512)
