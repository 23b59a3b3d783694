from types import SimpleNamespace

import pytest

from tests.unit.conductor.tasks.samples import UUID
from zcompute.conductor.cell.role import CellRole
from zcompute.conductor.cell.settings import CellSettings
from zcompute.db.errors import ConnectionLost
from zcompute.db.tables import TASKS
from zcompute.objects.errors import StoredObjectInvalid
from zcompute.objects.partition import partition_of


class Store:
    """One task a partition; ``failures`` reads fail first, and reads of the ``broken`` partition always."""

    def __init__(self, failures=0, broken=None):
        self.failures = failures
        self.broken = broken

    def scan(self, table, *, partitions, limit, after):
        if self.failures:
            self.failures -= 1
            raise ConnectionLost("no server")
        if self.broken in partitions:
            raise StoredObjectInvalid("not a stored Task")
        return [(table.name, partition) for partition in partitions]


@pytest.fixture
def role():
    made = object.__new__(CellRole)
    made._settings = CellSettings(scan_retry_ms=0)
    made._stopped = False
    made._env = SimpleNamespace(ledger=SimpleNamespace(owner_epochs=lambda asked: dict.fromkeys(asked, 1)))
    return made


def read(role, store, partitions):
    role._env.store = store
    taken = []
    count = role._each_page(TASKS, partitions, taken.extend)
    return count, sorted(partition for _, partition in taken)


def test_rows_of_gained_partitions_are_waited_for_however_long_the_database_is_away(role):
    assert read(role, Store(failures=500), [1, 2]) == (2, [1, 2])


def test_a_row_that_cannot_be_read_keeps_back_its_own_partition_only(role):
    assert read(role, Store(broken=5), list(range(16))) == (15, [n for n in range(16) if n != 5])


def test_reading_ends_when_the_partitions_are_lost(role):
    role._env.ledger.owner_epochs = lambda _: {}
    assert read(role, Store(failures=1), [partition_of(UUID)]) == (0, [])
