"""The owner's side of relaying: what a fellow conductor vouches for is believed under an epoch checked here, once.

Each conductor checks an epoch once a link against the host's row at the primary; so does an owner with the links of its
fellows. A relay that has not heard yet of a newer agent cannot bring in the older one's word.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import gevent
import msgspec

from zcompute.bus import Link, Report
from zcompute.conductor.cell.hosts import Hosts, Rows, check_epoch
from zcompute.conductor.cell.relay_window import RelayLimits
from zcompute.conductor.env import ConductorEnv
from zcompute.db.errors import StoreError
from zcompute.objects.errors import EpochRefused, ObjectError
from zcompute.objects.relay import RelayedReport
from zcompute.objects.report import VERDICT_BUSY, VERDICT_INVALID, VERDICT_NOT_YET

log = logging.getLogger(__name__)

_decode = msgspec.msgpack.Decoder(RelayedReport).decode

Take = Callable[[Link, Report, RelayedReport], None]
Refuse = Callable[[Link, Report, str, str], None]


@dataclass(frozen=True)
class _Held:
    link: Link
    report: Report
    relayed: RelayedReport


class Vouching:
    """``take(link, report, relayed)`` goes on with what is believed; ``refuse(link, report, verdict, detail)`` answers.

    A refusal is never final but for what cannot be read: the agent keeps the report, and its own link tells it when
    another has taken its host.
    """

    def __init__(
        self, env: ConductorEnv, hosts: Hosts, take: Take, refuse: Refuse, limits: RelayLimits | None = None
    ) -> None:
        self._env = env
        self._hosts = hosts
        self._take = take
        self._refuse = refuse
        self._limits = limits or RelayLimits()
        self._held: list[_Held] = []
        self._checking: gevent.Greenlet | None = None

    def stop(self) -> None:
        """Believe nothing more."""
        self._held.clear()
        if self._checking is not None:
            self._checking.kill(block=False)

    def received(self, link: Link, report: Report) -> None:
        """A report of a fellow conductor."""
        try:
            relayed = _decode(report.payload)
        except msgspec.DecodeError as error:
            self._count("malformed", link, str(error))
            self._refuse(link, report, VERDICT_INVALID, f"a relayed report was expected: {error}")
            return
        known = self._hosts.attachments.epoch(link, relayed.host)
        if known == relayed.agent_epoch:
            self._take(link, report, relayed)
        elif known is not None and relayed.agent_epoch < known:
            self._superseded(link, report, relayed, known)
        elif len(self._held) >= self._limits.held_max:
            self._count("held", link, f"{len(self._held)} reports wait for a look at the primary")
            self._refuse(link, report, VERDICT_BUSY, "too many epochs are being checked")
        else:
            self._held.append(_Held(link, report, relayed))
            if self._checking is None or self._checking.dead:
                self._checking = gevent.spawn(self._check)

    def _superseded(self, link: Link, report: Report, relayed: RelayedReport, known: int) -> None:
        self._count("epoch", link, f"host {relayed.host} epoch {relayed.agent_epoch}, it is {known}")
        detail = f"host {relayed.host} has the agent epoch {known}, the relay named {relayed.agent_epoch}"
        self._refuse(link, report, VERDICT_NOT_YET, detail)

    def _check(self) -> None:
        """All that came meanwhile with one look at the primary; those behind them wait for the next."""
        while self._held:
            held, self._held = self._held, []
            try:
                rows, newer = self._hosts.read({one.relayed.host for one in held})
            except (StoreError, ObjectError) as error:
                log.info("epochs of a relay not checked error=%s", error)
                for one in held:
                    self._refuse(one.link, one.report, VERDICT_BUSY, "the primary does not answer")
                continue
            for one in held:
                self._judge(one, rows, newer)

    def _judge(self, one: _Held, rows: Rows, newer: dict[str, int]) -> None:
        host, epoch = one.relayed.host, one.relayed.agent_epoch
        try:
            check_epoch(host, rows.get((host,)), epoch, newer.get(host, 0))
        except EpochRefused as error:
            log.warning("alarm: relayed epoch refused host=%s from=%s error=%s", host, one.link.name, error)
            self._superseded(one.link, one.report, one.relayed, int(error.details["epoch"]))
            return
        if one.link.up:
            self._hosts.attachments.attach(one.link, {host: epoch})
            self._take(one.link, one.report, one.relayed)

    def _count(self, reason: str, link: Link, detail: str) -> None:
        self._env.endpoint.refusals.count(f"relay_{reason}", link.name, detail)
