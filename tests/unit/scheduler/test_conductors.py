from zcompute.config import PeerConfig
from zcompute.objects.partition import ConductorInfo, PartitionMap
from zcompute.scheduler.conductors import Address, KnownConductors

A = PeerConfig(id="a", address="tcp://a:1", public_key="ka")


def map_with(version: int, *conductors: tuple[str, str], cell: str = "c1") -> PartitionMap:
    return PartitionMap(
        cell=cell,
        version=version,
        conductors={
            name: ConductorInfo(service_id=name, incarnation="i", address=address, public_key=f"k{name}")
            for name, address in conductors
        },
    )


def test_a_conductor_that_the_map_names_is_dialled_once():
    known = KnownConductors("c1", [A])
    assert known.first() == {"a": Address("tcp://a:1", "ka")}
    changes = known.learn(map_with(1, ("a", "tcp://a:1"), ("b", "tcp://b:1")))
    assert (changes.dial, changes.hang_up) == ({"b": Address("tcp://b:1", "kb")}, [])
    changes = known.learn(map_with(2, ("a", "tcp://a:1"), ("b", "tcp://b:1")))
    assert (changes.dial, changes.hang_up) == ({}, [])


def test_a_learnt_conductor_that_left_is_hung_up_and_a_configured_one_stays():
    known = KnownConductors("c1", [A])
    known.learn(map_with(1, ("b", "tcp://b:1")))
    changes = known.learn(map_with(2))
    assert (changes.dial, changes.hang_up) == ({}, ["b"])


def test_a_conductor_that_moved_is_dialled_anew():
    known = KnownConductors("c1", [A])
    changes = known.learn(map_with(1, ("a", "tcp://a:2")))
    assert (changes.dial, changes.hang_up) == ({"a": Address("tcp://a:2", "ka")}, ["a"])


def test_an_older_map_and_another_cells_map_change_nothing():
    known = KnownConductors("c1", [A])
    known.learn(map_with(5, ("b", "tcp://b:1")))
    for stale in (map_with(4), map_with(5), map_with(9, cell="c2")):
        changes = known.learn(stale)
        assert (changes.dial, changes.hang_up) == ({}, [])
