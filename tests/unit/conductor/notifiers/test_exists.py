"""Each instance that existed in a period is told once, whoever owns its partition meanwhile."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.conductor.ledger_world import INSTANCES, instance
from tests.unit.conductor.notifiers.outlets import Outlets
from zcompute.conductor.notifiers.exists import ExistsAudit, existed, next_period
from zcompute.conductor.notifiers.settings import NotifierSettings
from zcompute.objects.base import unpack
from zcompute.objects.notification import Notification, UsageAudit, payload_document
from zcompute.objects.partition import partition_of

HOUR_US = 3_600_000_000
NOW_US = 1000 * HOUR_US + 5


@pytest.mark.parametrize(
    ("created", "deleted", "there"),
    [(5, None, True), (20, None, False), (5, 9, False), (5, 10, True), (12, 15, True), (19, None, True)],
)
def test_who_existed_between_10_and_20(created: int, deleted: int | None, there: bool) -> None:
    assert existed(instance("u", created_at_us=created, deleted_at_us=deleted), 10, 20) is there


@pytest.mark.parametrize(
    ("done", "ending"),
    [(None, 1000), (0, 1000), (1000, None), (999, 1000), (997, 998), (990, 998)],
)
def test_the_next_period_is_the_oldest_that_is_not_given_up(done: int | None, ending: int | None) -> None:
    audit = None if done is None else UsageAudit(partition_id=7, period_at_us=done * HOUR_US)
    found = next_period(audit, NOW_US, HOUR_US, 3)
    assert found == (None if ending is None else ending * HOUR_US)


def uuids_of(partition: int, count: int) -> list[str]:
    found: list[str] = []
    number = 0
    while len(found) < count:
        number += 1
        uuid = f"00000000-0000-4000-8000-{number:012d}"
        if partition_of(uuid) == partition:
            found.append(uuid)
    return found


@pytest.fixture
def outlets() -> Iterator[Outlets]:
    made = Outlets(settings=NotifierSettings(exists_rows_max=3, exists_periods_max=3))
    yield made
    made.close()


def audit(outlets: Outlets, now_us: int) -> ExistsAudit:
    outlets.world.ledger._now_us = lambda: now_us
    return ExistsAudit(outlets.world.ledger, outlets.world.store, 3600, outlets.settings)


def told(outlets: Outlets) -> Counter[tuple[str, int]]:
    found: Counter[tuple[str, int]] = Counter()
    for row in outlets.world.database.tables["notifications"].values():
        body = unpack(row[5], Notification)
        data: dict[str, Any] = payload_document(body.payload)["data"]
        found[(body.instance_uuid, data["audit_period"]["audit_period_ending_us"] // HOUR_US)] += 1
    return found


def test_every_instance_is_told_once_a_period_though_owners_change_in_between(outlets: Outlets) -> None:
    uuids = uuids_of(7, 8)
    outlets.world.database.seed(INSTANCES, *(instance(uuid, created_at_us=1) for uuid in uuids))
    outlets.world.database.seed(INSTANCES, instance(uuids_of(8, 1)[0], created_at_us=1))
    first = audit(outlets, NOW_US)
    assert first.tell_period(7)
    while audit(outlets, NOW_US).tell_period(7):  # each page by another owner
        pass
    assert told(outlets) == Counter({(uuid, 1000): 1 for uuid in uuids})
    assert not first.tell_period(7)
    while audit(outlets, NOW_US + 2 * HOUR_US).tell_period(7):
        pass
    assert told(outlets) == Counter({(uuid, period): 1 for uuid in uuids for period in (1000, 1001, 1002)})


def test_of_two_that_tell_the_same_page_one_does(outlets: Outlets) -> None:
    uuids = uuids_of(7, 2)
    outlets.world.database.seed(INSTANCES, *(instance(uuid, created_at_us=1) for uuid in uuids))
    store = outlets.world.store
    assert audit(outlets, NOW_US).tell_period(7)
    fetch, stale = store.fetch, {"yes": True}

    def before(table: Any, keys: Any) -> Any:
        return {} if table.name == "usage_audits" and stale.pop("yes", False) else fetch(table, keys)

    store.fetch = before  # type: ignore[method-assign]
    audit(outlets, NOW_US).tell_period(7)
    assert told(outlets) == Counter({(uuid, 1000): 1 for uuid in uuids})
