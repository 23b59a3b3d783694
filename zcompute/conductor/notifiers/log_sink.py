"""Notifications as lines of the conductor's log, JSON each."""

import logging
from collections.abc import Sequence

import msgspec

from zcompute.conductor.notifiers.sink import Told
from zcompute.config import NotifierConfig

log = logging.getLogger("zcompute.notifications")


class LogSink:
    """One line a notification, on logger ``zcompute.notifications``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def deliver(self, batch: Sequence[Told]) -> None:
        """Write the lines."""
        for told in batch:
            log.info("notifier=%s %s", self._name, msgspec.json.encode(told.document()).decode())

    def gap(self, cell: str, partition: int, first: int, last: int) -> None:
        """A warning."""
        log.warning("notifier=%s gap cell=%s partition=%s from=%s to=%s", self._name, cell, partition, first, last)

    def close(self) -> None:
        """Nothing is held."""


def open_sink(config: NotifierConfig) -> LogSink:
    """Of ``kind = "log"``."""
    return LogSink(config.name)
