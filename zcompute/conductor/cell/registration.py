"""What the root is told of this cell: free room (soft, often), and who its conductors are (until acknowledged)."""

import logging
from collections.abc import Iterable

import gevent
from gevent.event import Event

from zcompute.bus import Link
from zcompute.bus.errors import BusError
from zcompute.cells.router import PartitionRouter
from zcompute.conductor.cell.claims import free_on, takes_new
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.env import ConductorEnv
from zcompute.config import SchedulerConfig
from zcompute.log import REPEATED
from zcompute.objects.cell import ROOT_CELL, CellCapacity, CellInfo, ZoneCapacity
from zcompute.objects.errors import ServiceError
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import Host
from zcompute.objects.messages.region import CellRegisterRequest
from zcompute.objects.methods import CELL_CAPACITY, CELL_REGISTER
from zcompute.objects.partition import GLOBAL_KEY, ConductorInfo, PartitionMap

log = logging.getLogger(__name__)


def capacity_of(
    cell: str, service_id: str, hosts: Iterable[Host], ratios: SchedulerConfig, zones_max: int = 64
) -> CellCapacity:
    """What is free on those hosts that take new instances, and in each availability zone. Pure.

    With more zones than ``zones_max`` those with most hosts are told; the cell is then not chosen for the others.
    """
    whole = _Part()
    zones: dict[str, _Part] = {}
    for host in hosts:
        if takes_new(host):
            room = free_on(host, ratios)
            whole.add(room)
            zones.setdefault(host.availability_zone, _Part()).add(room)
    told = sorted(zones.items(), key=lambda item: (-item[1].hosts, item[0]))[:zones_max]
    return CellCapacity(
        cell=cell,
        service_id=service_id,
        free=whole.free,
        largest_free=whole.largest,
        hosts=whole.hosts,
        zones=[
            ZoneCapacity(zone=zone, free=part.free, largest_free=part.largest, hosts=part.hosts)
            for zone, part in sorted(told)
        ],
    )


class _Part:
    """What is free on some hosts, summed as they come."""

    def __init__(self) -> None:
        self.free, self.largest, self.hosts = Amounts(), Amounts(), 0

    def add(self, room: Amounts) -> None:
        self.hosts += 1
        self.free = self.free.plus(room)
        largest = self.largest
        if (room.memory_mb, room.vcpus, room.disk_gb) > (largest.memory_mb, largest.vcpus, largest.disk_gb):
            self.largest = room


def conductors_of(new_map: PartitionMap) -> list[ConductorInfo]:
    """The living conductors, in a fixed order."""
    return [new_map.conductors[service_id] for service_id in sorted(new_map.conductors)]


class Registration:
    """Two greenlets: one casts capacity to every linked root conductor, one registers what has changed."""

    def __init__(
        self, env: ConductorEnv, root_router: PartitionRouter, table: HostTable, settings: CellSettings
    ) -> None:
        self._env = env
        self._root_router = root_router
        self._table = table
        self._settings = settings
        self._registered: list[ConductorInfo] | None = None
        self._wanted = Event()
        self._news = Event()  # the root should hear of free room before the next interval
        self._willing: set[str] = set()
        self._greenlets: list[gevent.Greenlet] = []

    def start(self) -> None:
        """Begin; the first registration goes at once."""
        self._env.ledger.on_map(self._map_changed)
        self._table.on_change(self._host_changed)
        self._env.endpoint.on_link_up(self._link_up)
        self._wanted.set()
        self._greenlets = [gevent.spawn(self._cast_loop), gevent.spawn(self._register_loop)]

    def stop(self) -> None:
        """End."""
        gevent.killall(self._greenlets, block=False)

    def _map_changed(self, new_map: PartitionMap) -> None:
        if conductors_of(new_map) != self._registered:
            self._wanted.set()

    def _host_changed(self, host: Host) -> None:
        """A host that takes instances for the first time is news; every claim is not."""
        if takes_new(host) and host.name not in self._willing:
            self._willing.add(host.name)
            self._news.set()

    def _link_up(self, link: Link) -> None:
        if link.peer is not None and (link.peer.role, link.peer.cell) == ("conductor", ROOT_CELL):
            self._news.set()
            self._registered = None  # the root may be another than before: restored, or the cell created anew
            self._wanted.set()

    def _cast_loop(self) -> None:
        """Every ``capacity_ms``, and soon after news: a first burst of servers is shared among all cells' hosts."""
        settings = self._settings
        while True:
            gevent.sleep(settings.capacity_ms_min / 1000)
            self._news.wait((settings.capacity_ms - settings.capacity_ms_min) / 1000)
            self._news.clear()
            self._cast()

    def _cast(self) -> None:
        self._willing = {host.name for host in self._table if takes_new(host)}
        links = self._env.endpoint.links(role="conductor", cell=ROOT_CELL)
        if not links:
            return
        capacity = capacity_of(self._env.cell, self._env.service_id, self._table, self._env.config.scheduler)
        for link in links:
            try:
                link.cast(CELL_CAPACITY, capacity)
            except BusError as error:
                log.debug("capacity not sent to=%s error=%s", link.name, error)

    def _register_loop(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            present = self._env.ledger.map
            conductors = conductors_of(present)
            if not conductors or conductors == self._registered:
                continue
            info = CellInfo(name=self._env.cell, conductors=conductors, term=present.term, map_version=present.version)
            try:
                self._root_router.call(
                    GLOBAL_KEY, CELL_REGISTER, CellRegisterRequest(cell=info), timeout_ms=self._settings.register_ms_max
                )
            except (BusError, ServiceError) as error:
                log.info("cell not registered yet cell=%s error=%s", self._env.cell, error, extra=REPEATED)
                gevent.sleep(self._settings.register_retry_ms / 1000)
                self._wanted.set()
                continue
            self._registered = conductors
            self._news.set()
            log.info("cell registered cell=%s conductors=%s", self._env.cell, len(conductors))
