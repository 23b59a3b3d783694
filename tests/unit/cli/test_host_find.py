"""A host is looked for in every cell before anything is done to it."""

from typing import Any, cast

import pytest

from zcompute.cli.exits import CommandError
from zcompute.cli.host_find import find_host
from zcompute.cli.operator import Operator
from zcompute.objects.cell import ROOT_CELL, CellInfo
from zcompute.objects.errors import HostNotFound
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import Host
from zcompute.objects.messages.region import CellListReply
from zcompute.objects.messages.topology import HostListReply
from zcompute.objects.methods import CELL_LIST, HOST_LIST
from zcompute.objects.partition import ConductorInfo


class Region:
    """Cells with their hosts; None: it does not answer. ``configured``: linked before the root has said anything."""

    def __init__(self, *configured: str, root: bool = True, **hosts: list[str] | None) -> None:
        self.hosts = hosts
        self.linked = {*configured, *([ROOT_CELL] if root else [])}
        self.asked: list[str] = []

    def cells(self) -> list[str]:
        return sorted(self.linked)

    def dial_more(self, peers: Any) -> None:
        self.linked |= {peer.id for peer in peers}

    def wait_links(self, timeout_ms: int) -> None:
        assert timeout_ms > 0

    def ask_cell(self, cell: str, method: Any, request: Any) -> Any:
        if method is CELL_LIST and ROOT_CELL in self.linked:
            return CellListReply(cells=[info(ROOT_CELL), info("empty", conductors=False), *map(info, self.hosts)])
        hosts = self.hosts.get(cell) if cell in self.linked else None
        if hosts is None:
            raise CommandError(f"no conductor of cell {cell} has answered")
        assert method is HOST_LIST
        self.asked.append(cell)
        if request.name not in hosts:
            raise HostNotFound("none", host=request.name)
        room = Amounts(vcpus=1, memory_mb=1, disk_gb=1)
        return HostListReply(hosts=[Host(name=request.name, service_id="a", total=room)])


def info(name: str, conductors: bool = True) -> CellInfo:
    known = ConductorInfo(service_id=name, incarnation="i", address="tcp://127.0.0.1:1", public_key="k" * 40)
    return CellInfo(name=name, conductors=[known] if conductors else [])


def find(region: Region, cell: str | None = None) -> str:
    home, row = find_host(cast(Operator, region), "h1", cell)
    assert row.name == "h1"
    return home


def test_it_is_found_in_a_cell_that_the_operator_has_not_configured() -> None:
    region = Region("c1", c1=["h2"], c2=["h1"])
    assert find(region) == "c2"
    assert region.asked == ["c1", "c2"]


def test_a_host_of_two_cells_is_neither_ones_until_the_cell_is_named() -> None:
    region = Region("c1", c1=["h1"], c2=["h1"])
    with pytest.raises(CommandError, match="cells c1, c2 have a host h1: name one with --cell"):
        find(region)
    assert find(region, "c2") == "c2"


def test_a_host_of_no_cell_is_said_with_the_cells_that_were_asked() -> None:
    with pytest.raises(CommandError, match="host h1 is not known in cells c1, c2"):
        find(Region(c1=[], c2=["h2"]))
    with pytest.raises(CommandError, match="none is known"):
        find(Region())


def test_a_cell_that_does_not_answer_may_have_it() -> None:
    with pytest.raises(CommandError, match="c2 has answered; cell c1 has one: name it with --cell"):
        find(Region(c1=["h1"], c2=None))
    with pytest.raises(CommandError, match="may be in a cell that does not answer: no conductor of cell c2"):
        find(Region(c1=[], c2=None))
    assert find(Region(c1=["h1"], c2=None), "c1") == "c1"


def test_without_the_root_a_named_cell_that_is_configured_is_enough() -> None:
    assert find(Region("c1", root=False, c1=["h1"]), "c1") == "c1"
    with pytest.raises(CommandError):
        find(Region("c1", root=False, c1=["h1"]))
