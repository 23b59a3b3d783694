"""What arrived on one link for the application's handlers: told one at a time, in order, in a worker greenlet."""

import logging
from collections import deque
from typing import TYPE_CHECKING

from zcompute.bus.context import request_id
from zcompute.bus.envelope import Event
from zcompute.bus.happenings import AcksArrived, Happening, LinkLost, LinkUp, ReportsArrived
from zcompute.bus.outgoing import StateEvents

if TYPE_CHECKING:
    from zcompute.bus.endpoint import Endpoint
    from zcompute.bus.link import Link

log = logging.getLogger(__name__)


class Inbox:
    """Bounded: what does not fit resets the link, after which reports are resent and a snapshot follows."""

    def __init__(self, link: "Link", endpoint: "Endpoint") -> None:
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
            self._running = self._endpoint.link_pool.submit(self._drain)

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
                    self._tell(happening)
                except Exception:
                    self._endpoint.counters["handlers_failed"] += 1
                    log.exception("handler failed kind=%s peer=%s", type(happening).__name__, self._link.name)
        finally:
            self._running = False
            if self._happenings or self._events:
                self._run()

    def _tell(self, happening: Happening) -> None:
        handlers = self._endpoint.handlers
        link = self._link
        if isinstance(happening, ReportsArrived):
            if handlers.reports is None:
                self._endpoint.refusals.count("no_report_handler", link.name)
            else:
                handlers.reports(link, happening.reports)
        elif isinstance(happening, AcksArrived):
            if handlers.acks is not None and happening.acks:
                handlers.acks(link, happening.acks)
        elif isinstance(happening, Event):
            on_event = handlers.events.get(happening.topic)
            if on_event is not None:
                on_event(link, happening)
        elif isinstance(happening, LinkUp):
            for handler in handlers.up:
                handler(link)
        elif isinstance(happening, LinkLost):
            for handler in handlers.down:
                handler(link)
