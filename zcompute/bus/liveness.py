"""Who is silent: when a connection is looked at, what is asked, and when it is given up. No I/O, no clock reads.

Silence is what the kernel tells of a connection (see connections): how long no byte came. Both ends hear each other at
least every `heartbeat_interval_ms`, because a dialler that heard or said nothing for so long asks and is answered; what
was said anyway counts as well, so busy links cost nothing. libzmq's own heartbeats are not used: they are sent however
busy a link is, and with their timers cost a listener of thousands of peers more than all reports (decisions/0005).
"""

from collections.abc import Callable
from enum import Enum
from typing import Generic, TypeVar

from zcompute.bus.limits import Limits

SLOT_S = 0.025
LATE_S = 0.5
"""A sweep that comes later than this after the one before finds a process that was held up, or stopped."""
KERNEL_CLOCK_S = 0.02
"""The kernel's record of the last byte may be so much older than the byte (it counts in jiffies, of up to 10 ms)."""

Connection = TypeVar("Connection")


class Sweep(Generic[Connection]):
    """A listener's watch over its connections: each is looked at when it could first be found silent.

    A sweep that was held up says little about the peers, so it gives everybody one more interval.
    """

    def __init__(self, limits: Limits, silent_s: Callable[[Connection], float | None]) -> None:
        self._silence_s_max = limits.silence_ms_max / 1000
        self._grace_s = limits.heartbeat_interval_ms / 1000
        self._silent_s = silent_s
        self._watched: set[Connection] = set()
        self._slots: dict[int, list[Connection]] = {}
        self._slot = 0  # the first that was not looked at
        self._swept_at: float | None = None
        self._spared_until = 0.0

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, connection: Connection, now: float) -> None:
        """Watch a connection that was heard just now."""
        if connection not in self._watched:
            self._watched.add(connection)
            self._plan(connection, now + self._silence_s_max)

    def leave(self, connection: Connection) -> None:
        """Watch it no more."""
        self._watched.discard(connection)

    def _plan(self, connection: Connection, at: float) -> None:
        slot = max(int(at / SLOT_S) + 1, self._slot)
        self._slots.setdefault(slot, []).append(connection)

    def sweep(self, now: float) -> list[Connection]:
        """The connections that are silent for too long; they are watched no more."""
        if self._swept_at is not None and now - self._swept_at > LATE_S:
            self._spared_until = now + self._grace_s
        self._swept_at = now
        silent = []
        last = int(now / SLOT_S)
        for connection in self._due(last):
            if connection not in self._watched:
                continue
            silent_s = self._silent_s(connection)
            if silent_s is None:  # it has ended, which libzmq will tell
                self._plan(connection, now + self._silence_s_max)
            elif silent_s < self._silence_s_max:
                self._plan(connection, now + self._silence_s_max - silent_s)
            elif now < self._spared_until:
                self._plan(connection, self._spared_until)
            else:
                self._watched.discard(connection)
                silent.append(connection)
        return silent

    def _due(self, last: int) -> list[Connection]:
        slots = [slot for slot in self._slots if slot <= last]
        self._slot = last + 1
        return [connection for slot in sorted(slots) for connection in self._slots.pop(slot)]


class Verdict(Enum):
    """What a dialler does about its link now."""

    NOTHING = "nothing"
    ASK = "ask"
    KNOCK = "knock"
    SILENT = "silent"


class Pulse:
    """A dialler's watch over its one connection.

    It asks when little was said, and knocks when the answer is late: a listener whose I/O thread opens the door is
    busy, not stopped, and thousands of diallers that left it would keep it so. Only who does not open is given up.
    Held up itself, a dialler asks before it gives up: the answer's bytes are there by then, or are not.
    """

    def __init__(self, limits: Limits) -> None:
        self._interval_s = limits.heartbeat_interval_ms / 1000
        self._knock_s = limits.late_answer_ms / 1000
        self._silence_s_max = limits.silence_ms_max / 1000
        self._answer_s_max = self._silence_s_max - self._interval_s
        self._asked_at: float | None = None
        self._knocked = False
        self._vouched_at = float("-inf")
        self._look_at = 0.0

    def begin(self) -> None:
        """A connection that is new."""
        self._asked_at = None
        self._vouched_at = float("-inf")
        self._look_at = 0.0

    def vouch(self, now: float) -> None:
        """The listener's process was seen to run: as good as a byte from it."""
        self._vouched_at = now

    def due(self, now: float) -> bool:
        """Whether `look` could find anything."""
        return now >= self._look_at

    def look(self, now: float, said_at: float, silent_s: float) -> Verdict:
        """What to do, for what we said last at `said_at` and bytes that last came `silent_s` ago."""
        silent_s = min(silent_s, now - self._vouched_at)
        asked_at = self._asked_at
        if asked_at is not None and silent_s < now - asked_at + KERNEL_CLOCK_S:
            asked_at = self._asked_at = None  # heard since
        if asked_at is None:
            due_in_s = self._interval_s - max(now - said_at, silent_s)
            if due_in_s > 0:
                self._look_at = now + due_in_s
                return Verdict.NOTHING
            self._asked_at = now
            self._knocked = False
            self._look_at = now + self._knock_s
            return Verdict.ASK
        patience_s = max(asked_at + self._answer_s_max - now, self._silence_s_max - silent_s)
        if not self._knocked and patience_s > 0:
            self._knocked = True
            self._look_at = now + patience_s
            return Verdict.KNOCK
        self._look_at = now + patience_s
        return Verdict.NOTHING if patience_s > 0 else Verdict.SILENT
