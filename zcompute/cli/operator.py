"""The operator's own place on the bus: dials every conductor that its configuration names, and asks.

What did not answer is always said: an answer is a list of stats and a list of those missing, with the reason.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import msgspec
from gevent.pool import Pool

from zcompute.bus import (
    BUS_PING,
    BUS_STAT,
    BusConfigError,
    BusError,
    Endpoint,
    EndpointStat,
    Identity,
    Link,
    LinkDown,
    MethodSpec,
    PingReply,
    PingRequest,
    StatRequest,
)
from zcompute.cli.exits import CommandError, UsageRefused
from zcompute.config import Config, ConfigError, PeerConfig, load
from zcompute.keys import load_identity

ROLE = "operator"
ASKED_AT_ONCE = 16
PAGES_MAX = 100  # of links of one service
POLL_S = 0.01


class Missing(msgspec.Struct, frozen=True):
    """A service that gave no answer."""

    service: str
    reason: str


class Pinged(msgspec.Struct, kw_only=True, frozen=True):
    """An answered ping: the whole round trip, and what of it lay behind the conductor that passed it on."""

    via: str
    round_trip_us: int
    reply: PingReply


def operator_config(config_path: str | None, state_dir: str) -> Config:
    """The operator's configuration: of a file, or of an embedded region. Raises UsageRefused, CommandError's tree."""
    if config_path is None:
        from zcompute.cli.up.layout import OPERATOR, Paths
        from zcompute.cli.up.statedir import check_version

        paths = Paths(Path(state_dir).expanduser().resolve())
        check_version(paths, create=False)
        config_path = str(paths.config(OPERATOR))
    try:
        config = load(config_path)
        if not conductors_of(config):
            raise ConfigError(f"{config_path}: [bus] conductors and root: expected the conductors to ask, found none")
    except ConfigError as error:
        raise UsageRefused(str(error)) from error
    return config


def conductors_of(config: Config) -> list[PeerConfig]:
    """The conductors that a configuration names, each once."""
    return list({peer.id: peer for peer in [*config.bus.root, *config.bus.conductors]}.values())


def own_identity(config: Config) -> Identity:
    """The operator's key under a service id of this very command. Raises UsageRefused."""
    try:
        own = load_identity(config, ROLE)
    except ConfigError as error:
        raise UsageRefused(str(error)) from error
    # Two commands at once are two services: with one id, each would take the other's links.
    return replace(own, service_id=f"{own.service_id}-{os.getpid()}-{secrets.token_hex(3)}")


