"""The hash that every conductor, agent and API must agree upon, for ever."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcompute.objects.partition import (
    GLOBAL_KEY,
    PARTITIONS,
    ConductorInfo,
    MapShare,
    PartitionMap,
    PartitionMapDelta,
    map_delta,
    partition_of,
    patched,
)

VECTORS = [
    ("", 66),
    ("global", 116),
    ("root", 77),
    ("demo", 108),
    ("c1-host-01", 31),
    ("compute-1.example.org", 124),
    ("00000000-0000-0000-0000-000000000000", 124),
    ("ffffffff-ffff-ffff-ffff-ffffffffffff", 184),
    ("6f9619ff-8b86-d011-b42d-00cf4fc964ff", 202),
    ("3f2504e0-4f89-41d3-9a0c-0305e82c3301", 86),
    ("6F9619FF-8B86-D011-B42D-00CF4FC964FF", 60),
    ("projet-é", 244),
    ("プロジェクト", 43),
    ("\U0001f5a5", 120),
]


@pytest.mark.parametrize(("key", "partition"), VECTORS)
def test_a_key_is_in_the_partition_it_always_was(key, partition):
    assert partition_of(key) == partition


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_partition_is_four_bytes_of_sha256_modulo_256(key):
    digest = hashlib.sha256(key.encode("utf-8")).digest()
    assert partition_of(key) == ((digest[0] << 24) + (digest[1] << 16) + (digest[2] << 8) + digest[3]) % 256
    assert 0 <= partition_of(key) < PARTITIONS


def test_keys_are_not_case_folded():
    assert partition_of("ABC") != partition_of("abc")


def test_random_keys_spread_evenly():
    counts = [0] * PARTITIONS
    for number in range(PARTITIONS * 100):
        counts[partition_of(f"host-{number}")] += 1
    assert min(counts) > 50
    assert max(counts) < 160


def test_a_new_map_is_owned_by_nobody():
    fresh = PartitionMap(cell="c1")
    assert fresh.owner_of(GLOBAL_KEY) == ""
    assert len(fresh.owners) == len(fresh.epochs) == PARTITIONS


def test_a_map_names_the_owner_of_a_key():
    owned = PartitionMap(cell="c1")
    owned.owners[partition_of("host-7")] = "conductor-2"
    assert owned.owner_of("host-7") == "conductor-2"


def cell_map(version: int, places: list[tuple[str, int]], term: int = 1, address: str = "tcp://x") -> PartitionMap:
    return PartitionMap(
        cell="c1",
        version=version,
        term=term,
        owners=[owner for owner, _ in places],
        epochs=[epoch for _, epoch in places],
        conductors={"k1": ConductorInfo(service_id="k1", incarnation=str(version), address=address)},
    )


@given(st.data())
def test_a_delta_brings_everyone_who_knows_a_map_from_its_base_on_to_the_newest(data: st.DataObject) -> None:
    """As ownership moves: a partition that changes hands does so under the version that rises then."""
    places = [("k1", 1)] * PARTITIONS
    maps = [cell_map(1, places)]
    for version in range(2, data.draw(st.integers(3, 7))):
        moved = data.draw(st.sets(st.integers(0, PARTITIONS - 1), max_size=200))
        owner = data.draw(st.sampled_from(["k1", "k2", "k3"]))
        places = [(owner, version) if p in moved else place for p, place in enumerate(places)]
        maps.append(cell_map(version, places, address=data.draw(st.sampled_from(["tcp://x", "tcp://y"]))))
    base = data.draw(st.integers(0, len(maps) - 1))
    delta = map_delta(maps[base], maps[-1])
    assert delta is not None
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(delta), type=PartitionMapDelta)
    for known in maps[base:]:
        assert patched(known, read) == maps[-1]
    for behind in maps[:base]:
        assert patched(behind, read) is None


def test_another_term_or_a_partition_that_is_none_wants_the_whole_map() -> None:
    places = [("k1", 1)] * PARTITIONS
    one, two = cell_map(1, places), cell_map(2, places, term=2)
    assert map_delta(one, two) is None
    assert map_delta(PartitionMap(cell="c1"), one) is None
    wrong = PartitionMapDelta(cell="c1", version=2, base=1, shares=[MapShare("k1", 2, [PARTITIONS])])
    assert patched(one, wrong) is None
    assert patched(two, PartitionMapDelta(cell="c1", version=3, base=1)) is None


def test_a_delta_of_a_take_over_is_a_fraction_of_the_map() -> None:
    names = [f"c1-conductor-{number}" for number in range(2)]
    conductors = {
        name: ConductorInfo(service_id=name, incarnation="i" * 32, address="tcp://10.0.0.1:21001", public_key="k" * 40)
        for name in names
    }
    before = PartitionMap(cell="c1", version=70_000, conductors=conductors)
    before.owners, before.epochs = names * (PARTITIONS // 2), [69_999] * PARTITIONS
    after = msgspec.structs.replace(
        before,
        version=70_001,
        owners=[names[0]] * PARTITIONS,
        epochs=[69_999, 70_001] * (PARTITIONS // 2),
        conductors={names[0]: conductors[names[0]]},
    )
    sizes = [len(msgspec.msgpack.encode(each)) for each in (after, map_delta(before, after))]
    assert sizes[0] > 5000
    assert sizes[1] < 500
