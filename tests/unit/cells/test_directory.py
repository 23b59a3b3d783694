"""Which cells are known, and whom the api dials."""

from typing import cast

import msgspec
import pytest

from tests.unit.cells.fake_bus import FakeEndpoint, FakeLink, silence
from zcompute.bus import BusConfigError, Endpoint, Event, Link
from zcompute.bus.errors import Unavailable
from zcompute.cells.directory import CellDirectory
from zcompute.objects.cell import CellInfo
from zcompute.objects.methods import TOPIC_CELLS
from zcompute.objects.partition import ConductorInfo, PartitionMap


def conductor(name: str) -> ConductorInfo:
    return ConductorInfo(service_id=name, incarnation="", address=f"tcp://{name}")


def cell(name: str, revision: int, *conductors: str) -> Event:
    info = CellInfo(name=name, conductors=[conductor(c) for c in conductors], revision=revision)
    return Event(TOPIC_CELLS, name, revision, msgspec.msgpack.encode(info))


def test_cells_come_and_change_as_the_root_says() -> None:
    endpoint = FakeEndpoint()
    directory = CellDirectory(cast(Endpoint, endpoint), [conductor("r1"), conductor("r2")])
    directory.start()
    assert sorted(endpoint.dialled) == ["tcp://r1", "tcp://r2"]
    assert directory.cells() == []
    with pytest.raises(Unavailable):
        directory.router("c1")
    root, stranger = FakeLink("root", "r1", silence), FakeLink("c9", "x", silence)
    arrive = endpoint.events[TOPIC_CELLS]
    arrive(root, cell("c1", 1, "a", "b"))
    arrive(stranger, cell("c9", 1, "evil"))
    arrive(root, Event(TOPIC_CELLS, "c8", 1, b"\xc1"))
    assert directory.cells() == ["c1"]
    assert directory.router("c1").cell == "c1"
    assert directory.root.cell == "root"
    arrive(root, cell("c1", 3, "b", "c"))
    arrive(root, cell("c1", 2, "old"))
    assert sorted(endpoint.dialled) == ["tcp://a", "tcp://b", "tcp://c", "tcp://r1", "tcp://r2"]
    assert endpoint.hung_up == ["tcp://a"]
    arrive(root, cell("c1", 4))
    assert endpoint.hung_up == ["tcp://a"], "an empty list changes nothing"


def test_a_cells_own_map_names_its_conductors_too() -> None:
    endpoint = FakeEndpoint()
    directory = CellDirectory(cast(Endpoint, endpoint), [conductor("r1")])
    directory.start()
    directory.root.update(PartitionMap(cell="root", version=1, conductors={"r2": conductor("r2")}))
    assert sorted(endpoint.dialled) == ["tcp://r1", "tcp://r2"]
    directory.root.update(PartitionMap(cell="root", version=2))
    assert endpoint.hung_up == ["tcp://r2"], "the seeds stay"
    assert not directory.linked("root")


def test_a_conductor_that_moved_is_left_where_it_was_once_it_is_linked_where_it_is() -> None:
    endpoint = FakeEndpoint()
    directory = CellDirectory(cast(Endpoint, endpoint), [conductor("r1")])
    directory.start()
    moved = ConductorInfo(service_id="r1", incarnation="", address="tcp://second-port", public_key="new")
    directory.root.update(PartitionMap(cell="root", version=2, conductors={"r1": moved}))
    link = endpoint.dialled["tcp://second-port"]
    link.up = False
    directory._link_changed(cast(Link, link))
    assert endpoint.hung_up == []
    link.up = True
    directory._link_changed(cast(Link, link))
    assert endpoint.hung_up == ["tcp://r1"]
    link.up = False
    directory._link_changed(cast(Link, link))
    assert sorted(endpoint.dialled) == ["tcp://r1", "tcp://second-port"]


def test_an_address_that_cannot_be_dialled_keeps_from_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = FakeEndpoint()
    dial = endpoint.dial

    def strict(address: str, server_public_key: str = "") -> FakeLink:
        if address == "tcp://a":
            raise BusConfigError("expected a server key")
        return dial(address, server_public_key)

    monkeypatch.setattr(endpoint, "dial", strict)
    directory = CellDirectory(cast(Endpoint, endpoint), [conductor("a"), conductor("b")])
    directory.start()
    assert list(endpoint.dialled) == ["tcp://b"]


def test_a_deleted_cell_is_hung_up_on_and_comes_back_only_by_a_newer_word() -> None:
    endpoint = FakeEndpoint()
    directory = CellDirectory(cast(Endpoint, endpoint), [conductor("r1")])
    directory.start()
    directory.update(CellInfo(name="c1", conductors=[conductor("a")], revision=3))
    router = directory.router("c1")
    directory.update(CellInfo(name="c1", deleted_at_us=1, revision=4))
    assert directory.cells() == []
    assert endpoint.hung_up == ["tcp://a"]
    router.update(PartitionMap(cell="c1", version=9, conductors={"b": conductor("b")}))
    directory.update(CellInfo(name="c1", conductors=[conductor("a")], revision=3))
    assert directory.cells() == [], "what a slower root conductor says"
    assert "tcp://b" not in endpoint.dialled
    directory.update(CellInfo(name="c1", conductors=[conductor("a")], revision=5))
    assert directory.cells() == ["c1"]