class Operator:
    """An endpoint of role `operator`, for as long as one command runs; all its questions share one deadline."""

    def __init__(self, config: Config, timeout_ms: int) -> None:
        self._deadline = time.monotonic() + timeout_ms / 1000
        try:
            self._endpoint = Endpoint(own_identity(config))
        except BusConfigError as error:
            raise UsageRefused(str(error)) from error
        self._links: dict[str, Link] = {}
        try:
            for peer in conductors_of(config):
                self._links[peer.id] = self._endpoint.dial(peer.address, peer.public_key)
        except BusConfigError as error:
            self._endpoint.close()
            raise UsageRefused(str(error)) from error

    def __enter__(self) -> "Operator":
        return self

    def __exit__(self, *_: object) -> None:
        self._endpoint.close()

    def dial_more(self, peers: Iterable[PeerConfig]) -> None:
        """Dial these conductors too, those that are not known by their ids."""
        for peer in peers:
            if peer.id not in self._links:
                with suppress(BusConfigError):  # an odd address in the root's rows keeps us from no other
                    self._links[peer.id] = self._endpoint.dial(peer.address, peer.public_key)

    def ask_cell(self, cell: str, method: MethodSpec, request: Any, at_most_ms: int | None = None) -> Any:
        """Call a conductor of a cell, another one when it does not answer (within ``at_most_ms``, where that is given).

        Raises CommandError, and what it answers.
        """
        reasons: list[str] = []
        for name, link in sorted(self._links.items(), key=lambda item: not item[1].up):
            if link.peer is None or link.peer.cell != cell:
                continue
            try:
                left_ms = self._remaining_ms()
                return link.call(method, request, timeout_ms=min(left_ms, at_most_ms or left_ms))
            except BusError as error:
                reasons.append(f"{name}: {error}")
        raise CommandError(f"no conductor of cell {cell} has answered: {'; '.join(reasons) or 'none is linked'}")

    def cells(self) -> list[str]:
        """The cells of which a conductor is linked."""
        return sorted({link.peer.cell for link in self._links.values() if link.up and link.peer is not None})

    def conductors(self, cell: str) -> list[str]:
        """The conductors of a cell that are linked."""
        links = sorted(self._links.items())
        return [name for name, link in links if link.up and link.peer is not None and link.peer.cell == cell]

    def stats(self, services: Iterable[str] = ()) -> tuple[list[EndpointStat], list[Missing]]:
        """The stats of these services with all their links, of every conductor when none is named."""
        names = list(dict.fromkeys(services)) or list(self._links)
        outcomes = Pool(ASKED_AT_ONCE).map(self._stat_or_missing, names)
        stats = [outcome for outcome in outcomes if isinstance(outcome, EndpointStat)]
        return stats, [outcome for outcome in outcomes if isinstance(outcome, Missing)]

    def ask_one(self, service: str, method: MethodSpec, request: Any) -> Any:
        """What this conductor answers. Raises CommandError when it does not, and what it answers."""
        return self._reach(service, lambda link, _, timeout_ms: link.call(method, request, timeout_ms=timeout_ms))

    def ask_each(self, services: Iterable[str], method: MethodSpec, request: Any) -> tuple[list[Any], list[Missing]]:
        """What each of these conductors answers."""

        def ask(link: Link, _: str, timeout_ms: int) -> Any:
            return link.call(method, request, timeout_ms=timeout_ms)

        def answer_or_missing(service: str) -> Any:
            try:
                return self._reach(service, ask)
            except CommandError as error:
                return Missing(service, error.message)

        outcomes = Pool(ASKED_AT_ONCE).map(answer_or_missing, list(dict.fromkeys(services)))
        missing = [outcome for outcome in outcomes if isinstance(outcome, Missing)]
        return [outcome for outcome in outcomes if not isinstance(outcome, Missing)], missing

    def ping(self, service: str) -> Pinged:
        """Ask a service whether it is there. Raises CommandError."""

        def ask(link: Link, relayed: str, timeout_ms: int) -> Pinged:
            begun = time.monotonic()
            reply: PingReply = link.call(BUS_PING, PingRequest(service=relayed), timeout_ms=timeout_ms)
            took_us = int((time.monotonic() - begun) * 1e6)
            return Pinged(via=self._name_of(link) if relayed else "", round_trip_us=took_us, reply=reply)

        pinged: Pinged = self._reach(service, ask)
        return pinged

    def _stat_or_missing(self, service: str) -> EndpointStat | Missing:
        try:
            stat: EndpointStat = self._reach(service, self._whole_stat)
        except CommandError as error:
            return Missing(service, error.message)
        return stat

    def _whole_stat(self, link: Link, relayed: str, _timeout_ms: int) -> EndpointStat:
        stat: EndpointStat | None = None
        for _ in range(PAGES_MAX):
            taken = len(stat.links) if stat is not None else 0
            request = StatRequest(service=relayed, links_from=taken)
            page: EndpointStat = link.call(BUS_STAT, request, timeout_ms=self._remaining_ms())
            if stat is None:
                stat = page
            else:
                stat.links += page.links
            if not page.links or len(stat.links) >= page.links_known:
                break
        if stat is None:
            raise LinkDown("no page was asked for")
        return stat

    def _reach(self, service: str, ask: Callable[[Link, str, int], Any]) -> Any:
        """Ask a conductor itself; any other service through the conductors, until one has a link with it."""
        direct = self._links.get(service)
        if direct is not None:
            return self._ask(direct, service, "", ask)
        reasons = []
        for name, link in sorted(self._links.items(), key=lambda item: not item[1].up):
            try:
                return self._ask(link, name, service, ask)
            except CommandError as error:
                reasons.append(error.message)
        raise CommandError(f"{service} was not reached: " + "; ".join(reasons))

    def _ask(self, link: Link, name: str, relayed: str, ask: Callable[[Link, str, int], Any]) -> Any:
        if not link.wait_up(self._remaining_ms()):
            reason = self._endpoint.down_reason(link).strip(" ()") or "it does not answer"
            raise CommandError(f"{name} at {link.address} is not reached: {reason}")
        try:
            return ask(link, relayed, self._remaining_ms())
        except BusError as error:
            raise CommandError(f"{name}: {error}") from error

    def wait_links(self, timeout_ms: int) -> None:
        """Until every conductor is linked, or the time is over: those that are down then come last."""
        until = time.monotonic() + timeout_ms / 1000
        with suppress(CommandError):
            while not all(link.up for link in self._links.values()) and time.monotonic() < until:
                gevent.sleep(min(POLL_S, self._remaining_ms() / 1000))

    def _remaining_ms(self) -> int:
        left_ms = int((self._deadline - time.monotonic()) * 1000)
        if left_ms <= 0:
            raise CommandError("no answer in time")
        return left_ms

    def _name_of(self, link: Link) -> str:
        return next((name for name, known in self._links.items() if known is link), link.name)
