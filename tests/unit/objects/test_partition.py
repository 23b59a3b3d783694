"""The hash that every conductor, agent and API must agree upon, for ever."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcompute.objects.partition import GLOBAL_KEY, PARTITIONS, PartitionMap, partition_of

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
