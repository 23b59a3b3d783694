"""The primary's UTC time, read now and then and carried on by the own monotonic clock."""

import logging
import time

import gevent

from zcompute.db.errors import StoreError
from zcompute.db.store import Store

log = logging.getLogger(__name__)


class PrimaryClock:
    """Never used for ownership, order or liveness: only for times that are shown or outlive the process."""

    def __init__(self, store: Store, every_s: float) -> None:
        self._store = store
        self._every_s = every_s
        self._offset_us: int | None = None

    def now_us(self) -> int:
        """The primary's UTC microseconds. Raises StoreError when they have never been read and cannot be."""
        if self._offset_us is None:
            self.measure()
        return int(time.monotonic() * 1e6) + (self._offset_us or 0)

    def measure(self) -> None:
        """Read the primary's time; half the round trip counts as its age."""
        before_s = time.monotonic()
        primary_us = self._store.now_us()
        after_s = time.monotonic()
        self._offset_us = primary_us - int((before_s + after_s) / 2 * 1e6)

    def run(self) -> None:
        """The greenlet: measure again and again; a failure keeps the last offset."""
        while True:
            gevent.sleep(self._every_s)
            try:
                self.measure()
            except StoreError as error:
                log.info("primary clock not read error=%s", error)
