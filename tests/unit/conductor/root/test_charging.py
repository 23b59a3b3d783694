"""What a quota leaves room for, in Nova's words, and what a project is charged."""

import pytest

from tests.unit.conductor.root.fakes import UUIDS, Decider
from zcompute.conductor.root.charging import allowed_count, charge, release, total_key
from zcompute.db.tables import PROJECT_USAGES, USAGES
from zcompute.objects.build_request import Usage
from zcompute.objects.errors import QuotaExceeded
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import Amount, Limits

HOME = partition_of("p1")
NOVAS = Limits(instances=10, cores=20, ram_mb=51200)
TINY = Amount(instances=1, cores=1, ram_mb=512)
LARGE = Amount(instances=1, cores=8, ram_mb=16384)


def used(count, each=TINY):
    return each.times(count)


@pytest.mark.parametrize(
    ("limits", "taken", "each", "counts", "allowed"),
    [
        (NOVAS, used(0), TINY, (1, 1), 1),
        (NOVAS, used(9), TINY, (1, 1), 1),
        (NOVAS, used(8), TINY, (1, 5), 2),
        (NOVAS, used(0), LARGE, (1, 5), 2),
        (NOVAS, used(0), TINY, (10, 10), 10),
        (Limits(instances=-1, cores=-1, ram_mb=-1), used(10_000), TINY, (1, 1000), 1000),
        (Limits(instances=-1, cores=5, ram_mb=-1), used(4), TINY, (1, 3), 1),
        (Limits(instances=5, cores=0, ram_mb=0), used(0), Amount(instances=1), (1, 2), 2),
        (Limits(instances=5, cores=2, ram_mb=-1), used(4), Amount(instances=1), (1, 1), 1),
        (Limits(instances=5), used(1), TINY, (1, 9), 4),
    ],
)
def test_as_many_as_fit_between_min_and_max(limits, taken, each, counts, allowed):
    assert allowed_count(limits, taken, each, *counts) == allowed


@pytest.mark.parametrize(
    ("limits", "taken", "each", "counts", "message"),
    [
        (NOVAS, used(10), TINY, (1, 1), "instances: Requested 1, but already used 10 of 10 instances"),
        (NOVAS, used(9), TINY, (2, 3), "instances: Requested 2-3, but already used 9 of 10 instances"),
        (NOVAS, used(2, LARGE), LARGE, (1, 1), "cores: Requested 8, but already used 16 of 20 cores"),
        (
            Limits(instances=1, cores=1, ram_mb=600),
            used(1),
            TINY,
            (2, 2),
            "cores, instances, ram: Requested 2, 2, 1024, but already used 1, 1, 512 of 1, 1, 600 "
            "cores, instances, ram",
        ),
        (Limits(instances=0, cores=-1, ram_mb=-1), used(0), TINY, (1, 1),
         "instances: Requested 1, but already used 0 of 0 instances"),
        (NOVAS, used(15), TINY, (1, 1), "instances: Requested 1, but already used 15 of 10 instances"),
    ],
)  # fmt: skip
def test_what_is_over_is_named_as_nova_names_it(limits, taken, each, counts, message):
    with pytest.raises(QuotaExceeded) as refused:
        allowed_count(limits, taken, each, *counts)
    assert refused.value.message == f"Quota exceeded for {message}"


@pytest.fixture
def decide():
    return Decider()


def run(decide, act, *uuids):
    keys = [total_key("p1"), *((USAGES, (uuid,)) for uuid in uuids)]
    decide(HOME, keys, act)
    return decide.ledger.get(PROJECT_USAGES, "p1")


def usage(uuid, cores=1, ram_mb=512):
    return Usage(uuid=uuid, project_id="p1", cores=cores, ram_mb=ram_mb)


def test_a_total_follows_its_rows(decide):
    total = run(decide, lambda change: charge(change, [usage(UUIDS[0]), usage(UUIDS[1], 2, 1024)]), *UUIDS[:2])
    assert total.used == Amount(instances=2, cores=3, ram_mb=1536)
    total = run(decide, lambda change: charge(change, [usage(UUIDS[0], 4, 512)]), UUIDS[0])
    assert total.used == Amount(instances=2, cores=6, ram_mb=1536)
    total = run(decide, lambda change: release(change, UUIDS[1]), UUIDS[1])
    assert total.used == Amount(instances=1, cores=4, ram_mb=512)


def test_a_server_is_released_once(decide):
    run(decide, lambda change: charge(change, [usage(UUIDS[0])]), UUIDS[0])
    run(decide, lambda change: release(change, UUIDS[0]), UUIDS[0])
    total = run(decide, lambda change: release(change, UUIDS[0]), UUIDS[0])
    assert total.used == Amount()


def test_nothing_to_charge_changes_nothing(decide):
    run(decide, lambda change: charge(change, []))
    assert decide.ledger.commits == 0
