"""Where notifications go: the face of a plug-in, and how one is found."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

from zcompute.config import ConfigError, NotifierConfig
from zcompute.objects.base import unpack
from zcompute.objects.notification import Notification, document

log = logging.getLogger(__name__)


class NotifierRefused(ConfigError):
    """A notifier that cannot be opened, by name; a conductor works without it."""


ENTRY_POINTS = "zcompute.notifiers"


@dataclass(frozen=True)
class Told:
    """One committed notification. (cell, partition, n) is its name: a repeat has the same."""

    cell: str
    partition: int
    n: int
    body: bytes

    def document(self) -> dict[str, Any]:
        """As JSON shows it. Raises what unpacking raises."""
        return document(self.cell, self.partition, self.n, unpack(self.body, Notification))


class Sink(Protocol):
    """A way out. Called by several greenlets at once, each with another partition.

    It must not block the hub: sockets are gevent's, anything else goes to the thread pool.
    """

    def deliver(self, batch: Sequence[Told]) -> None:
        """Take consecutive notifications of one partition. Returning means taken; whatever is raised means that all
        of them come again, later."""

    def gap(self, cell: str, partition: int, first: int, last: int) -> None:
        """The notifications from ``first`` to ``last`` are gone: the retention has overtaken the cursor. Repeated like
        a delivery."""

    def close(self) -> None:
        """The conductor ends."""


OpenSink = Callable[[NotifierConfig], Sink]


def open_sink(config: NotifierConfig, built_in: Mapping[str, OpenSink]) -> Sink:
    """The sink of a configured notifier. Raises ConfigError; NotifierRefused for a plug-in that is not there, does not
    load or does not open."""
    factory = built_in.get(config.kind)
    if factory is not None:
        return factory(config)
    found = entry_points(group=ENTRY_POINTS, name=config.kind)
    if not found:
        known = sorted({*built_in, *(point.name for point in entry_points(group=ENTRY_POINTS))})
        raise NotifierRefused(f"notifier {config.name}: expected a kind out of {', '.join(known)}, found {config.kind}")
    point = next(iter(found))
    try:
        plugged: OpenSink = point.load()
        return plugged(config)
    except Exception as error:  # what others wrote may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise NotifierRefused(f"notifier {config.name}: the plug-in {point.value} does not open: {reason}") from error
