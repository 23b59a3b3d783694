"""Ways to agents over other conductors: found by asking when a command is to go to a host that is not attached here."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent
import msgspec
from gevent.event import Event

from zcompute.bus import BusError, Link
from zcompute.bus.errors import LinkDown, UnknownMethod
from zcompute.conductor.fellows import Fellows
from zcompute.objects.interface import Method
from zcompute.objects.methods import RELAY_FIND, RELAYED_COMMANDS
from zcompute.objects.relay import FindReply, FindRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WayLimits:
    """``keep_ms``: a way is asked for anew after this. ``again_ms``: between two questions for one host."""

    keep_ms: int = 10_000
    again_ms: int = 1_000
    ask_ms_max: int = 1_000
    hosts_max: int = 1_000  # in one question
    wanted_max: int = 10_000
    known_max: int = 20_000


@dataclass(frozen=True)
class _Way:
    link: Link
    found_at: float


class Ways:
    """Which fellow conductor reaches a host. ``on_found(host)`` is called with each host that has become reachable."""

    def __init__(self, fellows: Fellows, limits: WayLimits | None = None) -> None:
        self._fellows = fellows
        self._limits = limits or WayLimits()
        self._known: dict[str, _Way] = {}
        self._wanted: dict[str, None] = {}
        self._asked_at: dict[str, float] = {}
        self._wake = Event()
        self._greenlet: gevent.Greenlet | None = None
        self.on_found: Callable[[str], None] = lambda host: None

    def start(self) -> None:
        """Begin to ask."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self) -> None:
        """Ask no more."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def has(self, host: str) -> bool:
        """Whether a fellow is known to reach the host; if none is, they are asked, and ``on_found`` says so."""
        way = self._known.get(host)
        if way is None or not way.link.up:
            self._known.pop(host, None)
            self._want(host)
            return False
        if time.monotonic() - way.found_at >= self._limits.keep_ms / 1000:
            self._want(host)
        return True

    def send(self, host: str, method: Method, request: msgspec.Struct, *, timeout_ms: int) -> Any:
        """Have a fellow give a command to the host's agent. Raises LinkDown when none is known to reach it (any more),
        and what the agent and the bus answer."""
        way = self._known.get(host)
        if way is None or not way.link.up:
            self.has(host)
            raise LinkDown(f"no conductor is known to reach host {host}")
        try:
            return way.link.call(RELAYED_COMMANDS[method], request, timeout_ms=timeout_ms)
        except LinkDown:
            self.forget(host)
            self._want(host)
            raise

    def forget(self, host: str) -> None:
        """The host is attached here, or where it was said to be it is no more."""
        self._known.pop(host, None)

    # -- asking -----------------------------------------------------------------------------------------------------

    def _want(self, host: str) -> None:
        now = time.monotonic()
        asked = self._asked_at.get(host)
        too_soon = asked is not None and now - asked < self._limits.again_ms / 1000
        if too_soon or len(self._wanted) >= self._limits.wanted_max or not self._fellows.links():
            return
        self._wanted[host] = None
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._wanted:
                hosts = list(self._wanted)[: self._limits.hosts_max]
                for host in hosts:
                    del self._wanted[host]
                self._ask_all(hosts)

    def _ask_all(self, hosts: list[str]) -> None:
        now = time.monotonic()
        again_s = self._limits.again_ms / 1000
        self._asked_at = {host: at for host, at in self._asked_at.items() if now - at < again_s}
        self._asked_at.update(dict.fromkeys(hosts, now))
        asking = [gevent.spawn(self._ask, link, hosts) for link in self._fellows.links()]
        gevent.joinall(asking, timeout=self._limits.ask_ms_max / 1000)
        gevent.killall(asking, block=False)

    def _ask(self, link: Link, hosts: list[str]) -> None:
        try:
            reply: FindReply = link.call(RELAY_FIND, FindRequest(hosts=hosts), timeout_ms=self._limits.ask_ms_max)
        except UnknownMethod:
            return  # of a release before this interface
        except BusError as error:
            log.info("ways not told by=%s error=%s", link.name, error)
            return
        now = time.monotonic()
        for host in set(reply.hosts).intersection(hosts):
            former = self._known.pop(host, None)
            if len(self._known) >= self._limits.known_max:
                del self._known[next(iter(self._known))]
            self._known[host] = _Way(link, now)
            if former is None or not former.link.up:
                log.info("host is reached over another conductor host=%s conductor=%s", host, link.name)
                self.on_found(host)
