"""Links to every conductor of the cell, and the partition map that says which of them owns what."""

import logging
import time
from collections.abc import Callable

import gevent
import msgspec
from gevent.event import Event as Signal

from zcompute.bus import BusError, Endpoint, Event, Link
from zcompute.compute.backoff import Backoff
from zcompute.compute.ending import end_all
from zcompute.compute.fences import EPOCH_MAX
from zcompute.compute.known import KnownConductors, Place
from zcompute.compute.settings import Settings
from zcompute.compute.ways import Ways
from zcompute.config import PeerConfig
from zcompute.objects.errors import EpochRefused, ServiceError
from zcompute.objects.messages.cluster import Empty, MapReply
from zcompute.objects.messages.hosts import HostAttachRequest
from zcompute.objects.methods import HOST_ATTACH, MAP_GET, RELAY_INTERFACE, TOPIC_MAP, TOPIC_MAP_DELTAS
from zcompute.objects.partition import PARTITIONS, PartitionMap, PartitionMapDelta, patched

log = logging.getLogger(__name__)

_MAP: msgspec.msgpack.Decoder[PartitionMap] = msgspec.msgpack.Decoder(PartitionMap)
_DELTA: msgspec.msgpack.Decoder[PartitionMapDelta] = msgspec.msgpack.Decoder(PartitionMapDelta)


def plan_dials(
    seeds: dict[str, tuple[str, str]], cell_map: PartitionMap, conductors_max: int
) -> dict[str, tuple[str, str]]:
    """Whom to dial: (address, public key) by service id. Those of the map first, then seeds, which may come back."""
    wanted = {service_id: (info.address, info.public_key) for service_id, info in sorted(cell_map.conductors.items())}
    for service_id, where in seeds.items():
        wanted.setdefault(service_id, where)
    return dict(list(wanted.items())[:conductors_max])


def remembered_seeds(seeds: dict[str, Place], known: dict[str, Place]) -> dict[str, Place]:
    """What is to be dialled beside the seeds until a map is learnt: conductors that were last known elsewhere."""
    return {
        f"{service_id} (as last known)": where for service_id, where in known.items() if seeds.get(service_id) != where
    }


def is_sound(cell_map: PartitionMap, cell: str) -> bool:
    """Whether a map can be used: of this cell, with an owner and an epoch for each partition."""
    return (
        cell_map.cell == cell
        and len(cell_map.owners) == len(cell_map.epochs) == PARTITIONS
        and min(cell_map.epochs) >= 0
        and max(cell_map.epochs) <= EPOCH_MAX
    )


def relays(link: Link) -> bool:
    """Whether this conductor hands on what is another's to decide: one of an older release does not."""
    return link.peer is not None and RELAY_INTERFACE.name in link.peer.interfaces


