"""Two cores of the protocol joined by two queues: what one sends the other receives, when the test says so."""

import random
from typing import Any

from zcompute.bus.envelope import (
    PROTOCOL_MINOR,
    Call,
    Hello,
    Report,
    Welcome,
)
from zcompute.bus.happenings import (
    Happening,
    OpenCall,
    ReportsArrived,
)
from zcompute.bus.limits import Limits
from zcompute.bus.method import Priority
from zcompute.bus.protocol import LinkCore, State, peer_of

RANGES = {"echo": ((1, 0), (1, 2))}


def greeting(kind: type[Any], service_id: str, incarnation: str, credit: int = 1000) -> Any:
    return kind(
        protocol_major=1, protocol_minor=PROTOCOL_MINOR, link_number=0, service_id=service_id, incarnation=incarnation,
        role="conductor", cell="c1", release="1", hosts=[], interfaces=RANGES, topics=[], attributes=b"\x80",
        report_credit=credit,
    )  # fmt: skip


def an_open_call(
    deadline: float, idempotent: bool = False, minor: int = 0, priority: Priority = Priority.CALLS
) -> OpenCall:
    """Its method is named after its class: see `priority_of`."""
    call = Call(0, f"echo.{'say' if priority is Priority.CALLS else priority.name}", 1, minor, 1000, "-", b"x")
    return OpenCall(call, "echo", deadline, idempotent, None, priority)


def priority_of(method: str) -> Priority:
    name = method.rpartition(".")[2]
    return Priority[name] if name in Priority.__members__ else Priority.CALLS


class Pair:
    """A dialler and a listener with a network between them that can lose and repeat frames."""

    def __init__(self, seed: int = 0, loss: float = 0.0, repeat: float = 0.0, limits: Limits | None = None) -> None:
        self.random = random.Random(seed)
        self.loss, self.repeat = loss, repeat
        self.now = 100.0
        self.limits = limits or Limits()
        self.dialler = LinkCore(self.limits)
        self.listener = LinkCore(self.limits, priority_of=priority_of)
        self.incarnations = {"d": "d1", "l": "l1"}
        self.seen: dict[LinkCore, list[Happening]] = {self.dialler: [], self.listener: []}

    def connect(self) -> None:
        """Hello and welcome, which a connection never loses without being lost itself."""
        frame = self.dialler.begin_hello(greeting(Hello, "d", self.incarnations["d"]), self.now)
        (hello,) = self.listener.receive(frame, self.now)
        assert isinstance(hello, Hello)
        welcome = greeting(Welcome, "l", self.incarnations["l"], self.limits.report_credit)
        peer = peer_of(hello, "", self.limits)
        self.seen[self.listener] += self.listener.accept(hello, peer, welcome, self.now)
        first = self.listener.take_frame(self.now)
        assert first is not None
        self.seen[self.dialler] += self.dialler.receive(first, self.now)
        assert self.dialler.state is State.UP

    def lose_link(self) -> None:
        for core in (self.dialler, self.listener):
            self.seen[core] += core.lost("test", self.now)

    def turn(self, ms: int = 10) -> None:
        """Carry what waits on both sides, then let time pass."""
        for sender, receiver in ((self.dialler, self.listener), (self.listener, self.dialler)):
            while (frame := sender.take_frame(self.now)) is not None:
                if self.random.random() < self.loss:
                    continue
                copies = 2 if self.random.random() < self.repeat else 1
                for _ in range(copies):
                    self.seen[receiver] += receiver.receive(frame, self.now)
        self.now += ms / 1000
        for core in (self.dialler, self.listener):
            self.seen[core] += core.tick(self.now)

    def reports_at(self, core: LinkCore) -> list[Report]:
        return [r for h in self.seen[core] if isinstance(h, ReportsArrived) for r in h.reports]
