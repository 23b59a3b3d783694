"""What the application wants to be told of its links."""

from collections.abc import Callable
from typing import Generic, TypeVar

from zcompute.bus.envelope import Ack, Event, Report
from zcompute.bus.following import StreamEvents, StreamSkip
from zcompute.bus.happenings import AcksArrived, Happening, LinkLost, LinkUp, ReportsArrived

LinkT = TypeVar("LinkT")


class Handlers(Generic[LinkT]):
    """Each runs in a greenlet; those of one link one at a time and in order, those of a stream beside them."""

    def __init__(self) -> None:
        self.reports: Callable[[LinkT, list[Report]], None] | None = None
        self.acks: Callable[[LinkT, list[Ack]], None] | None = None
        self.events: dict[str, Callable[[LinkT, Event], None]] = {}
        self.streams: dict[str, Callable[[LinkT, StreamEvents | StreamSkip], None]] = {}
        self.up: list[Callable[[LinkT], None]] = []
        self.down: list[Callable[[LinkT], None]] = []

    def tell(self, link: LinkT, happening: Happening) -> bool:
        """Run the handlers for it; False for reports that nobody takes, which their sender expects to be acked."""
        if isinstance(happening, ReportsArrived):
            if self.reports is None:
                return False
            self.reports(link, happening.reports)
        elif isinstance(happening, AcksArrived):
            if self.acks is not None and happening.acks:
                self.acks(link, happening.acks)
        elif isinstance(happening, Event):
            on_event = self.events.get(happening.topic)
            if on_event is not None:
                on_event(link, happening)
        elif isinstance(happening, StreamEvents | StreamSkip):
            on_stream = self.streams.get(happening.topic)
            if on_stream is not None:
                on_stream(link, happening)
        elif isinstance(happening, LinkUp):
            for handler in self.up:
                handler(link)
        elif isinstance(happening, LinkLost):
            for handler in self.down:
                handler(link)
        return True