class ConductorLinks:
    """Dials by the map, greets each link that comes up: learn the map, attach the hosts' epochs, then it is ready.

    ``on_map(map)``, ``on_ready(service_id, link, same_process)``, ``on_unready(service_id)`` and
    ``on_refused(error, the epochs that were sent)`` are set by the service; ``epochs`` gives the hosts that have begun.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cell: str,
        seeds: list[PeerConfig],
        settings: Settings,
        known: KnownConductors | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._seeds = {seed.id: (seed.address, seed.public_key) for seed in seeds}
        self._known = known
        self._remembered = {} if known is None else remembered_seeds(self._seeds, known.read())
        self._dialled: dict[str, tuple[tuple[str, str], Link]] = {}
        self._up: dict[str, Link] = {}
        self._attached: set[str] = set()
        self._ready_incarnation: dict[str, str] = {}
        self._greetings: dict[str, gevent.Greenlet] = {}
        self._map_asked: set[str] = set()
        self._refreshing: gevent.Greenlet | None = None
        self._ways = Ways(settings, endpoint.identity.service_id)
        self._beat_ways = Ways(settings, endpoint.identity.service_id)
        self._changed = Signal()
        self.map = PartitionMap(cell=cell)
        self.epochs: Callable[[], dict[str, int]] = dict
        self.on_map: Callable[[PartitionMap], None] = lambda _: None
        self.on_ready: Callable[[str, Link, bool], None] = lambda *_: None
        self.on_unready: Callable[[str], None] = lambda _: None
        self.on_refused: Callable[[EpochRefused, dict[str, int]], None] = lambda *_: None
        endpoint.on_link_up(self._link_up)
        endpoint.on_link_down(self._link_down)
        endpoint.on_event(TOPIC_MAP, self._map_event)
        endpoint.on_event(TOPIC_MAP_DELTAS, self._delta_event)

    def start(self) -> None:
        """Dial the seeds."""
        self._dial()

    def stop(self) -> None:
        """End the greetings; the endpoint's close ends the links."""
        greenlets = [*self._greetings.values(), *([self._refreshing] if self._refreshing is not None else [])]
        end_all(greenlets, "greetings")

    # -- looking ---------------------------------------------------------------------------------------------------

    def way_to(self, key: str) -> Link | None:
        """The link to the owner of a key's partition, or to a relay while there is none; None without either."""
        return self.way_to_owner(self.map.owner_of(key))

    def way_to_owner(self, owner: str) -> Link | None:
        """The link to this owner, or to a relay while there is none; None without either."""
        return self._up.get(self._ways.to(owner, self._usable(), time.monotonic()))

    def ways_to(self, key: str) -> list[Link]:
        """Links for what gets no answer: the owner's, or those of a few relays; only where the hosts are attached."""
        usable = {name: relays for name, relays in self._usable().items() if name in self._attached}
        names = self._beat_ways.all_to(self.map.owner_of(key), usable, time.monotonic())
        return [self._up[name] for name in names]

    def _usable(self) -> dict[str, bool]:
        return {service_id: relays(link) for service_id, link in self._up.items() if link.up}

    def refused(self, key: str, link: Link) -> None:
        """What was sent over this link did not reach the owner of the key."""
        self.owner_refused(self.map.owner_of(key), link)

    def owner_refused(self, owner: str, link: Link) -> None:
        """What was sent over this link did not reach this owner."""
        if link.peer is not None:
            self._ways.refused(owner, link.peer.service_id, time.monotonic())

    def wait_change(self, timeout_s: float) -> None:
        """Wait until a link or the map has changed, this long at most."""
        self._changed.wait(timeout_s)

    # -- the map ---------------------------------------------------------------------------------------------------

    def learn(self, cell_map: PartitionMap) -> None:
        """Take a map if it is newer."""
        if not is_sound(cell_map, self.map.cell):
            log.error("map refused cell=%s expected_cell=%s", cell_map.cell, self.map.cell)
            return
        if (cell_map.term, cell_map.version) <= (self.map.term, self.map.version):
            return
        log.info("map learnt term=%d version=%d", cell_map.term, cell_map.version)
        self.map = cell_map
        self.on_map(cell_map)
        self._dial()
        if self._known is not None:
            self._known.write(cell_map.conductors)
        self._notify()

    def refresh(self, link: Link) -> None:
        """Ask this peer for its map, unless someone is being asked already."""
        if self._refreshing is None or self._refreshing.dead:
            self._refreshing = gevent.spawn(self._refresh, link)

    def _refresh(self, link: Link) -> None:
        try:
            self._ask_map(link)
        except (BusError, ServiceError) as error:
            log.debug("map not answered peer=%s error=%s", link.name, error)

    def _ask_map(self, link: Link) -> None:
        reply: MapReply = link.call(MAP_GET, Empty(), timeout_ms=self._settings.call_ms)
        self.learn(reply.map)

    def _map_event(self, link: Link, event: Event) -> None:
        try:
            self.learn(_MAP.decode(event.payload))
        except msgspec.DecodeError as error:
            log.error("map event refused peer=%s error=%s", link.name, error)

    def _delta_event(self, link: Link, event: Event) -> None:
        try:
            delta = _DELTA.decode(event.payload)
        except msgspec.DecodeError as error:
            log.error("map event refused peer=%s error=%s", link.name, error)
            return
        if (delta.term, delta.version) <= (self.map.term, self.map.version):
            return
        new_map = patched(self.map, delta)
        if new_map is None:
            self.refresh(link)
        else:
            self.learn(new_map)

    def _dial(self) -> None:
        wanted = plan_dials(self._seeds, self.map, self._settings.conductors_max)
        if not self.map.conductors:
            wanted.update(self._remembered)
        for service_id, (where, link) in list(self._dialled.items()):
            if wanted.get(service_id) != where:
                del self._dialled[service_id]
                self._endpoint.hang_up(link)
        for service_id, where in wanted.items():
            if service_id not in self._dialled:
                try:
                    self._dialled[service_id] = (where, self._endpoint.dial(*where))
                except BusError as error:
                    log.error("conductor not dialled peer=%s address=%s error=%s", service_id, where[0], error)

    # -- links -----------------------------------------------------------------------------------------------------

    def _link_up(self, link: Link) -> None:
        peer = link.peer
        if peer is None or peer.role != "conductor" or peer.cell != self.map.cell:
            log.error("link is not to a conductor of this cell link=%s cell=%s", link.name, self.map.cell)
            return
        self._up[peer.service_id] = link
        self._greet(peer.service_id, link)
        self._notify()

    def _link_down(self, link: Link) -> None:
        for service_id in [service_id for service_id, up in self._up.items() if up is link]:
            del self._up[service_id]
            self._attached.discard(service_id)
            self._map_asked.discard(service_id)
            self.on_unready(service_id)
            self._notify()

    def attach_again(self) -> None:
        """The hosts' epochs have changed: no reports before every link knows."""
        for service_id, link in list(self._up.items()):
            self._greet(service_id, link)

    def _greet(self, service_id: str, link: Link) -> None:
        self._attached.discard(service_id)
        self.on_unready(service_id)
        former = self._greetings.get(service_id)
        if former is not None:
            former.kill(block=False)
        self._greetings[service_id] = gevent.spawn(self._greeting, service_id, link)

    def _greeting(self, service_id: str, link: Link) -> None:
        backoff = Backoff(self._settings.retry_ms_min, self._settings.retry_ms_max)
        while link.up and self._up.get(service_id) is link and link.peer is not None:
            incarnation = link.peer.incarnation
            epochs = self.epochs()
            try:
                if service_id not in self._map_asked:
                    self._ask_map(link)
                    self._map_asked.add(service_id)
                    epochs = self.epochs()
                if epochs:
                    link.call(HOST_ATTACH, HostAttachRequest(epochs=epochs), timeout_ms=self._settings.call_ms)
            except EpochRefused as error:
                self.on_refused(error, epochs)
            except (BusError, ServiceError) as error:
                log.info("attach failed peer=%s error=%s", service_id, error)
            else:
                same_process = self._ready_incarnation.get(service_id) == incarnation
                self._ready_incarnation[service_id] = incarnation
                if epochs:
                    self._attached.add(service_id)
                    self.on_ready(service_id, link, same_process)
                return
            gevent.sleep(backoff.next_s())

    def _notify(self) -> None:
        self._changed.set()
        self._changed = Signal()
