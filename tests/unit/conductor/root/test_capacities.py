"""Which cell gets the next server, from what the cells said lately."""

from zcompute.cells.choice import Wanted
from zcompute.conductor.root.capacities import Capacities
from zcompute.conductor.root.settings import RootSettings
from zcompute.objects.cell import CellCapacity, ZoneCapacity
from zcompute.objects.flavor import Amounts

TINY = Amounts(vcpus=1, memory_mb=512, disk_gb=1)
ONE = Wanted(TINY)


def free(servers):
    return Amounts(vcpus=servers, memory_mb=512 * servers, disk_gb=servers)


def capacity(cell, servers, service_id="s1", largest=None):
    return CellCapacity(
        cell=cell, service_id=service_id, free=free(servers), largest_free=free(largest or servers), hosts=1
    )


def test_servers_spread_over_cells_as_each_is_counted_when_it_is_handed():
    capacities = Capacities(RootSettings())
    capacities.report(capacity("c1", 100), 0.0)
    capacities.report(capacity("c2", 100), 0.0)
    chosen = [capacities.choose(ONE, (), (), 0.1) for _ in range(100)]
    assert 45 <= chosen.count("c1") <= 55


def test_what_was_handed_counts_until_the_reports_include_it():
    capacities = Capacities(RootSettings(handed_ms_max=2000))
    capacities.report(capacity("c1", 3), 0.0)
    capacities.hand("c1", TINY, 0.0)
    assert capacities.known(1.9)[0].free == free(2)
    assert capacities.known(2.1)[0].free == free(3)


def test_the_parts_of_several_conductors_add_up():
    capacities = Capacities(RootSettings())
    capacities.report(capacity("c1", 3, "s1", largest=1), 0.0)
    capacities.report(capacity("c1", 4, "s2", largest=2), 0.0)
    known = capacities.known(0.0)[0]
    assert (known.free, known.largest_free, known.hosts) == (free(7), free(2), 2)


def test_a_cell_that_says_nothing_any_more_is_not_known():
    capacities = Capacities(RootSettings(capacity_ms_max=5000))
    capacities.report(capacity("c1", 3), 0.0)
    assert capacities.choose(ONE, (), (), 4.9) == "c1"
    assert capacities.choose(ONE, (), (), 5.1) is None


def test_a_first_choice_among_full_cells_still_asks_one_and_a_second_does_not():
    capacities = Capacities(RootSettings())
    capacities.report(capacity("c1", 0), 0.0)
    capacities.report(capacity("c2", 0), 0.0)
    assert capacities.choose(ONE, (), (), 0.0) in ("c1", "c2")
    assert capacities.choose(ONE, ("c1",), (), 0.0) is None


def test_a_disabled_cell_gets_nothing_even_as_a_last_resort():
    capacities = Capacities(RootSettings())
    capacities.report(capacity("c1", 9), 0.0)
    assert capacities.choose(ONE, (), ("c1",), 0.0) is None


def test_cells_and_services_beyond_the_limits_are_not_kept():
    capacities = Capacities(RootSettings(cells_max=2, conductors_max=1))
    for number in range(5):
        capacities.report(capacity(f"c{number}", 1), 0.0)
        capacities.report(capacity("c0", 1, f"s{number}"), 0.0)
    assert [known.cell for known in capacities.known(0.0)] == ["c0", "c1"]
    assert capacities.known(0.0)[0].hosts == 2


def test_a_zone_that_was_asked_for_is_looked_for_before_room():
    capacities = Capacities(RootSettings())
    east, west = capacity("c1", 1), capacity("c2", 90)
    east.zones = [ZoneCapacity(zone="east", free=free(1), largest_free=free(1), hosts=1)]
    west.zones = [ZoneCapacity(zone="west", free=free(90), largest_free=free(90), hosts=1)]
    capacities.report(east, 0.0)
    capacities.report(west, 0.0)
    wanted = Wanted(TINY, "east")
    assert [capacities.choose(wanted, (), (), 0.0) for _ in range(3)] == ["c1"] * 3, "full: its scheduler is the judge"
    assert capacities.choose(wanted, ("c1",), (), 0.0) is None, "no other cell has the zone"
    assert capacities.choose(Wanted(TINY, "north"), (), (), 0.0) == "c2", "some cell says definitely that nobody has it"
