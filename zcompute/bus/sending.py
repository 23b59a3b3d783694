"""When what waits on a link becomes frames, and what happens to a frame that its socket does not take."""

import time
from collections.abc import Callable
from typing import Protocol

from zcompute.bus.calls import UP
from zcompute.bus.counters import Counters
from zcompute.bus.limits import Limits
from zcompute.bus.protocol import LinkCore
from zcompute.bus.sockets import BLOCKED, GONE
from zcompute.bus.turn import Turn

FRAMES_PER_FLUSH = 16
OVERLAP_ENVELOPES_MIN = 32
OVERLAP_SHARES = 4


class FrameTaker(Protocol):
    """Where the frames of a link go."""

    def send(self, frame: bytes) -> str:
        """SENT, BLOCKED (try the same frame again) or GONE."""


class SenderHome(Protocol):
    """What a link's sender needs of its endpoint."""

    turn: Turn

    @property
    def limits(self) -> Limits: ...

    @property
    def counters(self) -> Counters: ...


class Sender:
    """The sending side of one link. `on_blocked` and `on_gone` tell what became of a frame, beside being sent."""

    def __init__(
        self, core: LinkCore, home: SenderHome, on_blocked: Callable[[], None], on_gone: Callable[[], None]
    ) -> None:
        self.held_since = 0.0  # when the socket first refused the frame that is held, 0 for none
        self.bytes_sent = 0
        self.carrier: FrameTaker | None = None
        self._core = core
        self._outgoing = core.outgoing
        self._on_blocked = on_blocked
        self._on_gone = on_gone
        self._counters = home.counters
        self._turn = home.turn
        self._batch = home.limits.batch_envelopes
        self._held: bytes | None = None
        self._flushing = False

    def flush_soon(self, alone: bool = False) -> None:
        """Send what is queued at the end of this turn, and a good share of what is in flight at once.

        Were all that is in flight always in one frame, the two sides would take turns instead of working side by side.
        `alone`: nothing else is in flight that could join the frame, so it leaves at once.
        """
        if self._flushing:
            queued = self._outgoing.queued
            if queued >= OVERLAP_ENVELOPES_MIN and self._held is None and queued >= self._overlap():
                self._send_queued()
        elif alone and not self._turn.open:
            self._send_queued()
        else:
            self._flushing = True
            self._turn.soon(self.flush)

    def _overlap(self) -> int:
        """Envelopes that are worth a frame before the turn ends: a quarter of those in flight, a batch of casts."""
        in_flight = len(self._core.calls) + len(self._core.serving)
        batch = self._batch
        return min(batch, max(OVERLAP_ENVELOPES_MIN, in_flight // OVERLAP_SHARES)) if in_flight else batch

    def flush(self) -> None:
        """Send what is queued now."""
        self._flushing = False
        self._send_queued()

    def _send_queued(self) -> None:
        core = self._core
        for _ in range(FRAMES_PER_FLUSH):
            carrier = self.carrier
            frame = self._held
            all_taken = False
            if frame is None:
                if core.state is not UP:
                    return
                frame = core.take_frame(time.monotonic())
                all_taken = self._outgoing.drained
            if frame is None or carrier is None:
                return
            result = carrier.send(frame)
            if result is BLOCKED:
                self._hold(frame)
                return
            if self._held is not None:
                self.drop_held()
            if result is GONE:
                self._on_gone()
                return
            size = len(frame)
            self._counters["bytes_sent"] += size
            self.bytes_sent += size
            if all_taken:
                return
        self.flush_soon()

    def _hold(self, frame: bytes) -> None:
        self._held = frame
        self.held_since = self.held_since or time.monotonic()
        self._on_blocked()

    def send_first(self, frame: bytes) -> bool:
        """Send a hello, ahead of everything; False when it could not be sent."""
        self.drop_held()
        return self.carrier is not None and self.carrier.send(frame) not in (BLOCKED, GONE)

    def drop_held(self) -> None:
        """Forget the frame that the socket refused."""
        self._held = None
        self.held_since = 0.0
