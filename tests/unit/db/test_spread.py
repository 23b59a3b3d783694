"""Partitions are spread evenly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcompute.db.spread import spread


@given(
    st.sets(st.integers(0, 255)),
    st.sets(st.integers(1, 50), min_size=1, max_size=6),
)
def test_every_partition_is_given_once_and_lanes_differ_by_one_at_most(partitions: set[int], lanes: set[int]) -> None:
    given_out = spread(sorted(partitions), sorted(lanes), {})
    assert sorted(each for share in given_out.values() for each in share) == sorted(partitions)
    counts = [len(given_out.get(lane, [])) for lane in lanes]
    assert max(counts) - min(counts) <= 1


def test_what_a_lane_has_counts() -> None:
    assert spread([1, 2, 3], [10, 11], {10: 2, 99: 7}) == {10: [3], 11: [1, 2]}


def test_without_lanes_nothing_can_be_given() -> None:
    with pytest.raises(ValueError, match="at least one lane"):
        spread([1], [], {})
