"""The handlers of quotas: limits in force, what is set and refused, and a create that meets them."""

import pytest

from tests.unit.conductor.root.fakes import context, create_request
from tests.unit.conductor.root.test_role import Region
from zcompute.bus.errors import InvalidRequest
from zcompute.db.tables import QUOTA_CLASSES, QUOTAS
from zcompute.objects import methods
from zcompute.objects.errors import QuotaExceeded
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.quotas import (
    QuotaDefaultSetRequest,
    QuotaRequest,
    QuotaSetRequest,
    QuotaUsageRequest,
)
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import Amount, Limits

NOVAS = Limits(instances=10, cores=20, ram_mb=51200)
OPERATOR = context(role="operator", service_id="operator-1")


@pytest.fixture
def region():
    made = Region()
    made.capacity("c1")
    return made


def get(region, project="p1"):
    return region.call(methods.QUOTA_GET, QuotaRequest(project_id=project))


def set_quota(region, *, force=False, unset=(), **limits):
    request = QuotaSetRequest(project_id="p1", limits=Limits(**limits), unset=list(unset), force=force)
    return region.call(methods.QUOTA_SET, request)


def test_a_project_without_limits_of_its_own_has_the_configured_ones(region):
    reply = get(region)
    assert (reply.limits, reply.own, reply.used) == (NOVAS, Limits(), Amount())


def test_limits_are_set_one_by_one_and_given_back(region):
    assert set_quota(region, cores=3).limits == Limits(instances=10, cores=3, ram_mb=51200)
    assert set_quota(region, instances=-1).own == Limits(instances=-1, cores=3)
    assert set_quota(region, unset=["cores"]).own == Limits(instances=-1)
    assert set_quota(region, unset=["instances"]).limits == NOVAS
    assert region.ledger.get(QUOTAS, "p1") is None


def test_a_limit_below_what_is_used_needs_force(region):
    region.call(methods.SERVERS_CREATE, create_request(3))
    with pytest.raises(InvalidRequest, match="Quota limit 2 for instances must be greater than or equal to already"):
        set_quota(region, instances=2)
    assert set_quota(region, instances=3).limits.instances == 3
    assert set_quota(region, instances=2, force=True).limits.instances == 2
    with pytest.raises(QuotaExceeded, match="already used 3 of 2 instances"):
        region.call(methods.SERVERS_CREATE, create_request(operation_id="op-2"))


def test_an_old_limit_below_what_is_used_does_not_keep_others_from_being_set(region):
    region.call(methods.SERVERS_CREATE, create_request(3))
    set_quota(region, instances=1, force=True)
    assert set_quota(region, cores=50).limits == Limits(instances=1, cores=50, ram_mb=51200)


@pytest.mark.parametrize("limits", [{"cores": -2}, {"ram_mb": 2**31}])
def test_a_limit_that_cannot_be_is_refused(region, limits):
    with pytest.raises(InvalidRequest):
        set_quota(region, **limits)
    with pytest.raises(InvalidRequest):
        set_quota(region, unset=["colour"])


def test_a_changed_default_holds_for_all_that_have_no_limit_of_their_own(region):
    set_quota(region, cores=3)
    request = QuotaDefaultSetRequest(limits=Limits(cores=1, instances=2))
    assert region.call(methods.QUOTA_SET_DEFAULT, request, OPERATOR).own == Limits(cores=1, instances=2)
    assert get(region).limits == Limits(instances=2, cores=3, ram_mb=51200)
    assert get(region, "p2").limits == Limits(instances=2, cores=1, ram_mb=51200)
    assert region.call(methods.QUOTA_DEFAULT, Empty()).limits == Limits(instances=2, cores=1, ram_mb=51200)
    request = QuotaDefaultSetRequest(limits=Limits(), unset=["cores", "instances"])
    assert region.call(methods.QUOTA_SET_DEFAULT, request, OPERATOR).limits == NOVAS
    assert region.ledger.get(QUOTA_CLASSES, "default") is not None


def test_as_many_servers_are_made_as_the_quota_leaves_room_for(region):
    set_quota(region, instances=5)
    request = create_request(8)
    request.min_count = 6
    with pytest.raises(QuotaExceeded, match="Requested 6-8"):
        region.call(methods.SERVERS_CREATE, request)
    request.min_count = 2
    reply = region.call(methods.SERVERS_CREATE, request)
    assert len(reply.uuids) == 5
    assert get(region).used == Amount(instances=5, cores=5, ram_mb=2560)
    assert [measure.value for measure in region.role.measures() if measure.name == "quota_refused"] == [1]


def test_what_another_conductor_owns_is_handed_on_to_it(region):
    region.ledger.lost.add(partition_of("p1"))
    region.call(methods.QUOTA_GET, QuotaRequest(project_id="p1"), OPERATOR)
    assert [key for key, _ in region.forwarded] == ["p1"]


def test_a_page_of_usage_is_bounded(region):
    with pytest.raises(InvalidRequest):
        region.call(methods.QUOTA_USAGE, QuotaUsageRequest(limit=10**6), OPERATOR)
