"""The endpoint: one process' (or test's) place on the bus."""

import logging
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gevent
import msgspec
import zmq

from zcompute.bus.beside import IoThread
from zcompute.bus.conduct import Conduct
from zcompute.bus.counters import Counters, Refusals
from zcompute.bus.dialler import Dialler
from zcompute.bus.envelope import (
    PROTOCOL_MAJOR,
    PROTOCOL_MINOR,
    Ack,
    Event,
    Report,
    encode_attributes,
)
from zcompute.bus.errors import BusConfigError
from zcompute.bus.following import StreamEvents, StreamSkip
from zcompute.bus.handlers import Handlers
from zcompute.bus.home import Greeting
from zcompute.bus.identity import Identity, Keyring, Peer
from zcompute.bus.inside import BUS_PING, BUS_STAT, BusInterface
from zcompute.bus.limits import Limits
from zcompute.bus.link import Link
from zcompute.bus.linkhome import Lower
from zcompute.bus.listener import Listener
from zcompute.bus.method import MethodSpec, PreparedMethod
from zcompute.bus.serving import Handler, Serving
from zcompute.bus.sessions import Sessions
from zcompute.bus.stat import (
    EndpointStat,
    PoolStat,
    asked_stats,
    link_stat,
    method_stats,
    pool_stats,
    strangers_of,
    stream_stats,
    work_of,
)
from zcompute.bus.streams import Stream, Streams
from zcompute.bus.turn import Turn
from zcompute.bus.untold import Untold
from zcompute.bus.workers import WorkerPool
from zcompute.bus.zap import ZapHandler

log = logging.getLogger(__name__)

HOUSEKEEPING_INTERVAL_S = 1.0
BLOCKED_RETRY_INTERVAL_S = 0.005
CLOSE_MARGIN_MS = 1_000
Lowering = Callable[[Mapping[str, Any]], Lower | None]
"""From a peer's attributes to what makes messages readable for it; None when it reads them as they are."""

_encode = msgspec.msgpack.Encoder().encode

_open_endpoints: "weakref.WeakSet[Endpoint]" = weakref.WeakSet()


def open_endpoints() -> list["Endpoint"]:
    """The endpoints of this process that are open: for state dumps and metrics."""
    return sorted(_open_endpoints, key=lambda endpoint: endpoint.identity.service_id)


