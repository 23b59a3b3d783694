"""Conductors as an agent last knew them."""

from pathlib import Path

from zcompute.compute.known import KnownConductors
from zcompute.compute.links import remembered_seeds
from zcompute.objects.partition import ConductorInfo


def info(service_id: str, address: str) -> ConductorInfo:
    return ConductorInfo(service_id=service_id, incarnation="i", address=address, public_key="k")


def test_the_places_of_the_newest_map_are_found_again_by_the_next_agent(tmp_path: Path) -> None:
    path = tmp_path / "conductors.json"
    known = KnownConductors(path)
    assert known.read() == {}
    known.write({"a": info("a", "tcp://a:1"), "b": info("b", "tcp://b:1")})
    assert KnownConductors(path).read() == {"a": ("tcp://a:1", "k"), "b": ("tcp://b:1", "k")}
    known.write({})
    assert len(KnownConductors(path).read()) == 2, "an empty map teaches nothing"
    known.write({"a": info("a", "tcp://a:2")})
    assert KnownConductors(path).read() == {"a": ("tcp://a:2", "k")}
    path.write_text("{")
    assert KnownConductors(path).read() == {}


def test_only_conductors_that_were_last_known_elsewhere_are_dialled_beside_the_seeds() -> None:
    seeds = {"a": ("tcp://a:1", "k"), "b": ("tcp://b:1", "k")}
    known = {"a": ("tcp://a:1", "k"), "b": ("tcp://b:2", "new"), "c": ("tcp://c:1", "k")}
    assert sorted(remembered_seeds(seeds, known).values()) == [("tcp://b:2", "new"), ("tcp://c:1", "k")]
    assert not set(remembered_seeds(seeds, known)) & set(seeds)
