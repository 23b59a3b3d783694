"""One incarnation with all that hangs on it: its endpoint, routers and role. It ends as one."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import gevent
from gevent.event import Event

from zcompute import metrics
from zcompute.bus import Endpoint, Link, Peer
from zcompute.bus.errors import BusError, Forbidden, Unavailable, UnknownMethod
from zcompute.bus.method import MethodSpec
from zcompute.cells.router import PartitionRouter
from zcompute.conductor.cell.reads import conductor_services
from zcompute.conductor.cell.role import CellRole
from zcompute.conductor.dials import Dials
from zcompute.conductor.env import ConductorEnv, Handler, Role
from zcompute.conductor.fellows import is_fellow
from zcompute.conductor.incarnation import Incarnation
from zcompute.conductor.root.role import RootRole
from zcompute.conductor.settings import LeaseSettings, LedgerLimits, LifeSettings
from zcompute.conductor.stat import ConductorStats
from zcompute.conductor.stat_metrics import conductor_families
from zcompute.config import ConductorConfig, Config
from zcompute.db.replicas.reading import Reading
from zcompute.db.store import Store
from zcompute.measure import Measure, Spread
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.conductor_stat import ConductorDatabaseStat
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty, MapReply
from zcompute.objects.messages.instances import ServiceListReply
from zcompute.objects.methods import CONDUCTOR_STAT, MAP_GET, SERVICE_LIST, TOPIC_MAP, TOPIC_MAP_DELTAS, TOPIC_ROLES
from zcompute.objects.partition import PartitionMap, map_delta

log = logging.getLogger(__name__)

READY_MS_MAX = 60_000
STOP_MS_MAX = 1500
LINGER_MS = 200
ABANDON_S_MAX = 1.0  # for what waits for a primary that is lost
DELTA_MAPS_MAX = 4  # a delta is since so many maps ago: who missed some of the last is not behind
LOOK_WINDOW_S = 30
OF_OWN_CELL = frozenset({"compute", "scheduler"})


def life_settings(config: ConductorConfig, *, sqlite: bool) -> LifeSettings:
    """The ledger's settings from the configuration. ``lease_ms`` 0 means the database's default."""
    lease = LeaseSettings.sqlite(config.beat_ms) if sqlite else LeaseSettings(beat_ms=config.beat_ms)
    if config.lease_ms:
        lease = replace(lease, lease_ms=config.lease_ms)
    return LifeSettings(lanes=config.lanes, ledger=LedgerLimits(batch_rows_max=config.batch_rows_max), lease=lease)


class Life:
    """``run`` blocks until the end and says why. Not used twice; its endpoint was bound before, and is closed here."""

    def __init__(
        self,
        config: Config,
        store: Store,
        endpoint: Endpoint,
        place: tuple[str, str],
        on_ready: Callable[[], None],
        lives: int = 1,
        reading: Reading | None = None,
        database: Callable[[], ConductorDatabaseStat] = ConductorDatabaseStat,
        refused: Counter[str] | None = None,
    ) -> None:
        self._config = config
        self._endpoint = endpoint
        self._cell = config.service.cell
        self._on_ready = on_ready
        self._ready = False
        self._published: PartitionMap | None = None
        self._bases: deque[PartitionMap] = deque(maxlen=DELTA_MAPS_MAX)
        self._changed = Event()
        self._incarnation = Incarnation(
            store,
            self._cell,
            config.service.id,
            *place,
            life_settings(config.conductor, sqlite=store.url.startswith("sqlite")),
            refused=refused,
        )
        self._ledger = self._incarnation.ledger
        self._served: dict[tuple[str, str], Handler] = {}
        self._router = PartitionRouter(endpoint, self._cell, local=self._call_local)
        self._root_router = None if self._cell == ROOT_CELL else PartitionRouter(endpoint, ROOT_CELL)
        env = ConductorEnv(
            config, endpoint, store, self._ledger, self._router, self._root_router,
            reading, self._incarnation.lease_held,
        )  # fmt: skip
        self._role: Role = RootRole(env) if self._cell == ROOT_CELL else CellRole(env)
        self._stats = ConductorStats(
            config.service.id, self._cell, self._incarnation, endpoint, lambda: self.ready, lives, env.reading,
            database,
        )  # fmt: skip
        self._mapper: gevent.Greenlet | None = None
        self._looker: gevent.Greenlet | None = None
        self._dials = Dials(endpoint, config.bus.conductors, config.service.id)
        self._root_dials = None if self._root_router is None else Dials(endpoint, config.bus.root, None)

    @property
    def ready(self) -> bool:
        """Whether links are let in: the ledger is ready and the role has begun."""
        return self._ready and not self._incarnation.reason

    def admit(self, peer: Peer) -> None:
        """Refuse hellos until this life is ready. Raises Unavailable, Forbidden."""
        if peer.role in OF_OWN_CELL and peer.cell != self._cell:
            raise Forbidden(f"a {peer.role} of cell {peer.cell} has nothing to say in cell {self._cell}")
        for topic in sorted(peer.topics):
            if peer.role not in TOPIC_ROLES.get(topic, (peer.role,)):  # one that is not known here is never sent
                raise Forbidden(f"a {peer.role} has nothing to hear on topic {topic}")
        if not self.ready:
            raise Unavailable(f"conductor {self._config.service.id} is not ready yet: try again")

    def announce(self, place: tuple[str, str]) -> bool:
        """Have the map name this address and key of ours; whether it does so by now. Raises StoreError."""
        if not self.ready:
            return False
        known = self._ledger.map.conductors.get(self._config.service.id)
        if known is None:
            return False
        if (known.address, known.public_key) == place:
            return True
        log.info("announcing address=%s", place[0])
        self._incarnation.readdress(*place)
        return False

    def run(self) -> str:
        """Live. Raises ConductorError for a database of another cell, StoreError when it cannot be reached."""
        self._serve()
        ended = Event()
        self._ledger.on_end(lambda _: ended.set())
        living = gevent.spawn(self._incarnation.run)
        living.rawlink(lambda _: ended.set())
        try:
            if self._incarnation.wait_ready(READY_MS_MAX):
                self._begin()
            else:
                self._incarnation.stop()
            ended.wait()
        finally:
            self._end()  # at once: letting go of the database may take a while
        if self._incarnation.abandoned:
            living.join(ABANDON_S_MAX)
            living.kill(block=False)
            return self._incarnation.reason
        reason: str = living.get()
        return reason

    def stop(self) -> None:
        """The planned end: hand the partitions over, then let ``run`` return."""
        self._incarnation.stop(STOP_MS_MAX)

    def abandon(self, reason: str) -> None:
        """The end without a word to the database, which is not the cell's any more."""
        self._incarnation.abandon(reason)

    def measures(self) -> Iterable[Measure | Spread]:
        """What the role measures, once this life is ready."""
        return self._role.measures() if self.ready else ()

    # -- begin and end ----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        own: list[tuple[Method, Handler]] = [(MAP_GET, self._map_get), (CONDUCTOR_STAT, self._stats.serve)]
        handlers = [*own, *self._role.handlers()]
        if SERVICE_LIST not in [method for method, _ in handlers]:
            handlers.append((SERVICE_LIST, self._service_list))
        for method, handler in handlers:
            self._served[(method.interface, method.name)] = handler
            self._endpoint.serve(method, handler)

    def _begin(self) -> None:
        self._role.start()
        self._router.on_map(lambda new_map: self._incarnation.announced(new_map.version))
        if self._root_router is not None:
            self._root_router.on_map(lambda _: self._changed.set())
        self._endpoint.on_link_up(self._greet)
        self._endpoint.on_link_down(self._link_ended)
        self._ledger.on_map(lambda _: self._changed.set())
        self._changed.set()
        self._mapper = gevent.spawn(self._follow_maps)
        self._looker = gevent.spawn(self._stats.run)
        metrics.expose("conductor", lambda: conductor_families(self._stats.stat(LOOK_WINDOW_S)))
        self._ready = True
        log.info("conductor ready cell=%s incarnation=%s", self._cell, self._incarnation.id)
        self._on_ready()

    def _end(self) -> None:
        self._ready = False
        metrics.expose("conductor", None)
        if self._looker is not None:
            self._looker.kill(block=False)
        if self._mapper is not None:
            self._mapper.kill(block=False)
            self._role.stop()
        self._endpoint.close(LINGER_MS)

    # -- the map ----------------------------------------------------------------------------------------------------

    def _follow_maps(self) -> None:
        """Every newer map goes to the router, to the links, and decides whom to dial."""
        while True:
            self._changed.wait()
            self._changed.clear()
            try:
                self._take_map(self._ledger.map)
                if self._root_dials is not None and self._root_router is not None:
                    self._root_dials.update(self._root_router.map.conductors)
            except BusError as error:
                log.warning("map not followed error=%s", error)

    def _take_map(self, new_map: PartitionMap) -> None:
        if new_map == self._published:
            return
        self._published = new_map
        self._router.update(new_map)
        delta = map_delta(self._bases[0], new_map) if self._bases else None
        self._bases.append(new_map)
        if delta is None:
            self._endpoint.publish(TOPIC_MAP, self._cell, new_map.version, new_map)
        else:
            self._endpoint.publish(TOPIC_MAP, self._cell, new_map.version, new_map, unless=TOPIC_MAP_DELTAS)
            self._endpoint.publish(TOPIC_MAP_DELTAS, self._cell, new_map.version, delta)
        self._dials.update(new_map.conductors)

    def _greet(self, link: Link) -> None:
        if link.peer is not None and TOPIC_MAP in link.peer.topics:
            new_map = self._ledger.map
            link.event(TOPIC_MAP, self._cell, new_map.version, new_map)

    def _link_ended(self, link: Link) -> None:
        if is_fellow(link.peer, self._cell) and link.peer is not None:
            self._incarnation.link_ended(link.peer.service_id)

    # -- handlers ---------------------------------------------------------------------------------------------------

    def _call_local(self, method: MethodSpec, request: Any, context: Any) -> Any:
        """A call of this very process to a partition that it owns, without the wire."""
        handler = self._served.get((method.interface, method.name))
        if handler is None:
            raise UnknownMethod(f"{method.interface}.{method.name} is not served here")
        return handler(request, context)

    def _map_get(self, request: Empty, context: Any) -> MapReply:
        return MapReply(map=self._ledger.map)

    def _service_list(self, request: Empty, context: Any) -> ServiceListReply:
        return ServiceListReply(services=conductor_services(self._cell, self._ledger.map, self._ledger.now_us()))