class Endpoint:
    """Serves methods, listens on addresses and dials others; belongs to the thread that made it.

    Declare what is served and handled before `bind` and `dial`: a hello tells it. `lowering` is asked at each link up.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        keyring: Keyring | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        attributes: Callable[[], dict[str, Any]] | None = None,
        admit: Callable[[Peer], None] | None = None,
        topics: Iterable[str] = (),
        lowering: Lowering | None = None,
    ) -> None:
        if bool(identity.public_key) != bool(identity.secret_key):
            raise BusConfigError("expected both CURVE keys or none, found one: give the public and the secret key")
        self.identity = identity
        self.keyring = keyring
        self.limits = limits
        self.admit = admit
        self.lowering = lowering
        self.incarnation = uuid.uuid4().hex
        self.counters = Counters()
        self.refusals = Refusals(self.counters)
        self.handlers: Handlers[Link] = Handlers()
        self.turn = turn = Turn()
        self.serving = Serving(limits, self.refusals, self.counters, turn)
        self.sessions = Sessions(limits)
        self.conduct = Conduct(limits)
        self.streams = Streams(limits)
        self.link_pool = WorkerPool("links", limits.link_workers, limits.routes_max * 2, limits.job_run_max, turn.soon)
        self.admit_pool = WorkerPool("admit", limits.admit_workers, limits.routes_max * 2, limits.job_run_max)
        self._pools = (*self.serving.pools.values(), self.link_pool, self.admit_pool)
        self.active: set[Link] = set()  # links whose core watches the time
        self.untold: Untold[Link] = Untold()
        self.blocked: set[Link] = set()  # links with a frame that the socket would not take
        self.up_links: dict[Link, None] = {}
        self.up_of_role: dict[str, dict[Link, None]] = {}  # the same links
        self.closed = False
        self.context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._io_thread = IoThread(self.context, limits)
        self._attributes = attributes
        self._topics = sorted(set(topics))
        self._prepared: dict[int, PreparedMethod] = {}
        self._listeners: list[Listener] = []
        self._diallers: dict[Link, Dialler] = {}
        self._link_number_min = 0  # of links hung up: a peer dialled anew, at another address, would know them
        self._zap: ZapHandler | None = None
        self._keyring_version = keyring.version if keyring is not None else 0
        self._reread_at = self._housekeeping_at = self._retry_at = 0.0
        self._born = time.monotonic()
        inside = BusInterface(identity, self.incarnation, self.stat, lambda service: self.links(service_id=service))
        self.serve(BUS_PING, inside.ping)
        self.serve(BUS_STAT, inside.stat)
        tick_s = limits.tick_ms / 1000
        self._timer = gevent.get_hub().loop.timer(tick_s, tick_s)
        self._timer.start(self._tick)
        _open_endpoints.add(self)

    # Declaring

    def serve(self, method: MethodSpec, handler: Handler) -> None:
        """Serve calls (or casts) of a method; the handler runs in a worker greenlet of the method's pool."""
        self.serving.add(method, handler)

    def on_reports(self, handler: Callable[[Link, list[Report]], None]) -> None:
        """Take reports; their durable outcome is told later with `link.ack`."""
        self.handlers.reports = handler

    def on_acks(self, handler: Callable[[Link, list[Ack]], None]) -> None:
        """Hear the durable outcomes of own reports."""
        self.handlers.acks = handler

    def on_event(self, topic: str, handler: Callable[[Link, Event], None]) -> None:
        """Hear the state events of a topic (name the topic in `topics` too)."""
        self.handlers.events[topic] = handler

    def on_stream(self, topic: str, handler: Callable[[Link, StreamEvents | StreamSkip], None]) -> None:
        """Hear the events, in order, and the gaps of the streams of a topic that links `follow`."""
        self.handlers.streams[topic] = handler

    def on_link_up(self, handler: Callable[[Link], None]) -> None:
        """Hear of each link that came up, before anything else that arrives on it."""
        self.handlers.up.append(handler)

    def on_link_down(self, handler: Callable[[Link], None]) -> None:
        """Hear of each link that went down."""
        self.handlers.down.append(handler)

    # Connecting

    def bind(self, address: str, identity: Identity | None = None) -> str:
        """Listen on tcp; port 0 picks a free one of 20000-25999. Returns the real address. Raises BusConfigError.

        `identity` brings other CURVE keys than the endpoint's own: a second port while a server key is rotated.
        """
        self._check_open()
        if not address.startswith("tcp://"):
            raise BusConfigError(f"expected tcp://HOST:PORT, found {address!r}")
        if self.identity.secret_key and self.keyring is None:
            raise BusConfigError("a listener with a CURVE key needs a keyring: it would let every key in")
        if self.keyring is not None and not self.identity.secret_key:
            raise BusConfigError("a listener with a keyring needs CURVE keys of its own")
        if self.keyring is not None and self._zap is None:
            self._zap = ZapHandler(self.context, self.keyring, self._refuse_key, self.limits)
        listener = Listener(self, address, identity or self.identity)
        self._listeners.append(listener)
        log.info("listening address=%s curve=%s", listener.address, bool(self.identity.secret_key))
        return listener.address

    def unbind(self, address: str) -> None:
        """Stop listening there: links are told bye, their peers say hello wherever else they dial."""
        for listener in [listener for listener in self._listeners if listener.address == address]:
            self._listeners.remove(listener)
            listener.dismiss("no longer listening here")
            listener.close(self.limits.tick_ms)

    def rekey(self, identity: Identity) -> None:
        """Dial with other CURVE keys from now on; links that are dialled are connected anew."""
        self.identity = identity
        for dialler in list(self._diallers.values()):
            dialler.reconnect("keys changed")

    def dial(self, address: str, server_public_key: str = "") -> Link:
        """Connect to a listener, for ever; returns at once with the link, which comes up by itself."""
        self._check_open()
        if bool(server_public_key) != bool(self.identity.secret_key):
            raise BusConfigError(f"dialling {address}: expected a server key and own keys, or neither (plain)")
        dialler = Dialler(self, address, server_public_key)
        dialler.link.core.link_number = self._link_number_min
        self._diallers[dialler.link] = dialler
        return dialler.link

    def hang_up(self, link: Link) -> None:
        """Stop dialling a link; its open calls fail."""
        dialler = self._diallers.pop(link, None)
        if dialler is None:
            return
        self._link_number_min = max(self._link_number_min, link.core.link_number)
        link.say_bye("hung up")
        link.close("hung up")
        self.active.discard(link)
        self.blocked.discard(link)
        dialler.close(self.limits.tick_ms)

    def links(self, *, role: str | None = None, cell: str | None = None, service_id: str | None = None) -> list[Link]:
        """The links that are up, of this role, cell and service id where given."""
        found = []
        for link in self.up_links if role is None else self.up_of_role.get(role, ()):
            peer = link.peer
            if peer is not None and (
                (cell is None or peer.cell == cell) and (service_id is None or peer.service_id == service_id)
            ):
                found.append(link)
        return found

    def publish(self, topic: str, key: str, version: int, payload: bytes | msgspec.Struct, *, unless: str = "") -> None:
        """Send a state event to every link that is up and whose peer named the topic; the newest version wins.

        A peer that named the topic ``unless`` as well is left out: it gets the same in another form.

        A Struct is encoded once, and anew only for a peer that reads an older version of it.
        """
        current = payload if isinstance(payload, bytes) else _encode(payload)
        for link in list(self.up_links):
            if link.peer is not None and topic in link.peer.topics and unless not in link.peer.topics:
                link.event(topic, key, version, payload if link.lowers else current)

    def publish_stream(
        self,
        topic: str,
        key: str = "",
        *,
        roles: Iterable[str],
        cursor: int = 0,
        events_max: int | None = None,
        bytes_max: int | None = None,
    ) -> Stream:
        """Begin a stream for peers of these roles; `append` to it. Its first event has `cursor`.

        The newest events are kept, `events_max` and `bytes_max` of them (`stream_events_max`, `stream_bytes_max`); who
        is further behind hears of a gap. Raises BusConfigError for a name that is taken, Busy at `streams_max`.
        """
        return self.streams.publish(topic, key, cursor, events_max, bytes_max, frozenset(roles))

    def withdraw_stream(self, stream: Stream) -> None:
        """Publish a stream no more; who follows waits for one of its name."""
        self.streams.withdraw(stream)

    def stat(self, *, links_from: int = 0, links_max: int | None = None) -> EndpointStat:
        """What this endpoint is doing, with its links by name: all, or `links_max` from the `links_from`th on.

        Costs about 30 us a link shown and 1 us one that is not; nothing else runs meanwhile.
        """
        now = time.monotonic()
        links = [*self._diallers, *self.sessions.all()]
        by_name = sorted(links, key=lambda link: link.name) if links_max != 0 else []
        page = by_name[links_from:] if links_max is None else by_name[links_from : links_from + links_max]
        work = work_of(links)
        refused = self.refusals.by_peer()
        identity = self.identity
        return EndpointStat(
            service_id=identity.service_id,
            role=identity.role,
            cell=identity.cell,
            release=identity.release,
            incarnation=self.incarnation,
            age_ms=int((now - self._born) * 1000),
            addresses=[listener.address for listener in self._listeners],
            links_known=len(links),
            links_up=len(self.up_links),
            links_blocked=len(self.blocked),
            open_calls=work.open_calls,
            serving_calls=work.serving_calls,
            queued=work.queued,
            streams_published=len(self.streams),
            streams_followed=work.streams_followed,
            stream_events_waiting=work.stream_events_waiting,
            streams=stream_stats(self.streams),
            links=[link_stat(link, link in self._diallers, self.refusals.of(link.name), now) for link in page],
            methods=method_stats(self.serving.methods, work.asked, now),
            asked=asked_stats(self._prepared.values(), work.asking, now),
            pools=pool_stats(self._pools, now),
            counters={**self.counters, "stream_gaps_told": self.streams.gaps},
            strangers=strangers_of(refused, {link.name for link in links} if refused else set()),
        )

    def pools(self) -> list[PoolStat]:
        """What waits for workers here, and for how long. Cheap."""
        return pool_stats(self._pools, time.monotonic())

    def close(self, linger_ms: int = 200) -> None:
        """Say bye, fail what is open, close the sockets; waits at most `linger_ms` for what is being sent."""
        if self.closed:
            return
        links = [*self._diallers, *self.sessions.all()]
        for link in links:
            link.say_bye("closing")
        self.closed = True
        _open_endpoints.discard(self)
        self._timer.stop()
        self._timer.close()
        for link in links:
            link.close("endpoint closed")
        self.active.clear()
        self.untold.clear()
        self.blocked.clear()
        for dialler in self._diallers.values():
            dialler.close(linger_ms)
        for listener in self._listeners:
            listener.close(linger_ms)
        if self._zap is not None:
            self._zap.close()
        self.serving.close()
        self.admit_pool.close()
        self.link_pool.close()
        ended = gevent.get_hub().threadpool.spawn(self.context.term)
        ended.wait((linger_ms + CLOSE_MARGIN_MS) / 1000)

    # For links, diallers and listeners

    def prepare(self, method: MethodSpec) -> PreparedMethod:
        """The method's codec, made once (the entry keeps the method alive, so its id stays its own)."""
        prepared = self._prepared.get(id(method))
        if prepared is None:
            prepared = self._prepared[id(method)] = PreparedMethod(method)
        return prepared

    def greet(self, greeting: type[Greeting]) -> Greeting:
        """Our hello or welcome; the link number is filled in by the core. The attributes' maker may block."""
        identity = self.identity
        attributes = self._attributes() if self._attributes is not None else {}
        return greeting(
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            link_number=0,
            service_id=identity.service_id,
            incarnation=self.incarnation,
            role=identity.role,
            cell=identity.cell,
            release=identity.release,
            hosts=sorted(identity.hosts),
            interfaces=dict(self.serving.ranges),
            topics=self._topics,
            attributes=encode_attributes(attributes, self.limits),
            report_credit=self.limits.report_credit,
            lane_credit=self.limits.lane_credit,
        )

    def down_reason(self, link: Link) -> str:
        """Why a dialled link is not up, for messages."""
        dialler = self._diallers.get(link)
        return f" ({dialler.refusal})" if dialler is not None and dialler.refusal is not None else ""

    def retry_blocked(self, link: Link) -> None:
        """The socket may take frames again."""
        if link in self.blocked:
            self.blocked.discard(link)
            link.flush_soon()

    def retry_all_blocked(self) -> None:
        """Some peer's queue may have room again: a ROUTER does not say whose, and each try pokes its reader, which
        asks for another one. So at most one in BLOCKED_RETRY_INTERVAL_S."""
        if not self.blocked:
            return
        now = time.monotonic()
        if now < self._retry_at:
            return
        self._retry_at = now + BLOCKED_RETRY_INTERVAL_S
        for link in list(self.blocked):
            self.retry_blocked(link)

    def _refuse_key(self, reason: str, address: str) -> None:
        self.refusals.count("key", address, reason)

    def _check_open(self) -> None:
        if self.closed:
            raise BusConfigError("the endpoint is closed")

    # Time

    def _tick(self) -> None:
        now = time.monotonic()
        try:
            self._io_thread.tick()
            for pool in self._pools:
                if pool.jobs or pool.marked:
                    pool.mark(now)
            if self.active:
                self.active = {link for link in self.active if link.core.active}
                for link in list(self.active):
                    link.tick(now)
            for link in self.untold.take(now):
                link.look_at_untold(now)
            self.retry_all_blocked()
            for listener in list(self._listeners):
                listener.tick(now)
            for dialler in list(self._diallers.values()):
                dialler.tick(now)
            if now >= self._reread_at:
                self._reread_at = now + (self.limits.events_reread_ms - self.limits.tick_ms / 2) / 1000
                self._poke_all()
            if now >= self._housekeeping_at:
                self._housekeeping_at = now + HOUSEKEEPING_INTERVAL_S
                self._keep_house(now)
        except Exception:
            log.exception("tick failed")

    def _poke_all(self) -> None:
        ends: list[Listener | Dialler] = [*self._listeners, *self._diallers.values()]
        for end in ends:
            end.watch.poke()
            end.monitor_watch.poke()
        if self._zap is not None:
            self._zap.watch.poke()

    def _keep_house(self, now: float) -> None:
        self._io_thread.look(now, len(self._diallers) + len(self.sessions.all()), self.refusals.total)
        for link in self.sessions.expired(now):
            link.close("lost for too long")
        if self.keyring is not None and self.keyring.version != self._keyring_version:
            self._keyring_version = self.keyring.version
            for listener in self._listeners:
                listener.drop_unknown_keys()
            for dialler in list(self._diallers.values()):
                dialler.drop_revoked_key()
