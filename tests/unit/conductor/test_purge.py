"""What outlived its retention goes, page by page, at its owner."""

import pytest

from tests.unit.conductor.root.fakes import NOW_US, FakeLedger, FakeStore
from zcompute.conductor.purge import Purge, PurgeSettings
from zcompute.db.tables import OPERATIONS
from zcompute.objects.build_request import Operation
from zcompute.objects.partition import PARTITIONS, partition_of

HOUR_S = 3600
SETTINGS = PurgeSettings(page_rows=3, page_pause_ms=0)


class Ledger(FakeLedger):
    def owned(self):
        return [partition for partition in range(PARTITIONS) if partition not in self.lost]


@pytest.fixture
def ledger():
    return Ledger()


def add(ledger, project, number, age_s):
    operation = Operation(
        operation_id=f"op-{number}", project_id=project, kind="create", digest="d", uuids=[],
        created_at_us=NOW_US - int(age_s * 1e6),
    )  # fmt: skip
    ledger.rows[(OPERATIONS.name, OPERATIONS.key_of(operation))] = operation


def left(ledger):
    return sorted((row.project_id, row.operation_id) for row in ledger.all(OPERATIONS))


def purge(ledger):
    return Purge(ledger, FakeStore(ledger), OPERATIONS, "created_at_us", HOUR_S, SETTINGS)


def test_rows_go_when_their_retention_is_over_and_not_before(ledger):
    for number in range(10):
        add(ledger, f"p{number % 4}", number, HOUR_S + (1 if number % 2 else -1))
    assert purge(ledger).round() == 5
    assert [name for _, name in sorted(left(ledger), key=lambda key: key[1])] == [f"op-{n}" for n in (0, 2, 4, 6, 8)]
    assert purge(ledger).round() == 0


def test_one_decision_a_partition_of_a_page(ledger):
    for number in range(6):
        add(ledger, "p1", number, 2 * HOUR_S)
    assert purge(ledger).round() == 6
    assert ledger.commits == 2


def test_a_round_is_bounded_and_the_next_goes_on(ledger):
    for number in range(10):
        add(ledger, "p1", number, 2 * HOUR_S)
    settings = PurgeSettings(page_rows=3, page_pause_ms=0, pages_max=2)
    bounded = Purge(ledger, FakeStore(ledger), OPERATIONS, "created_at_us", HOUR_S, settings)
    assert [bounded.round() for _ in range(3)] == [6, 4, 0]


def test_what_another_conductor_owns_by_now_is_left_to_it(ledger):
    add(ledger, "p1", 1, 2 * HOUR_S)
    add(ledger, "p2", 2, 2 * HOUR_S)
    ledger.lost.add(partition_of("p1"))
    assert purge(ledger).round() == 1
    assert left(ledger) == [("p1", "op-1")]
