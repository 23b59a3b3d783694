import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.conductor.tasks.samples import NOW_US, TASK, UUID, claiming, host, spawning
from zcompute.conductor.cell.claims import decide_claim, decide_release, free_on, in_force
from zcompute.config import SchedulerConfig
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HOST_DOWN, HOST_UNKNOWN, Claim
from zcompute.objects.messages.hosts import ClaimRequest
from zcompute.objects.task import ClaimName

RATIOS = SchedulerConfig(cpu_allocation_ratio=2.0)
AMOUNTS = Amounts(vcpus=1, memory_mb=512, disk_gb=1)


def request(**fields):
    values = {"instance_uuid": UUID, "task_id": TASK, "attempt": 1, "host": "h1", "amounts": AMOUNTS}
    return ClaimRequest(**{**values, **fields})


def test_a_claim_with_room_changes_host_and_claim_together():
    found = decide_claim(host(), None, request(), RATIOS, NOW_US)
    assert found.granted
    assert (found.host.used, found.host.instances) == (AMOUNTS, 1)
    assert (found.claim.name, found.claim.amounts, found.claim.created_at_us) == (f"{TASK}/1", AMOUNTS, NOW_US)


def test_the_same_claim_again_is_granted_and_changes_nothing_even_on_a_full_host():
    first = decide_claim(host(), None, request(), RATIOS, NOW_US)
    full = msgspec.structs.replace(first.host, used=first.host.total, state=HOST_DOWN)
    again = decide_claim(full, first.claim, request(), RATIOS, NOW_US + 1)
    assert (again.granted, again.host, again.claim) == (True, None, None)
    other = decide_claim(full, first.claim, request(amounts=Amounts(vcpus=2)), RATIOS, NOW_US)
    assert not other.granted


@pytest.mark.parametrize(
    "fields", [{"state": HOST_DOWN}, {"state": HOST_UNKNOWN}, {"disabled": True}, {"forced_down": True}]
)
def test_hosts_that_take_nothing_refuse(fields):
    found = decide_claim(host(**fields), None, request(), RATIOS, NOW_US)
    assert not found.granted
    assert found.host is None


def test_an_unknown_host_refuses():
    assert "not known" in decide_claim(None, None, request(), RATIOS, NOW_US).reason


def test_the_reason_is_worded_as_novas():
    found = decide_claim(host(used=Amounts(memory_mb=2000)), None, request(), RATIOS, NOW_US)
    assert found.reason == "insufficient memory_mb: requested 512, free 48"


amounts = st.builds(Amounts, vcpus=st.integers(0, 3), memory_mb=st.integers(0, 700), disk_gb=st.integers(0, 4))


@given(st.lists(st.tuples(amounts, st.booleans()), max_size=30))
def test_used_is_always_the_sum_of_the_claims_and_never_above_the_room(steps):
    row, claims = host(), {}
    for attempt, (wanted, release_one) in enumerate(steps):
        found = decide_claim(row, None, request(attempt=attempt, amounts=wanted), RATIOS, NOW_US)
        if found.granted:
            row, claims[attempt] = found.host, found.claim
        if release_one and claims:
            row = decide_release(row, claims.pop(min(claims)), NOW_US)
        total = Amounts()
        for claim in claims.values():
            total = total.plus(claim.amounts)
        assert (row.used, row.instances) == (total, len(claims))
        assert free_on(row, RATIOS).plus(row.used) == Amounts(vcpus=8, memory_mb=2048, disk_gb=10)


def test_releasing_what_is_not_there_changes_nothing():
    assert decide_release(host(), None, NOW_US) is None


def test_a_claim_is_in_force_while_row_or_task_names_it():
    claim = Claim(instance_uuid=UUID, task_id=TASK, attempt=1, host="h1", amounts=AMOUNTS)
    instance, task = claiming("h1")
    assert in_force(claim, None, task)
    assert not in_force(claim, instance, None)
    instance, task = spawning("h1")
    assert in_force(claim, instance, None)
    assert not in_force(msgspec.structs.replace(claim, attempt=2), instance, task)
    assert not in_force(msgspec.structs.replace(claim, host="h9"), None, task)
    owed = msgspec.structs.replace(
        task, id="t2", body=msgspec.structs.replace(task.body, release=[ClaimName(host="h1", task_id=TASK, attempt=1)])
    )
    assert in_force(claim, None, owed)
    assert not in_force(claim, None, msgspec.structs.replace(owed, instance_uuid="another"))
