"""Which cells there are: learnt from the root, links dialled to every conductor of each. For the api."""

import logging
from collections.abc import Iterable

import msgspec

from zcompute.bus import Endpoint, Event, Link
from zcompute.bus.errors import BusError, Unavailable
from zcompute.cells.router import CONDUCTOR, PartitionRouter
from zcompute.objects.cell import ROOT_CELL, CellInfo
from zcompute.objects.methods import TOPIC_CELLS
from zcompute.objects.partition import ConductorInfo, PartitionMap

log = logging.getLogger(__name__)

CELLS_MAX = 1000
CONDUCTORS_MAX = 64  # a cell; the design allows 16 living ones


class _Cell:
    """One cell: its router, and the links dialled to its conductors by address."""

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        self.name = name
        self.router = PartitionRouter(endpoint, name)
        self.info: CellInfo | None = None
        self.seeds: list[ConductorInfo] = []
        self.links: dict[tuple[str, str], Link] = {}


class CellDirectory:
    """Dials the root's conductors, learns the cells (topic ``cells``) and their conductors (also from each cell's
    map, topic ``map``), dials those, and has a router for each cell. The endpoint must have named both topics."""

    def __init__(self, endpoint: Endpoint, root: Iterable[ConductorInfo]) -> None:
        self._endpoint = endpoint
        self._cells: dict[str, _Cell] = {}
        self._deleted: dict[str, int] = {}  # revisions; as many as the root keeps
        root_cell = self._add(ROOT_CELL)
        root_cell.seeds = list(root)

    def start(self) -> None:
        """Dial the root's conductors; returns at once."""
        self._endpoint.on_event(TOPIC_CELLS, self._arrived)
        self._endpoint.on_link_up(self._link_changed)
        self._endpoint.on_link_down(self._link_changed)
        self._dial(self._cells[ROOT_CELL])

    @property
    def root(self) -> PartitionRouter:
        """The router of the root cell."""
        return self._cells[ROOT_CELL].router

    def cells(self) -> list[str]:
        """Names of the known cells, without the root, disabled ones too (their servers still live)."""
        return sorted(name for name in self._cells if name != ROOT_CELL)

    def router(self, cell: str) -> PartitionRouter:
        """The router of a cell. Raises Unavailable for one that is not known (yet)."""
        known = self._cells.get(cell)
        if known is None:
            raise Unavailable(f"cell {cell} is not known here yet: try again")
        return known.router

    def linked(self, cell: str) -> bool:
        """Whether a conductor of the cell is linked now."""
        return bool(self._endpoint.links(role=CONDUCTOR, cell=cell))

    def update(self, info: CellInfo) -> None:
        """Take what the root says of a cell; older revisions are ignored."""
        cell = self._cells.get(info.name)
        if info.revision <= self._deleted.get(info.name, 0):
            return
        if info.deleted_at_us:
            self._drop(info)
            return
        if cell is None:
            if len(self._cells) >= CELLS_MAX:
                log.error("cell not taken up cell=%s limit=%s", info.name, CELLS_MAX)
                return
            cell = self._add(info.name)
        if cell.info is None or info.revision > cell.info.revision:
            cell.info = info
            self._dial(cell)

    def _drop(self, info: CellInfo) -> None:
        """The cell was deleted: nothing is asked there any more."""
        cell = self._cells.pop(info.name, None)
        self._deleted[info.name] = info.revision
        if cell is not None:
            log.info("cell deleted cell=%s", info.name)
            for link in cell.links.values():
                self._endpoint.hang_up(link)
            cell.links.clear()

    def _add(self, name: str) -> _Cell:
        cell = self._cells[name] = _Cell(name, self._endpoint)
        cell.router.on_map(lambda _: self._dial(cell))
        return cell

    def _arrived(self, link: Link, event: Event) -> None:
        peer = link.peer
        if peer is None or peer.role != CONDUCTOR or peer.cell != ROOT_CELL:
            log.warning("cell refused cell=%s from=%s", event.key, link.name)
            return
        try:
            self.update(msgspec.msgpack.decode(event.payload, type=CellInfo))
        except msgspec.DecodeError as error:
            log.warning("cell cannot be read cell=%s from=%s error=%s", event.key, link.name, error)

    def _link_changed(self, link: Link) -> None:
        """A conductor that moved is dialled where it was for as long as it is not linked where it is."""
        for cell in self._cells.values():
            if link in cell.links.values():
                self._dial(cell)
                return

    def _dial(self, cell: _Cell) -> None:
        """Dial who is new, hang up who is in no list any more; an empty list changes nothing."""
        if self._cells.get(cell.name) is not cell:
            return  # deleted: its router may still hear of a map
        wanted = _addresses(cell.seeds)
        if cell.info is not None:
            wanted.update(_addresses(cell.info.conductors))
        for address in _left_behind(cell):
            wanted.pop(address, None)
        wanted.update(_living(cell.router.map))
        if not wanted or len(wanted) > CONDUCTORS_MAX:
            log.warning("conductors not dialled cell=%s count=%s limit=%s", cell.name, len(wanted), CONDUCTORS_MAX)
            return
        for address, public_key in wanted.items():
            if (address, public_key) not in cell.links:
                try:
                    cell.links[(address, public_key)] = self._endpoint.dial(address, public_key)
                except BusError as error:  # one conductor's odd address keeps us from no other
                    log.error("conductor not dialled cell=%s address=%s error=%s", cell.name, address, error)
        for place in [place for place in cell.links if wanted.get(place[0]) != place[1]]:
            self._endpoint.hang_up(cell.links.pop(place))


def _left_behind(cell: _Cell) -> list[str]:
    """Addresses of conductors that are linked elsewhere, where the cell's map says (a rotated server key)."""
    former = [*cell.seeds, *(cell.info.conductors if cell.info is not None else ())]
    left = []
    for told in former:
        now = cell.router.map.conductors.get(told.service_id)
        if now is not None and now.address != told.address:
            link = cell.links.get((now.address, now.public_key))
            if link is not None and link.up:
                left.append(told.address)
    return left


def _addresses(conductors: Iterable[ConductorInfo]) -> dict[str, str]:
    return {conductor.address: conductor.public_key for conductor in conductors}


def _living(cell_map: PartitionMap) -> dict[str, str]:
    return _addresses(cell_map.conductors.values())
