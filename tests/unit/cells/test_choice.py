"""Choosing a cell."""

from hypothesis import given
from hypothesis import strategies as st

from zcompute.cells.choice import Wanted, by_cell, choose_cell, servers_that_fit
from zcompute.objects.cell import CellCapacity, ZoneCapacity
from zcompute.objects.flavor import Amounts

ONE = Wanted(Amounts(vcpus=1, memory_mb=512, disk_gb=1))


def capacity(cell: str, vcpus: int, largest: int | None = None) -> CellCapacity:
    free = Amounts(vcpus=vcpus, memory_mb=vcpus * 512, disk_gb=vcpus)
    most = vcpus if largest is None else largest
    return CellCapacity(
        cell=cell,
        service_id="s",
        free=free,
        largest_free=Amounts(vcpus=most, memory_mb=most * 512, disk_gb=most),
        hosts=1,
    )


def test_the_cell_with_most_room_is_chosen() -> None:
    assert choose_cell([capacity("c1", 3), capacity("c2", 5)], ONE, [], []) == "c2"


def test_tried_and_disabled_cells_are_not() -> None:
    cells = [capacity("c1", 3), capacity("c2", 5), capacity("c3", 9)]
    assert choose_cell(cells, ONE, ["c3"], ["c2"]) == "c1"
    assert choose_cell(cells, ONE, ["c3", "c1"], ["c2"]) is None


def test_a_cell_without_a_host_large_enough_is_not() -> None:
    assert choose_cell([capacity("c1", 30, largest=0), capacity("c2", 1)], ONE, [], []) == "c2"


def test_the_conductors_of_a_cell_count_together() -> None:
    assert choose_cell([capacity("c1", 3), capacity("c2", 2), capacity("c2", 2)], ONE, [], []) == "c2"


def test_one_by_one_the_cells_fill_evenly() -> None:
    free = {"c1": 10, "c2": 10}
    for _ in range(20):
        chosen = choose_cell([capacity(cell, left) for cell, left in free.items()], ONE, [], [])
        assert chosen is not None
        free[chosen] -= 1
    assert free == {"c1": 0, "c2": 0}
    assert choose_cell([capacity(cell, left) for cell, left in free.items()], ONE, [], []) is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=6), st.integers(1, 3))
def test_what_is_chosen_fits(cells: list[tuple[str, int]], size: int) -> None:
    amounts = Amounts(vcpus=size, memory_mb=1, disk_gb=0)
    chosen = choose_cell([capacity(cell, vcpus) for cell, vcpus in cells], Wanted(amounts), [], [])
    if chosen is not None:
        assert any(cell == chosen and vcpus >= size for cell, vcpus in cells)
        assert servers_that_fit(amounts, amounts) == 1
    else:
        assert all(vcpus < size for _, vcpus in cells)


def zoned(cell: str, **zones: int) -> CellCapacity:
    whole = capacity(cell, sum(zones.values()))
    for zone, vcpus in zones.items():
        part = capacity(cell, vcpus)
        whole.zones.append(ZoneCapacity(zone=zone, free=part.free, largest_free=part.largest_free, hosts=1))
    return whole


def test_only_hosts_of_the_zone_that_was_asked_for_count() -> None:
    cells = [zoned("c1", east=2, west=9), zoned("c2", east=5), zoned("c3", west=50)]
    assert choose_cell(cells, Wanted(ONE.amounts, "east"), [], []) == "c2"
    assert choose_cell(cells, Wanted(ONE.amounts, "west"), [], ["c3"]) == "c1"
    assert choose_cell(cells, Wanted(ONE.amounts, "north"), [], []) is None


def test_a_cell_of_the_release_before_tells_of_no_zones_and_counts_whole() -> None:
    assert choose_cell([capacity("c1", 3)], Wanted(ONE.amounts, "east"), [], []) == "c1"


def test_the_zones_of_a_cells_conductors_add_up() -> None:
    whole = by_cell([zoned("c1", east=2), zoned("c1", east=3, west=1)])["c1"]
    assert [(part.zone, part.free.vcpus, part.hosts) for part in whole.zones] == [("east", 5, 2), ("west", 1, 1)]


def test_one_cell_alone_may_be_asked_for():
    cells = [capacity("c1", 3), capacity("c2", 5)]
    assert choose_cell(cells, Wanted(ONE.amounts, cell="c1"), [], []) == "c1"
    assert choose_cell(cells, Wanted(ONE.amounts, cell="c1"), ["c1"], []) is None
    assert choose_cell(cells, Wanted(ONE.amounts, cell="c3"), [], []) is None
