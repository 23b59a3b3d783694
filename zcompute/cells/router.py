"""Calls whoever owns a key in one cell, and finds the new owner when it changes under way."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import gevent
import msgspec
from gevent.event import Event as Flag

from zcompute.bus import Endpoint, Event, Link, MethodSpec, Peer
from zcompute.bus.context import request_id as current_request_id
from zcompute.bus.errors import (
    BusError,
    Busy,
    DeadlineExceeded,
    LinkDown,
    LinkReset,
    NotOwner,
    Unavailable,
    UnknownMethod,
)
from zcompute.cells.balance import Balance
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.methods import MAP_GET, TOPIC_MAP
from zcompute.objects.partition import PARTITIONS, PartitionMap, partition_of

log = logging.getLogger(__name__)

CONDUCTOR = "conductor"


@dataclass(frozen=True)
class RouterLimits:
    """``attempt_ms_max``: an idempotent call that took so long is asked again, each time twice as long: its owner may
    have stopped without the link knowing yet."""

    pause_ms_min: int = 5
    pause_ms_max: int = 200
    attempt_ms_max: int = 1000
    any_attempt_ms_min: int = 250
    map_call_ms: int = 500
    map_pause_ms: int = 50


class LocalContext:
    """What a handler knows of a call that did not cross the wire: the same as of one that did, but for the link."""

    __slots__ = ("deadline", "link", "peer", "request_id")

    def __init__(self, peer: Peer, request_id: str, deadline: float) -> None:
        self.peer = peer
        self.link: Link | None = None
        self.request_id = request_id
        self.deadline = deadline

    def remaining_ms(self) -> int:
        """Milliseconds left until the deadline, never below 0."""
        return max(0, int((self.deadline - time.monotonic()) * 1000))


LocalHandler = Callable[[MethodSpec, Any, LocalContext], Any]
MapCallback = Callable[[PartitionMap], None]


class PartitionRouter:
    """Calls into one cell over the links that are up; it dials nobody.

    ``local`` serves what this very process owns. The map comes from ``update``, from topic ``map`` of the cell's
    conductors (the endpoint must have named the topic), and is asked for when an answer shows that it is old.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cell: str,
        *,
        local: LocalHandler | None = None,
        limits: RouterLimits = RouterLimits(),
    ) -> None:
        self.cell = cell
        self.map = PartitionMap(cell=cell)
        self._endpoint = endpoint
        self._local = local
        self._limits = limits
        self.balance: Balance[Link] = Balance()
        self._links: dict[str, Link] = {}
        self._changed = Flag()
        self._asking = False
        self._callbacks: list[MapCallback] = []
        self._me = _own_peer(endpoint) if local is not None else None
        _feed_of(endpoint).add(self)

    # -- the map ------------------------------------------------------------------------------------------------

    def update(self, new_map: PartitionMap) -> None:
        """Take a map that is newer, or as new with other conductors; anything else is ignored."""
        if new_map.cell != self.cell or new_map.version < self.map.version or new_map == self.map:
            return
        if len(new_map.owners) != PARTITIONS or len(new_map.epochs) != PARTITIONS:
            log.warning("map refused cell=%s owners=%s", self.cell, len(new_map.owners))
            return
        self.map = new_map
        self._changed.set()
        self._changed.clear()
        for callback in self._callbacks:
            callback(new_map)

    def on_map(self, callback: MapCallback) -> None:
        """Call with every newer map; must not block."""
        self._callbacks.append(callback)

    # -- calls --------------------------------------------------------------------------------------------------

    def call(self, key: str, method: MethodSpec, request: msgspec.Struct, *, timeout_ms: int, lasts_ms: int = 0) -> Any:
        """Call the owner of ``key``, again and again while it changes, is out of reach or busy, until the deadline.

        ``lasts_ms``: what the answer takes by its nature; an owner is not held to be silent before that is over.
        Calls that may have taken effect are repeated for idempotent methods only. Raises what the owner answers,
        DeadlineExceeded (naming the last obstacle), and for other methods LinkReset.
        """
        partition = partition_of(key)
        ends_at_s = time.monotonic() + timeout_ms / 1000
        pauses = _Pauses(self._limits, ends_at_s)
        attempt_ms = self._limits.attempt_ms_max + lasts_ms if method.idempotent else timeout_ms
        error: BusError | None = None
        while (left_ms := int((ends_at_s - time.monotonic()) * 1000)) > 0:
            owner = self.map.owners[partition]
            try:
                return self._call_owner(owner, method, request, min(left_ms, attempt_ms), left_ms)
            except DeadlineExceeded as late:
                if not method.idempotent:
                    raise
                error, attempt_ms = late, attempt_ms * 2
                if self.map.owners[partition] == owner:
                    self._refresh(0)
            except LinkReset as reset:
                if not method.idempotent:
                    raise
                error = reset
                pauses.wait(self._changed)
            except NotOwner as moved:
                error = moved
                self._refresh(moved.map_version)
                pauses.wait(self._changed)
            except Busy as busy:
                error = busy
                pauses.sleep(busy.retry_after_ms)
            except (LinkDown, Unavailable) as away:
                error = away
                self._refresh(0)
                pauses.wait(self._changed)
        raise _late(method, self.cell, timeout_ms, error)

    def call_any(self, method: MethodSpec, request: msgspec.Struct, *, timeout_ms: int) -> Any:
        """Call any conductor of the cell that answers, this very one first.

        Of the others the less loaded of two drawn. An idempotent call that has no answer after half of its time is
        tried once more elsewhere, for all that is left; where there is nobody else, nobody is asked twice. Raises like
        ``call``.
        """
        if self._local is not None:
            try:
                return self._call_local(method, request, timeout_ms)
            except (LinkDown, Unavailable, Busy, NotOwner) as refused:
                return self._call_others(method, request, timeout_ms, refused)
        return self._call_others(method, request, timeout_ms, None)

    def _call_others(self, method: MethodSpec, request: msgspec.Struct, timeout_ms: int, error: BusError | None) -> Any:
        ends_at_s = time.monotonic() + timeout_ms / 1000
        pauses = _Pauses(self._limits, ends_at_s)
        tried: set[Link] = set()
        late: set[Link] = set()
        while (left_ms := int((ends_at_s - time.monotonic()) * 1000)) > 0:
            links = self._endpoint.links(role=CONDUCTOR, cell=self.cell)
            fresh = [link for link in links if link not in tried]
            if not fresh:
                tried = set(late)
                error = error or LinkDown(f"no conductor of cell {self.cell} is linked")
                pauses.wait(self._changed)
                continue
            link = self.balance.choose(fresh, time.monotonic())
            tried.add(link)
            last = not method.idempotent or bool(late) or len(links) == 1
            attempt_ms = left_ms if last else max(left_ms // 2, min(left_ms, self._limits.any_attempt_ms_min))
            try:
                return self._call_one(link, method, request, attempt_ms)
            except (DeadlineExceeded, LinkReset) as unknown:
                if not method.idempotent:
                    raise
                error = unknown
                if isinstance(unknown, DeadlineExceeded):
                    late.add(link)
            except (LinkDown, Unavailable, Busy, NotOwner) as refused:
                error = refused
        raise _late(method, self.cell, timeout_ms, error)

    def _call_one(self, link: Link, method: MethodSpec, request: msgspec.Struct, attempt_ms: int) -> Any:
        """One attempt, counted in the balance."""
        balance = self.balance
        balance.began(link)
        try:
            answer = link.call(method, request, timeout_ms=attempt_ms)
        except DeadlineExceeded:
            balance.was_late(link, time.monotonic())
            raise
        except (LinkDown, LinkReset):
            raise
        except Exception:
            balance.answered(link)
            raise
        finally:
            balance.ended(link)
        balance.answered(link)
        return answer

    # -- one attempt --------------------------------------------------------------------------------------------

    def _call_owner(
        self, owner: str, method: MethodSpec, request: msgspec.Struct, attempt_ms: int, left_ms: int
    ) -> Any:
        if not owner:
            raise Unavailable(f"nobody owns the partition in cell {self.cell} yet (map version {self.map.version})")
        if self._me is not None and owner == self._me.service_id:
            return self._call_local(method, request, left_ms)
        return self._link_to(owner).call(method, request, timeout_ms=attempt_ms)

    def _call_local(self, method: MethodSpec, request: msgspec.Struct, left_ms: int) -> Any:
        if self._local is None or self._me is None:
            raise UnknownMethod(f"{method.interface}.{method.name} is not served in this process")
        deadline = time.monotonic() + left_ms / 1000
        return self._local(method, request, LocalContext(self._me, current_request_id.get(), deadline))

    def _link_to(self, service_id: str) -> Link:
        link = self._links.get(service_id)
        if link is not None and link.up and link.peer is not None and link.peer.service_id == service_id:
            return link
        links = self._endpoint.links(role=CONDUCTOR, cell=self.cell, service_id=service_id)
        if not links:
            self._links.pop(service_id, None)
            raise LinkDown(f"conductor {service_id} of cell {self.cell} is not linked")
        self._links[service_id] = links[0]
        return links[0]

    def _refresh(self, version: int) -> None:
        """Ask for the map when none has come, or when ``version`` of another is newer (0: unknown); one at a time."""
        if self._asking or (version and version <= self.map.version):
            return
        self._asking = True
        gevent.spawn(self._ask_map)

    def _ask_map(self) -> None:
        try:
            links = self._endpoint.links(role=CONDUCTOR, cell=self.cell)
            random.shuffle(links)
            for link in links:
                try:
                    self.update(link.call(MAP_GET, Empty(), timeout_ms=self._limits.map_call_ms).map)
                    break
                except BusError as error:
                    log.debug("map not read cell=%s link=%s error=%s", self.cell, link.name, error)
            gevent.sleep(self._limits.map_pause_ms / 1000)
        finally:
            self._asking = False


class _Pauses:
    """Growing, jittered pauses that never pass the deadline."""

    def __init__(self, limits: RouterLimits, ends_at_s: float) -> None:
        self._pause_ms = float(limits.pause_ms_min)
        self._pause_ms_max = limits.pause_ms_max
        self._ends_at_s = ends_at_s

    def wait(self, changed: Flag) -> None:
        """Pause, or less when the map changes."""
        changed.wait(self._next())

    def sleep(self, at_least_ms: int) -> None:
        """Pause for at least so long, within the deadline."""
        left_s = max(0.0, self._ends_at_s - time.monotonic())
        gevent.sleep(min(left_s, at_least_ms / 1000 + self._next()))

    def _next(self) -> float:
        pause_s = self._pause_ms / 1000 * random.uniform(0.5, 1.0)
        self._pause_ms = min(self._pause_ms * 2, self._pause_ms_max)
        return max(0.0, min(pause_s, self._ends_at_s - time.monotonic()))


class _MapFeed:
    """One endpoint's topic ``map``, shared by its routers. A cell's map is believed from its own conductors only."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._routers: WeakSet[PartitionRouter] = WeakSet()
        endpoint.on_event(TOPIC_MAP, self._arrived)

    def add(self, router: PartitionRouter) -> None:
        self._routers.add(router)

    def _arrived(self, link: Link, event: Event) -> None:
        peer = link.peer
        if peer is None or peer.role != CONDUCTOR or peer.cell != event.key:
            log.warning("map refused cell=%s from=%s", event.key, link.name)
            return
        try:
            new_map = msgspec.msgpack.decode(event.payload, type=PartitionMap)
        except msgspec.DecodeError as error:
            log.warning("map cannot be read cell=%s from=%s error=%s", event.key, link.name, error)
            return
        for router in list(self._routers):
            if router.cell == event.key:
                router.update(new_map)


_feeds: "WeakKeyDictionary[Endpoint, _MapFeed]" = WeakKeyDictionary()


def _feed_of(endpoint: Endpoint) -> _MapFeed:
    feed = _feeds.get(endpoint)
    if feed is None:
        feed = _feeds[endpoint] = _MapFeed(endpoint)
    return feed


def _own_peer(endpoint: Endpoint) -> Peer:
    me = endpoint.identity
    return Peer(
        role=me.role,
        cell=me.cell,
        service_id=me.service_id,
        incarnation="",
        release=me.release,
        hosts=me.hosts,
        key_name="",
        interfaces={},
        attributes={},
        topics=frozenset(),
    )


def _late(method: MethodSpec, cell: str, timeout_ms: int, error: BusError | None) -> DeadlineExceeded:
    last = "" if error is None else f"; last: {type(error).__name__}: {error}"
    return DeadlineExceeded(f"{method.interface}.{method.name} in cell {cell} took longer than {timeout_ms} ms{last}")
