"""Verdicts on their way back: gathered by link, so that what an agent reported together is answered together.

A frame of reports is decided at once, but its instances are on several lanes, whose batches commit one by one. An ack
for each of these would cost a frame each, which is more than the verdicts in it (decisions/0011). So a link's verdicts
wait for those of its other reports, for what a batch takes now, and `gather_ms_max` at most; alone, or
`acks_gather_max` together, they leave with the batch that made them durable.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import gevent

from zcompute.bus import Ack

GATHER_SHARE = 1.0  # of a batch's time: two lanes' commits are half of it apart in the mean, all of it at most


class AckedLink(Protocol):
    """Where verdicts go."""

    @property
    def up(self) -> bool:
        """Whether they would arrive."""

    @property
    def reports_unanswered(self) -> int:
        """Reports that have no ack yet."""

    def ack(self, acks: list[Ack]) -> None:
        """Send them."""


@dataclass(frozen=True)
class AckLimits:
    """How long verdicts wait for others of their link, and how many never do. ``gather_ms_max`` 0: none waits."""

    gather_ms_max: int = 50
    acks_gather_max: int = 32


class Waiting:
    """The verdicts of one link, until when they wait for others, and whether one of them does not."""

    __slots__ = ("acks", "hurry", "until_s")

    def __init__(self, until_s: float) -> None:
        self.acks: list[Ack] = []
        self.hurry = False
        self.until_s = until_s


class Acks:
    """``add`` never blocks and sends nothing; what can leave leaves when the greenlets that are ready have run."""

    def __init__(
        self,
        limits: AckLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        commit_ms: Callable[[], float] = lambda: math.inf,
    ) -> None:
        """``commit_ms``: what the lanes' last batches took. Where that is little, a verdict waits little for others."""
        self._limits = limits or AckLimits()
        self._commit_ms = commit_ms
        self._clock = clock
        self._waiting: dict[AckedLink, Waiting] = {}  # the longest waiting first
        self._touched: set[AckedLink] = set()  # since the last look
        self.looking = False  # a look is due as soon as the greenlets that are ready have run
        self._until_s = 0.0  # for verdicts that come before the look: they come together
        self._timer: gevent.Greenlet | None = None
        self._stopped = False

    def __len__(self) -> int:
        """Links whose verdicts wait."""
        return len(self._waiting)

    def stop(self) -> None:
        """Nothing leaves any more."""
        self._stopped = True
        self._waiting.clear()
        self._touched.clear()
        if self._timer is not None:
            self._timer.kill(block=False)

    def add(self, link: AckedLink, ack: Ack, *, hurry: bool = False) -> None:
        """One more verdict. ``hurry``: it waits for no other, as the report is to go elsewhere, or to come again."""
        if self._stopped:
            return
        waiting = self._waiting.get(link)
        if not self.looking:
            self.looking = True
            gevent.spawn(self._look)
            wait_ms = min(self._limits.gather_ms_max, self._commit_ms() * GATHER_SHARE)
            self._until_s = self._clock() + wait_ms / 1000
        if waiting is None:
            waiting = self._waiting[link] = Waiting(self._until_s)
        waiting.acks.append(ack)
        if hurry:
            waiting.hurry = True
        self._touched.add(link)

    def _look(self) -> None:
        """Runs once the verdicts of a batch are all there: they come one behind the other without a pause."""
        self.looking = False
        touched, self._touched = self._touched, set()
        for link in touched:
            waiting = self._waiting.get(link)
            if waiting is not None and self._complete(link, waiting):
                self._send(link)
        self._send_due()

    def _complete(self, link: AckedLink, waiting: Waiting) -> bool:
        count = len(waiting.acks)
        full = count >= link.reports_unanswered or count >= self._limits.acks_gather_max
        return full or waiting.hurry or not link.up

    def _send_due(self) -> None:
        """What may wait no longer; and look again when the next may not. One behind a first that may wait for longer
        goes with it: within its own gather_ms_max."""
        now_s = self._clock()
        while self._waiting:
            link, waiting = next(iter(self._waiting.items()))
            if waiting.until_s > now_s:
                if self._timer is None:
                    self._timer = gevent.spawn_later(waiting.until_s - now_s, self._wake)
                return
            self._send(link)

    def _wake(self) -> None:
        self._timer = None
        self._send_due()

    def _send(self, link: AckedLink) -> None:
        waiting = self._waiting.pop(link)
        if link.up:
            link.ack(waiting.acks)
