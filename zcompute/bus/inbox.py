"""What arrived on one link for the application's handlers: told one at a time, in order, in a worker greenlet."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from zcompute.bus.context import request_id
from zcompute.bus.counters import Counters, Refusals
from zcompute.bus.envelope import Event
from zcompute.bus.following import StreamEvents, StreamSkip
from zcompute.bus.happenings import Happening, LinkLost, LinkUp
from zcompute.bus.limits import Limits
from zcompute.bus.outgoing import StateEvents
from zcompute.bus.workers import WorkerPool

log = logging.getLogger(__name__)


class Owner(Protocol):
    """The link whose inbox it is."""

    name: str

    def tell(self, happening: Happening) -> None:
        """Run the application's handlers; may block and raise."""

    def reset(self, reason: str) -> None:
        """Begin anew with a hello."""


class OwnerHome(Protocol):
    """The endpoint of the link."""

    @property
    def limits(self) -> Limits: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def refusals(self) -> Refusals: ...

    @property
    def link_pool(self) -> WorkerPool: ...


class Inbox:
    """Bounded: what does not fit resets the link, after which reports are resent and a snapshot follows."""

    def __init__(self, link: Owner, endpoint: OwnerHome) -> None:
        self._link = link
        self._endpoint = endpoint
        self._happenings: deque[Happening] = deque()
        self._events = StateEvents(endpoint.limits.state_events_max)
        self._running = False

    def __len__(self) -> int:
        """What was not told to the application yet."""
        return len(self._happenings) + len(self._events)

    def put(self, happening: Happening) -> None:
        """Queue reports, acks, or the link's coming and going."""
        if len(self._happenings) >= self._endpoint.limits.inbox_max and not isinstance(happening, LinkUp | LinkLost):
            self._endpoint.refusals.count("inbox_overflow", self._link.name)
            self._link.reset("reports and acks arrive faster than they are handled")
            return
        self._happenings.append(happening)
        self._run()

    def put_event(self, event: Event) -> None:
        """Queue a state event; it replaces an older one of its key that still waits."""
        if not self._events.put(event):
            self._endpoint.refusals.count("inbox_overflow", self._link.name)
            self._link.reset("state events arrive faster than they are handled")
        self._run()

    def _run(self) -> None:
        if not self._running:
            self._running = self._endpoint.link_pool.submit(None, self._drain)

    def _drain(self) -> None:
        request_id.set("-")
        try:
            for _ in range(self._endpoint.limits.job_run_max):
                if self._happenings:
                    happening = self._happenings.popleft()
                elif self._events:
                    happening = self._events.take()
                else:
                    break
                try:
                    self._link.tell(happening)
                except Exception:
                    self._endpoint.counters["handlers_failed"] += 1
                    log.exception("handler failed kind=%s peer=%s", type(happening).__name__, self._link.name)
        finally:
            self._running = False
            if self._happenings or self._events:
                self._run()


class StreamInbox:
    """What arrived of one stream: bounded by the credit that was given, told in order, beside all else of the link.

    So the handler of a slow stream holds up that stream, and no other word of the peer's.
    """

    def __init__(self, link: Owner, home: OwnerHome, took: Callable[[str, str, int], None]) -> None:
        self._link = link
        self._home = home
        self._took = took
        self._waiting: deque[StreamEvents | StreamSkip] = deque()
        self._running = False
        self._closed = False

    def put(self, happening: StreamEvents | StreamSkip) -> None:
        """Queue events or a skip."""
        self._waiting.append(happening)
        self._run()

    def close(self) -> None:
        """Tell nothing more."""
        self._closed = True
        self._waiting.clear()

    def _run(self) -> None:
        if not self._running:
            self._running = self._home.link_pool.submit(None, self._drain)

    def _drain(self) -> None:
        request_id.set("-")
        try:
            for _ in range(self._home.limits.job_run_max):
                if not self._waiting:
                    break
                happening = self._waiting.popleft()
                try:
                    self._link.tell(happening)
                except Exception:
                    self._home.counters["handlers_failed"] += 1
                    log.exception("handler failed stream=%s/%s", happening.topic, happening.key)
                if not self._closed:
                    self._took(happening.topic, happening.key, happening.end)
        finally:
            self._running = False
            if self._waiting:
                self._run()
