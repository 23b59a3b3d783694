"""What the protocol core tells the link that drives it, beside the envelopes Call, Cast, Event and Hello themselves."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from zcompute.bus.envelope import Ack, Call, Cast, Error, Event, Hello, Reply, Report
from zcompute.bus.errors import LinkDown, LinkReset
from zcompute.bus.following import StreamEvents, StreamSkip
from zcompute.bus.identity import Peer
from zcompute.bus.method import Priority

ServedCall: TypeAlias = tuple[float, str]
"""When a call of the peer arrived, and its method. The very tuple stands for one serving of the call: once another, or
none, is in its place, nobody waits for the outcome."""


class OpenCall(msgspec.Struct, eq=False):
    """A call of ours that waits for its outcome; handed back as a happening when it has one."""

    call: Call
    interface: str
    deadline: float  # time.monotonic()
    idempotent: bool
    waiter: Any = None  # the greenlet to switch to, while it waits for the outcome
    priority: Priority = Priority.CALLS
    outcome: Reply | Error | Exception | None = None

    def loss(self, reason: str, *, sent: bool = True) -> LinkDown | LinkReset:
        """The error of a call whose link was lost."""
        if sent:
            return LinkReset(f"link was lost while {self.call.method} was open: {reason}")
        return LinkDown(f"link was lost before {self.call.method} was sent: {reason}")


@dataclass(frozen=True)
class LinkUp:
    """Hello and welcome are done. `resent` reports go out again by themselves."""

    peer: Peer
    same_incarnation: bool
    resent: int


@dataclass(frozen=True)
class LinkLost:
    """The link is not up any more."""

    reason: str


@dataclass(frozen=True)
class HelloRefused:
    """The listener does not take our hello."""

    error: Exception


@dataclass(frozen=True)
class ReportsArrived:
    """New reports, in the order in which they were sent."""

    reports: list[Report]


@dataclass(frozen=True)
class AcksArrived:
    """Durable outcomes of reports of ours."""

    acks: list[Ack]


@dataclass(frozen=True)
class Refused:
    """Something of the peer's was dropped and is to be counted."""

    reason: str
    detail: str = ""


Happening = (
    Call
    | Cast
    | Event
    | Hello
    | OpenCall
    | LinkUp
    | LinkLost
    | HelloRefused
    | ReportsArrived
    | AcksArrived
    | StreamEvents
    | StreamSkip
    | Refused
)
