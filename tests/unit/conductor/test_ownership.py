"""The plan of moves: fair, as few as can be, only between the living; gains never come from an old map."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from zcompute.conductor.ownership import Leaving, dead_lanes, gains, plan_moves, strayed
from zcompute.db.store import LaneRow, MapRows, PartitionRow

PARTITIONS = 256


@st.composite
def maps(draw: st.DrawFn) -> MapRows:
    conductors = [f"i{n}" for n in range(draw(st.integers(1, 6)))]
    lanes = {}
    for place, name in enumerate(name for name in conductors for _ in range(draw(st.integers(1, 3)))):
        lanes[place + 1] = LaneRow(place + 1, name, name.replace("i", "s"), draw(st.booleans()) or place == 0)
    owners = draw(st.lists(st.sampled_from([None, *lanes]), min_size=PARTITIONS, max_size=PARTITIONS))
    rows = [PartitionRow(p, lane, draw(st.integers(0, 3))) for p, lane in enumerate(owners)]
    return MapRows("c1", 9, 1, rows, lanes, {})


def owners_after(rows: MapRows, able: list[str], leaving: str | None = None) -> tuple[dict[int, int | None], int]:
    owners = {row.partition_id: row.lane_id for row in rows.partitions}
    moved = 0
    for move in plan_moves(rows, able, leaving):
        for partition in move.partitions:
            assert owners[partition] == move.from_lane
            owners[partition] = move.to_lane
            moved += 1
    return owners, moved


@given(maps(), st.data())
def test_a_plan_is_fair_minimal_and_between_the_living(rows: MapRows, data: st.DataObject) -> None:
    names = sorted({lane.incarnation for lane in rows.lanes.values()})
    able = sorted(data.draw(st.sets(st.sampled_from(names), min_size=1)))
    able_lanes = {
        lane.lane_id: lane.incarnation for lane in rows.lanes.values() if lane.alive and lane.incarnation in able
    }
    before = Counter(able_lanes[row.lane_id] for row in rows.partitions if row.lane_id in able_lanes)
    owners, moved = owners_after(rows, able)
    after = Counter(able_lanes[lane] for lane in owners.values() if lane in able_lanes)
    for row in rows.partitions:
        if row.lane_id not in able_lanes:
            assert owners[row.partition_id] == row.lane_id
    members = sorted(set(able_lanes.values()))
    if not members:
        assert moved == 0
        return
    total = sum(before.values())
    counts = [after[name] for name in members]
    assert sum(counts) == total
    assert max(counts) - min(counts) <= 1
    floor, extra = divmod(total, len(members))
    surplus = sorted((before[name] for name in members), reverse=True)
    fewest = sum(max(0, count - floor - (place < extra)) for place, count in enumerate(surplus))
    assert moved == fewest


@given(maps())
def test_who_leaves_gives_everything_to_the_others(rows: MapRows) -> None:
    living = {lane.incarnation for lane in rows.lanes.values() if lane.alive}
    owners, moved = owners_after(rows, sorted(living), leaving="i0")
    mine = {lane.lane_id for lane in rows.lanes.values() if lane.incarnation == "i0" and lane.alive}
    left = [p for p, lane in owners.items() if lane in mine]
    assert not left if living - {"i0"} else moved == 0


def test_a_newcomer_gets_half_and_nothing_moves_twice() -> None:
    lanes = {1: LaneRow(1, "a", "s1", True), 2: LaneRow(2, "a", "s1", True), 3: LaneRow(3, "b", "s2", True)}
    rows = MapRows("c1", 1, 1, [PartitionRow(p, 1 + p % 2, 1) for p in range(PARTITIONS)], lanes, {})
    owners, moved = owners_after(rows, ["a", "b"])
    assert moved == 128
    assert Counter(owners.values()) == {1: 64, 2: 64, 3: 128}
    again = MapRows("c1", 2, 1, [PartitionRow(p, lane, 2) for p, lane in owners.items()], lanes, {})
    assert plan_moves(again, ["a", "b"]) == []
    assert plan_moves(rows, ["a"]) == []


def test_gains_need_a_newer_epoch_than_any_held_before() -> None:
    lanes = {1: LaneRow(1, "a", "s1", True)}
    rows = MapRows("c1", 5, 1, [PartitionRow(0, 1, 5), PartitionRow(1, 1, 4), PartitionRow(2, None, 0)], lanes, {})
    assert [(gain.partition, gain.owner_epoch) for gain in gains(rows, {1}, {})] == [(0, 5), (1, 4)]
    assert [gain.partition for gain in gains(rows, {1}, {0: 4, 1: 4})] == [0]


def test_dead_lanes_and_strayed_partitions_are_seen() -> None:
    lanes = {1: LaneRow(1, "a", "s1", True), 2: LaneRow(2, "a", "s1", False)}
    rows = MapRows("c1", 5, 1, [PartitionRow(0, 1, 5), PartitionRow(1, 2, 4), PartitionRow(2, 7, 0)], lanes, {})
    assert dead_lanes(rows, [1, 2, 3]) == [2, 3]
    assert strayed(rows, {1, 2}, [0, 1, 2]) == [2]


def test_who_has_handed_everything_over_is_given_nothing_back() -> None:
    lanes = {1: LaneRow(1, "i1", "s1", True), 2: LaneRow(2, "i2", "s2", True), 3: LaneRow(3, "i3", "s3", True)}

    def of(*owners: int) -> MapRows:
        return MapRows("c1", 9, 1, [PartitionRow(p, lane, 1) for p, lane in enumerate(owners)], lanes, {})

    leaving = Leaving()
    leaving.learn(of(1, 1, 2, 2))
    assert leaving.staying(["i1", "i2", "i3"]) == ["i1", "i2", "i3"]
    leaving.learn(of(1, 1, 1, 1))
    assert leaving.staying(["i1", "i2", "i3"]) == ["i1", "i3"]
    leaving.learn(of(1, 1, 1, 2))  # its hand-over of one lane did not go through, or comes from an older map
    assert leaving.staying(["i1", "i2", "i3"]) == ["i1", "i2", "i3"]
