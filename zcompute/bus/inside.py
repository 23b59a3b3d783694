"""The built-in interface `bus`, which every endpoint serves: `bus.ping` and `bus.stat`.

A service that listens on nothing is asked through one that it dialled: a request that names another service is passed
on over the link with it, once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from zcompute.bus.errors import Busy, LinkDown
from zcompute.bus.identity import Identity
from zcompute.bus.stat import LINKS_PER_PAGE_MAX, EndpointStat

if TYPE_CHECKING:
    from zcompute.bus.link import Link
    from zcompute.bus.serving import CallContext

INSPECTORS = frozenset({"operator", "conductor"})
RELAYS_MAX = 8  # requests being passed on; each holds a worker of the control pool while it waits
RETRY_AFTER_MS = 500


@dataclass(frozen=True)
class BuiltInMethod:
    """A method of the bus' own interface."""

    name: str
    request: type
    reply: type | None
    interface: str = "bus"
    version: tuple[int, int] = (1, 0)
    roles: frozenset[str] = INSPECTORS
    pool: str = "control"
    idempotent: bool = True


class PingRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Are you there? `service` "" is the receiver itself, another one is asked over the receiver's link with it."""

    service: str = ""


class PingReply(msgspec.Struct, kw_only=True):
    """Who answered, which of its lives, and how old that is. `relay_us` is what the way behind a relay took."""

    service_id: str
    role: str
    cell: str
    release: str
    incarnation: str
    age_ms: int
    relay_us: int = 0


class StatRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What are you doing? With a page of the links: `links_max` of them (LINKS_PER_PAGE_MAX at most), from the
    `links_from`th by name. Links that come or go between two pages may be missing or seen twice."""

    service: str = ""
    links_from: int = 0
    links_max: int = LINKS_PER_PAGE_MAX


BUS_PING = BuiltInMethod("ping", PingRequest, PingReply)
BUS_STAT = BuiltInMethod("stat", StatRequest, EndpointStat)
BUILT_IN = (BUS_PING, BUS_STAT)


class Stated(Protocol):
    """`Endpoint.stat`."""

    def __call__(self, *, links_from: int = 0, links_max: int | None = None) -> EndpointStat: ...


class BusInterface:
    """Answers `bus.ping` and `bus.stat` for one endpoint."""

    def __init__(
        self, identity: Identity, incarnation: str, stat: Stated, links_of: Callable[[str], list["Link"]]
    ) -> None:
        self._identity = identity
        self._incarnation = incarnation
        self._stat = stat
        self._links_of = links_of
        self._born = time.monotonic()
        self._relays = 0

    def ping(self, request: PingRequest, context: "CallContext") -> PingReply:
        """Serve `bus.ping`. Raises LinkDown when the service has no link here, Busy."""
        if self._is_other(request.service):
            asked = time.monotonic()
            reply: PingReply = self._relay(BUS_PING, request.service, PingRequest(), context)
            reply.relay_us = int((time.monotonic() - asked) * 1e6)
            return reply
        identity = self._identity
        return PingReply(
            service_id=identity.service_id,
            role=identity.role,
            cell=identity.cell,
            release=identity.release,
            incarnation=self._incarnation,
            age_ms=int((time.monotonic() - self._born) * 1000),
        )

    def stat(self, request: StatRequest, context: "CallContext") -> EndpointStat:
        """Serve `bus.stat`. Raises LinkDown when the service has no link here, Busy."""
        if self._is_other(request.service):
            own = StatRequest(links_from=request.links_from, links_max=request.links_max)
            relayed: EndpointStat = self._relay(BUS_STAT, request.service, own, context)
            return relayed
        links_max = max(0, min(request.links_max, LINKS_PER_PAGE_MAX))
        return self._stat(links_from=max(0, request.links_from), links_max=links_max)

    def _is_other(self, service: str) -> bool:
        return service not in ("", self._identity.service_id)

    def _relay(self, method: BuiltInMethod, service: str, request: msgspec.Struct, context: "CallContext") -> Any:
        links = self._links_of(service)
        if not links:
            raise LinkDown(f"{self._identity.service_id} has no link with a service {service!r}: ask another conductor")
        if self._relays >= RELAYS_MAX:
            raise Busy(f"{RELAYS_MAX} requests are being passed on already", retry_after_ms=RETRY_AFTER_MS)
        self._relays += 1
        try:
            return links[0].call(method, request, timeout_ms=context.remaining_ms())
        finally:
            self._relays -= 1
