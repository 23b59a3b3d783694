"""The calls of one link, without I/O: those of ours that are open, and those of the peer that are served here."""

from collections.abc import Callable, Mapping
from enum import Enum

from zcompute.bus.counters import Counters
from zcompute.bus.envelope import Call, Cancel, Cast, Error, Reply
from zcompute.bus.errors import BusError, Busy, LinkDown
from zcompute.bus.happenings import Happening, OpenCall, Refused, ServedCall
from zcompute.bus.identity import Peer, VersionRange
from zcompute.bus.limits import Limits
from zcompute.bus.method import Priority, check_version
from zcompute.bus.outgoing import QUEUE_PARTS, Outgoing

CANCEL_MINOR = 1
"""The minor version of the protocol that brought `cancel`."""


class State(Enum):
    """Where a link is in its life."""

    DOWN = "down"
    HELLO_SENT = "hello_sent"
    UP = "up"
    CLOSED = "closed"


UP = State.UP
"""Of its own, as it is asked for with every envelope and a lookup in an enum costs five times a name's."""


class Calls:
    """What a link's core knows of calls and casts. Times are seconds of one monotonic clock."""

    def __init__(
        self,
        limits: Limits,
        counters: Counters,
        outgoing: Outgoing,
        interfaces: Callable[[], Mapping[str, VersionRange]],
        priority_of: Callable[[str], Priority],
    ) -> None:
        self.limits = limits
        self.counters = counters
        self.outgoing = outgoing
        self.state = State.DOWN
        self.peer: Peer | None = None
        self.peer_minor = 0  # of the protocol: what is newer is not sent
        self.calls: dict[int, OpenCall] = {}
        self.serving: dict[int, ServedCall] = {}  # calls of the peer that are queued or run, by call id
        self.stirred = False  # the last frame brought more than calls, casts and answers
        self._calls_settled = True
        self._next_call_id = 1
        self._interfaces = interfaces
        self._priority_of = priority_of
        self._serving_max = tuple(limits.serving_calls_max * part for part in QUEUE_PARTS)
        self._serving_any_max = min(self._serving_max)

    # Ours

    def call(self, open_call: OpenCall) -> None:
        """Queue a call; its id is given here. Raises LinkDown, Busy."""
        if self.state is not UP:
            self._need_up()
        calls = self.calls
        if len(calls) >= self.limits.open_calls_max:
            raise Busy(
                f"expected at most {self.limits.open_calls_max} open calls on a link: try again later",
                retry_after_ms=self.limits.retry_after_ms,
            )
        call = open_call.call
        call.call_id = self._next_call_id
        self.outgoing.add_work(call, len(call.payload), open_call.priority)
        self._next_call_id += 1
        calls[call.call_id] = open_call

    def cast(self, cast: Cast, priority: Priority = Priority.CALLS) -> None:
        """Queue a cast. Raises LinkDown, Busy."""
        if self.state is not UP:
            self._need_up()
        self.outgoing.add_work(cast, len(cast.payload), priority)

    def _need_up(self) -> None:
        if self.state is not UP:
            raise LinkDown(f"link is {self.state.value}: wait for it, or ask another peer")

    def give_up(self, open_call: OpenCall) -> None:
        """The caller is gone: forget the call, and tell the peer where it would understand."""
        call_id = open_call.call.call_id
        if self.calls.pop(call_id, None) is None or self.state is not UP or self.peer_minor < CANCEL_MINOR:
            return
        try:
            self.outgoing.add_work(
                Cancel(call_id), 0, open_call.priority
            )  # behind its call, should that still be queued
        except Busy:  # the call ends by its deadline
            self.counters["cancels_dropped"] += 1

    def _settle(self, open_call: OpenCall, outcome: Reply | Error | Exception) -> OpenCall:
        self.calls.pop(open_call.call.call_id, None)
        open_call.outcome = outcome
        return open_call

    def fail_calls(self, reason: str) -> list[Happening]:
        """Fail every open call: the peer is known to be gone, or the link is closed."""
        self._calls_settled = True
        open_calls = list(self.calls.values())
        return [self._settle(open_call, open_call.loss(reason)) for open_call in open_calls]

    def _resend_calls(self, peer: Peer, now: float) -> list[Happening]:
        """Open idempotent calls go out again, with what remains of their time."""
        failed: list[Happening] = []
        for open_call in list(self.calls.values()):
            call = open_call.call
            call.remaining_ms = max(1, int((open_call.deadline - now) * 1000))
            try:
                check_version(open_call.interface, (call.major, call.minor), peer.interfaces, self._interfaces())
                self.outgoing.add_work(call, len(call.payload), open_call.priority)
            except BusError as error:
                failed.append(self._settle(open_call, error))
                continue
            self.counters["calls_resent"] += 1
        return failed

    # The peer's

    def _on_call(self, call: Call, now: float, happenings: list[Happening]) -> None:
        if call.call_id in self.serving:
            self.counters["calls_repeated"] += 1
        elif len(self.serving) >= self._serving_any_max and self._serves_too_many(call):
            self.stirred = True
            happenings.append(Refused("busy"))
        else:
            self.serving[call.call_id] = (now, call.method)
            happenings.append(call)

    def _serves_too_many(self, call: Call) -> bool:
        """Whether no place is left for a call of its class; it is then answered Busy."""
        priority = self._priority_of(call.method)
        if len(self.serving) < self._serving_max[priority]:
            return False
        busy = Busy(f"{len(self.serving)} calls of this link are being served: too many for one of {priority.name}")
        details = {"retry_after_ms": self.limits.retry_after_ms}
        try:
            self.outgoing.add_work(Error(call.call_id, busy.wire_name, str(busy), details), 0, priority)
        except Busy:
            self.counters["replies_dropped"] += 1
        return True

    def _on_cancel(self, cancel: Cancel, now: float, happenings: list[Happening]) -> None:
        if self.serving.pop(cancel.call_id, None) is not None:
            self.counters["calls_cancelled"] += 1

    def answer(self, answer: Reply | Error, size: int, served: ServedCall, priority: Priority = Priority.CALLS) -> bool:
        """Queue the outcome of a call that was served; False when nobody waits for it any more."""
        call_id = answer.call_id
        if self.serving.get(call_id) is not served:
            self.counters["replies_dropped"] += 1
            return False
        del self.serving[call_id]
        if self.state is not UP:
            self.counters["replies_dropped"] += 1
            return False
        try:
            self.outgoing.add_work(answer, size, priority)
        except Busy:  # the peer asks and does not read: its calls end by their deadlines
            self.counters["replies_dropped"] += 1
            return False
        return True

    def end_serving(self, call_id: int, served: ServedCall) -> bool:
        """A call of the peer is done with, or will not begin; False when it had been cancelled."""
        if self.serving.get(call_id) is not served:
            return False
        del self.serving[call_id]
        return True

    def cancel_serving(self) -> None:
        """Nobody waits for what is being served: the peer's process is gone, or gave its calls up."""
        self.counters["calls_cancelled"] += len(self.serving)
        self.serving.clear()
