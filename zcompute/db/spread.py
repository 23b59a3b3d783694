"""Spreading partitions evenly over lanes. Pure."""

from collections.abc import Mapping, Sequence


def spread(partitions: Sequence[int], lanes: Sequence[int], loads: Mapping[int, int]) -> dict[int, list[int]]:
    """Give each partition to the lane that has the fewest, counting what the lanes have (``loads``) already.

    Lanes that get none are left out. Ties go to the lower lane id.
    """
    if not lanes:
        raise ValueError("expected at least one lane to give partitions to")
    counts = {lane: loads.get(lane, 0) for lane in sorted(lanes)}
    given: dict[int, list[int]] = {}
    for partition in sorted(partitions):
        lane = min(counts, key=lambda each: (counts[each], each))
        counts[lane] += 1
        given.setdefault(lane, []).append(partition)
    return given
