"""Relaying for agents whose link to an owner is down: their reports, beats and begins, handed to the owner once.

This conductor vouches for what it has verified on its own link: the host is attached there, under this epoch. The owner
decides, and only its verdict goes back to the agent: nothing is acknowledged here. What cannot be handed on is answered
busy (come again, perhaps elsewhere), so that it stays in the agent's outbox.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gevent
import msgspec
from gevent.lock import BoundedSemaphore

from zcompute.bus import Ack, BusError, CallContext, Link, Report
from zcompute.bus.errors import Busy, LinkDown, NotOwner
from zcompute.conductor.cell.relay_window import Handed, RelayLimits, RelayWindow
from zcompute.conductor.commands import Commands
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.fellows import Fellows
from zcompute.objects.command import DomainsRequest
from zcompute.objects.interface import Method
from zcompute.objects.messages.hosts import HostBeginReply, HostBeginRequest, HostGrantsReply, HostGrantsRequest
from zcompute.objects.methods import RELAY_BEAT, RELAY_BEGIN, RELAY_FIND, RELAY_GRANTS, RELAYED_COMMANDS
from zcompute.objects.partition import partition_of
from zcompute.objects.relay import FindReply, FindRequest, RelayedBeat, RelayedBegin, RelayedReport
from zcompute.objects.report import VERDICT_BUSY, ReportBody

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode

REFUSED = "relay_"
"""Begins the reasons for which something is not handed on: counters refused_relay_*."""


class Relay:
    """The relaying side. ``answer`` takes an agent's link and the acks for it; it is set by Reports."""

    def __init__(
        self, env: ConductorEnv, fellows: Fellows, commands: Commands, limits: RelayLimits | None = None
    ) -> None:
        self._env = env
        self._fellows = fellows
        self._commands = commands
        self._limits = limits or RelayLimits()
        self._window = RelayWindow(self._limits)
        self._command_slots = BoundedSemaphore(self._limits.commands_at_once_max)
        self._begin_slots = BoundedSemaphore(self._limits.begins_at_once_max)
        self._beats: dict[str, int] = {}
        self._flushing: gevent.Greenlet | None = None
        self._sweeping: gevent.Greenlet | None = None
        self.answer: Callable[[Link, Ack], None] = lambda link, ack: None

    def handlers(self) -> list[tuple[Method, Handler]]:
        """What a fellow asks of a relay: commands for agents that are attached here."""
        passing: list[tuple[Method, Handler]] = [
            (relayed, partial(self._command, command)) for command, relayed in RELAYED_COMMANDS.items()
        ]
        return [(RELAY_FIND, self.find), *passing]

    def start(self) -> None:
        """Hear the owners' verdicts, and of lost links."""
        self._env.endpoint.on_acks(self.verdicts)
        self._env.endpoint.on_link_down(self.link_down)
        self._sweeping = gevent.spawn(self._sweep)

    def stop(self) -> None:
        """Hand on nothing more."""
        for greenlet in (self._sweeping, self._flushing):
            if greenlet is not None:
                greenlet.kill(block=False)

    # -- reports ----------------------------------------------------------------------------------------------------

    def report(self, link: Link, report: Report, body: ReportBody, agent_epoch: int) -> None:
        """Hand a report of an attached host to the owner of its key, in the versions that the owner reads.

        Raises NotOwner when the map does not name another conductor, Busy at a limit or while the owner is away,
        UnsupportedVersion for what the owner's release cannot be told.
        """
        way = self._way(report.key)
        reason = self._window.full_for(link, len(report.payload))
        if reason:
            raise self._refused("full", link, f"{reason} reports are under way to other owners here")
        peer = link.peer
        if peer is None:
            return  # the link has never been up; nobody waits
        payload = _encode(
            RelayedReport(
                host=body.host,
                service_id=peer.service_id,
                incarnation=peer.incarnation,
                agent_epoch=agent_epoch,
                seq=report.seq,
                payload=way.encode(body) if way.lowers else report.payload,
            )
        )
        number = self._window.next_number()
        if not way.report([Report(report.key, number, payload)]):
            raise self._refused("credit", link, f"{way.name} takes no more reports now")
        size = len(report.payload)
        self._window.add(Handed(link, report.key, report.seq, number, size, way, time.monotonic()))
        self._count("relayed_reports")

    def verdicts(self, way: Link, acks: list[Ack]) -> None:
        """An owner has decided: its words go back as they are."""
        for ack in acks:
            handed = self._window.answered(ack.seq, ack.key, way)
            if handed is None:
                self._count("relayed_late")
            else:
                self.answer(handed.link, msgspec.structs.replace(ack, seq=handed.seq))

    def link_down(self, link: Link) -> None:
        """An owner or an agent is away. What was under way may have been decided: it comes again, and falls there."""
        for one in self._window.sender_lost(link):
            one.way.withdraw_report(one.key, one.number)
        self._give_back(self._window.way_lost(link), f"lost the link with the owner: {link.name}")

    def _sweep(self) -> None:
        while True:
            gevent.sleep(self._limits.sweep_ms / 1000)
            self._give_back(self._window.expired(time.monotonic()), "the owner has not answered")

    def _give_back(self, handed: list[Handed], reason: str) -> None:
        for one in handed:
            one.way.withdraw_report(one.key, one.number)  # or it keeps its place in the owner's credit
            self._env.endpoint.refusals.count(REFUSED + "unanswered", one.way.name, reason)
            ack = Ack(one.key, one.seq, VERDICT_BUSY, f"relay: {reason}", retry_after_ms=self._limits.retry_ms)
            self.answer(one.link, ack)

    # -- begins -----------------------------------------------------------------------------------------------------

    def begin(self, request: HostBeginRequest, context: CallContext) -> HostBeginReply:
        """Hand a begin to the host's owner; the host is the sender's, as its key says. Raises like ``report``."""
        way = self._way(request.inventory.name)
        peer = context.peer
        relayed = RelayedBegin(
            inventory=request.inventory,
            service_id=peer.service_id,
            incarnation=peer.incarnation,
            in_doubt=request.in_doubt,
        )
        if not self._begin_slots.acquire(blocking=False):
            raise self._refused("full", context.link, "begins_at_once_max begins are under way here")
        try:
            self._count("relayed_begins")
            reply: HostBeginReply = way.call(RELAY_BEGIN, relayed, timeout_ms=context.remaining_ms())
            return reply
        finally:
            self._begin_slots.release()

    def grants(self, request: HostGrantsRequest, context: CallContext) -> HostGrantsReply:
        """Ask the owner of the first of these partitions for the rest of them that are its. Raises like ``report``."""
        way = self._way_of(request.partitions[0])
        if not self._begin_slots.acquire(blocking=False):
            raise self._refused("full", context.link, "begins_at_once_max begins are under way here")
        try:
            self._count("relayed_grants")
            reply: HostGrantsReply = way.call(RELAY_GRANTS, request, timeout_ms=context.remaining_ms())
            return reply
        finally:
            self._begin_slots.release()

    # -- beats ------------------------------------------------------------------------------------------------------

    def beat(self, epochs: Mapping[str, int]) -> None:
        """Hand these beats on, gathered for a moment: an agent's hosts have many owners."""
        self._beats.update(epochs)
        if self._flushing is None or self._flushing.dead:
            self._flushing = gevent.spawn_later(self._limits.beats_gather_ms / 1000, self._flush_beats)

    def _flush_beats(self) -> None:
        beats, self._beats = self._beats, {}
        by_way: dict[Link, dict[str, int]] = {}
        for host, agent_epoch in beats.items():
            try:
                by_way.setdefault(self._way(host), {})[host] = agent_epoch
            except BusError:
                continue  # counted; a beat that nobody takes is a missed one
        for way, epochs in by_way.items():
            names = list(epochs)
            for first in range(0, len(names), self._limits.beat_hosts_max):
                part = {name: epochs[name] for name in names[first : first + self._limits.beat_hosts_max]}
                self._send_beats(way, part)

    def _send_beats(self, way: Link, epochs: dict[str, int]) -> None:
        try:
            way.cast(RELAY_BEAT, RelayedBeat(epochs=epochs))
            self._count("relayed_beats", len(epochs))
        except BusError as error:
            self._env.endpoint.refusals.count(REFUSED + "unsent", way.name, str(error))

    # -- commands ---------------------------------------------------------------------------------------------------

    def find(self, request: FindRequest, context: CallContext) -> FindReply:
        """Which hosts are attached here. Raises Forbidden."""
        self._fellows.check(context)
        asked = request.hosts[: self._limits.find_hosts_max]
        return FindReply(hosts=[host for host in asked if self._commands.link(host) is not None])

    def _command(self, method: Method, request: Any, context: CallContext) -> Any:
        """Give an owner's command to the agent that is attached here, and its answer back. The agent judges the order.

        Raises LinkDown when the host is not attached here: it is handed on once. Busy, and what the agent answers.
        """
        self._fellows.check(context)
        host = request.host if isinstance(request, DomainsRequest) else request.order.host
        link = self._commands.link(host)
        if link is None:
            raise LinkDown(f"host {host} is not attached here either")
        if not self._command_slots.acquire(blocking=False):
            raise self._refused("full", context.link, "commands_at_once_max commands are under way here")
        try:
            self._count("relayed_commands")
            return link.call(method, request, timeout_ms=context.remaining_ms())
        finally:
            self._command_slots.release()

    # -- ways -------------------------------------------------------------------------------------------------------

    def _way(self, key: str) -> Link:
        """The link with the owner of a key. Raises NotOwner, Busy."""
        return self._way_of(partition_of(key))

    def _way_of(self, partition: int) -> Link:
        """The link with the owner of a partition. Raises NotOwner, Busy."""
        cell_map = self._env.ledger.map
        owner = cell_map.owners[partition]
        if owner in ("", self._env.service_id):
            raise NotOwner(
                f"the map names {owner or 'nobody'} as the owner of partition {partition}",
                partition=partition,
                map_version=cell_map.version,
            )
        way = self._fellows.link(owner)
        if way is None:
            self._env.endpoint.refusals.count(REFUSED + "no_way", owner, "no link with this owner")
            raise Busy(f"relay: no link with owner {owner}", retry_after_ms=self._limits.retry_ms)
        return way

    def _refused(self, reason: str, link: Link, detail: str) -> Busy:
        self._env.endpoint.refusals.count(REFUSED + reason, link.name, detail)
        return Busy(f"relay: {detail}", retry_after_ms=self._limits.retry_ms)

    def _count(self, name: str, count: int = 1) -> None:
        self._env.endpoint.counters[name] += count
