"""What is kept, and that the rest goes in bounded steps."""

from collections.abc import Iterator

import msgspec
import pytest

from tests.unit.conductor.notifiers.outlets import Outlets
from zcompute.conductor.notifiers.retention import HOUR_US, Retention, last_to_go
from zcompute.config import NotificationsConfig
from zcompute.objects.notification import StoredNotification


@pytest.fixture
def outlets() -> Iterator[Outlets]:
    made = Outlets()
    yield made
    made.close()


def page(*created_at_us: int) -> list[StoredNotification]:
    return [
        StoredNotification(partition_id=7, n=n, created_at_us=at, event_type="e")
        for n, at in enumerate(created_at_us, 11)
    ]


@pytest.mark.parametrize(
    ("created", "oldest_us", "rows_max", "gone"),
    [
        ((1, 2, 3, 4), 0, 100, 0),
        ((1, 2, 3, 4), 3, 100, 12),
        ((1, 2, 3, 4), 100, 100, 14),
        ((1, 2, 3, 4), 0, 3, 11),
        ((1, 2, 3, 4), 2, 3, 11),
        ((5, 1, 5, 5), 3, 100, 0),
        ((), 3, 1, 0),
    ],
)
def test_what_is_too_old_or_too_much_goes_from_the_oldest_on(
    created: tuple[int, ...], oldest_us: int, rows_max: int, gone: int
) -> None:
    assert last_to_go(page(*created), 14, oldest_us, rows_max) == gone


def numbers(outlets: Outlets, partition: int) -> list[int]:
    return [n for p, n in sorted(outlets.world.database.tables["notifications"]) if p == partition]


def retention(outlets: Outlets, **fields: int) -> Retention:
    config = msgspec.structs.replace(NotificationsConfig(), **fields)
    return Retention(outlets.world.ledger, outlets.world.store, config, outlets.settings)


def test_rows_over_the_limit_go_in_steps(outlets: Outlets) -> None:
    for n in range(12):
        outlets.tell(7, f"e{n}")
        outlets.tell(8, f"e{n}")
    before = len(outlets.world.database.commits)
    assert retention(outlets, retention_rows_max=4).purge(7) == 8
    assert numbers(outlets, 7) == [9, 10, 11, 12]
    assert numbers(outlets, 8) == list(range(1, 13))
    steps = [batch for batch in outlets.world.database.commits[before:] if batch.purges]
    assert [purge.last - purge.first + 1 for batch in steps for purge in batch.purges] == [1, 3, 3, 1]
    assert retention(outlets, retention_rows_max=4).purge(7) == 0


def test_what_is_older_than_the_hours_goes(outlets: Outlets) -> None:
    outlets.tell(7, "a", "b")
    rows = outlets.world.database.tables["notifications"]
    for key, row in list(rows.items()):
        rows[key] = (*row[:2], row[2] - 3 * HOUR_US, *row[3:])
    outlets.tell(7, "c")
    assert retention(outlets, retention_hours=3).purge(7) == 2
    assert numbers(outlets, 7) == [3]
    outlets.tell(7, "d")
    assert numbers(outlets, 7) == [3, 4]
