"""Sends what the outbox owes to the owners of the instances, over the links that may carry reports.

An owner without such a link is reached over another conductor, which hands on: see ``ways``.
"""

import logging
import time
from collections.abc import Callable

import msgspec
from gevent.event import Event

from zcompute.bus import Ack, BusError, Link, Report
from zcompute.bus.errors import UnsupportedVersion
from zcompute.compute.dispatch import Dispatch
from zcompute.compute.links import relays
from zcompute.compute.outbox import Entry, Outbox
from zcompute.compute.settings import Settings
from zcompute.compute.ways import Ways
from zcompute.failpoints import failpoint
from zcompute.log import REPEATED
from zcompute.objects.report import (
    VERDICT_ALREADY_THERE,
    VERDICT_APPLIED,
    VERDICT_BUSY,
    VERDICT_INVALID,
    VERDICT_NOT_OWNER,
    VERDICT_NOT_YET,
    VERDICT_NOT_YOURS,
    Observation,
    StepResult,
)

log = logging.getLogger(__name__)

IDLE_S = 1.0
_TAKEN = frozenset({VERDICT_APPLIED, VERDICT_ALREADY_THERE})


class Reporter:
    """Outbox and dispatch as one. A host's entries are held until the host has begun its epoch (``release``)."""

    def __init__(self, outbox: Outbox, settings: Settings, me: str = "") -> None:
        self._outbox = outbox
        self._ways = Ways(settings, me)
        self._peers: dict[str, str] = {}  # by owner: to whom its reports go
        self._dispatch = Dispatch(settings, self._lane_of)
        self._links: dict[str, Link] = {}
        self._met: dict[str, Link] = {}  # the last link to each conductor, ready or not
        self._released: set[str] = set()
        self._wake = Event()
        self.on_not_owner: Callable[[Link, int], None] = lambda link, map_version: None

    # -- what is owed ----------------------------------------------------------------------------------------------

    def report(self, body: Observation | StepResult) -> None:
        """Owe this. Raises ResultsFull, ObservationsFull. A result that is owed already is left as it is."""
        if isinstance(body, StepResult):
            entry = self._outbox.add_result(body)
        else:
            entry, folded = self._outbox.observe(body, self._dispatch.on_its_way(body.instance_uuid))
            if folded is not None:
                self._dispatch.discard(folded)
        if entry is not None and entry.host in self._released:
            self._dispatch.add(entry)
            self._wake.set()

    def retract(self, host: str, uuid: str) -> None:
        """The host does not observe this instance any more."""
        seq = self._outbox.retract(host, uuid)
        if seq is not None:
            self._dispatch.discard(seq)

    def release(self, host: str) -> None:
        """The host has begun its epoch: what it owes may go."""
        if host not in self._released:
            self._released.add(host)
            for entry in self._owed(host):
                self._dispatch.add(entry)
            self._wake.set()

    def hold(self, host: str) -> None:
        """The host must not speak (superseded, or about to begin a new epoch): what it owes stays in the outbox."""
        if host in self._released:
            self._released.discard(host)
            for entry in self._owed(host):
                self._dispatch.discard(entry.seq)

    def _owed(self, host: str) -> list[Entry]:
        return [entry for entry in self._outbox.entries() if entry.host == host]

    def results_room(self) -> int:
        return self._outbox.results_room()

    def __len__(self) -> int:
        """Reports without a final verdict."""
        return len(self._outbox)

    # -- where it goes ---------------------------------------------------------------------------------------------

    def remap(self, owner_of: Callable[[str], str]) -> None:
        """A new map has come."""
        self._dispatch.remap(owner_of)
        self._wake.set()

    def link_ready(self, owner: str, link: Link, same_process: bool) -> None:
        """Reports may go over this link. ``same_process``: the bus itself resends what this peer has not answered."""
        self._links[owner] = self._met[owner] = link
        self._ways.back(owner)
        if not same_process:
            self._dispatch.link_lost(owner)
        self._wake.set()

    def link_unready(self, owner: str) -> None:
        """No reports over this owner's link until ``link_ready``, its own or those that it was to hand on."""
        self._links.pop(owner, None)
        self._ways.lost(owner, time.monotonic())
        self._dispatch.relay_lost(owner)
        self._wake.set()

    def acks(self, link: Link, acks: list[Ack]) -> None:
        """Verdicts came."""
        peer = link.peer
        if peer is None:
            return
        now = time.monotonic()
        final: list[int] = []
        asked = False
        ready = self._links.get(peer.service_id) is link
        for ack in acks:
            # The bus resends over a link that is not attached again yet: being refused there says nothing.
            early = ack.verdict == VERDICT_INVALID and not ready
            relayed_for = self._dispatch.relayed_for(peer.service_id, ack)
            # An owner that is busy names its lane: who names none was taken for the owner, and could not hand it on.
            astray = ack.verdict == VERDICT_BUSY and not ack.lane and not relayed_for
            heard = msgspec.structs.replace(ack, verdict=VERDICT_NOT_OWNER) if early or astray else ack
            if relayed_for and (heard.verdict == VERDICT_NOT_OWNER or (ack.verdict == VERDICT_BUSY and not ack.lane)):
                self._ways.refused(relayed_for, peer.service_id, now)
            if self._dispatch.answered(peer.service_id, heard, now):
                final.append(ack.seq)
            elif ack.verdict in _TAKEN:
                self._taken(ack)
            if early:
                log.info("report came before its host was attached instance=%s", ack.key, extra=REPEATED)
            elif ack.verdict in (VERDICT_NOT_YOURS, VERDICT_INVALID):
                log.warning("report refused instance=%s verdict=%s detail=%s", ack.key, ack.verdict, ack.detail)
            elif (astray or ack.verdict == VERDICT_NOT_OWNER) and not asked:
                asked = True
                self.on_not_owner(link, ack.version)
        if final:
            failpoint("reporter.before_prune")
            self._outbox.forget(final)
            failpoint("reporter.after_prune")
        self._wake.set()

    def _taken(self, ack: Ack) -> None:
        """An owner has taken what is not owed any more: it was folded while it was on its way."""
        counted = self._outbox.told(ack.key, ack.seq, self._dispatch.on_its_way(ack.key))
        if counted is not None:
            entry, former = counted
            self._dispatch.discard(former)
            if entry.host in self._released:
                self._dispatch.add(entry)

    # -- sending ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """The sending greenlet; ends by being killed."""
        while True:
            due = self.pump(time.monotonic())
            wait_s = IDLE_S if due is None else min(IDLE_S, max(0.0, due - time.monotonic()))
            self._wake.wait(wait_s)
            self._wake.clear()

    def pump(self, now: float) -> float | None:
        """Send what can be sent; answers when something more is due."""
        self._dispatch.tick(now)
        for peer, key, seq in self._dispatch.given_up():
            link = self._met.get(peer)
            if link is not None:
                link.withdraw_report(key, seq)
        for owner in self._dispatch.owners():
            link = self._way(owner, now)
            if link is not None and link.up:
                self._send(owner, link, now)
        return self._dispatch.tick(now)

    def _way(self, owner: str, now: float) -> Link | None:
        """Where an owner's reports go: to itself, or to a relay."""
        usable = {service_id: relays(link) for service_id, link in self._links.items()}
        peer = self._ways.to(owner, usable, now)
        if peer and peer != self._peers.get(owner, owner):
            log.info("reports go by way of=%s owner=%s", peer, owner)
            self._dispatch.way_changed(owner, peer)
        if peer:
            self._peers[owner] = peer
        return self._links.get(peer)

    def _lane_of(self, owner: str, key: str) -> int:
        link = self._met.get(self._peers.get(owner, owner))
        return 0 if link is None else link.lane_of(key)

    def _send(self, owner: str, link: Link, now: float) -> None:
        entries = self._dispatch.take(owner, now, link.report_credit, link.lane_room, self._peers[owner])
        reports = [report for entry in entries if (report := self._readable(owner, link, entry, now)) is not None]
        if not reports:
            return
        taken = 0
        failpoint("reporter.before_send")
        try:
            taken = link.report(reports)
        except BusError as error:
            log.debug("reports not taken peer=%s error=%s", owner, error)
        if taken < len(reports):
            self._dispatch.untake(owner, [self._outbox.entry(report.seq) for report in reports[taken:]])

    def _readable(self, owner: str, link: Link, entry: Entry, now: float) -> Report | None:
        """The report as the peer reads it; what an older one cannot be told waits for its upgrade, as for a grant."""
        if not link.lowers:
            return Report(entry.key, entry.seq, entry.payload)
        try:
            return Report(entry.key, entry.seq, link.encode(self._outbox.body(entry.seq)))
        except UnsupportedVersion as error:
            log.info("report not sayable yet instance=%s error=%s", entry.key, error, extra=REPEATED)
            self._dispatch.answered(self._peers[owner], Ack(entry.key, entry.seq, VERDICT_NOT_YET), now)
            return None
