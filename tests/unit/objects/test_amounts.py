"""Amounts of resources: what fits, what adds up."""

from hypothesis import given

from tests.unit.objects.strategies import objects
from zcompute.objects.flavor import Amounts, Flavor
from zcompute.objects.host import Claim


@given(objects(Amounts), objects(Amounts))
def test_what_was_added_can_be_taken_away(first, second):
    assert first.plus(second).minus(second) == first


@given(objects(Amounts))
def test_amounts_fit_in_themselves_and_in_nothing_smaller(amounts):
    assert amounts.fits_in(amounts)
    for one in (Amounts(vcpus=1), Amounts(memory_mb=1), Amounts(disk_gb=1)):
        assert not amounts.fits_in(amounts.minus(one))


def test_a_flavor_takes_its_disks_and_its_swap_rounded_up():
    flavor = Flavor(flavorid="1", name="n", vcpus=2, memory_mb=512, root_gb=3, ephemeral_gb=4, swap_mb=1025)
    assert flavor.amounts() == Amounts(vcpus=2, memory_mb=512, disk_gb=9)


def test_a_claim_is_named_by_task_and_attempt():
    claim = Claim(instance_uuid="u", task_id="t", attempt=3, host="h", amounts=Amounts())
    assert claim.name == "t/3"
