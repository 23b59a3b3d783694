"""What is due after a while is done at the owner of each server, the oldest first, a few at a time."""

import logging
from abc import ABC, abstractmethod

import gevent

from zcompute.bus.errors import BusError
from zcompute.conductor.ledger import Ledger
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCES
from zcompute.objects.errors import ServiceError
from zcompute.objects.instance import Instance

log = logging.getLogger(__name__)


class DueSweep(ABC):
    """Every ``look_s`` the oldest ``rows_max`` servers of each owned partition whose ``column`` (indexed, UTC
    microseconds) is more than ``interval_s`` ago are handed to ``settle``. With an interval of 0 none is.

    What is settled, or cannot be for long, must leave the column: else it stands before all others.
    """

    column = ""
    done = ""  # what the log says of one

    def __init__(self, ledger: Ledger, store: Store, *, interval_s: int, look_s: float, rows_max: int) -> None:
        self._ledger = ledger
        self._store = store
        self._interval_s = interval_s
        self._look_s = look_s
        self._rows_max = rows_max
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Begin, where anything ever is due."""
        if self._interval_s:
            self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        """End."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    @abstractmethod
    def settle(self, instance: Instance, before_us: int) -> None:
        """Do it, if it is still due as the owner knows the server. Raises BusError, ServiceError."""

    def _loop(self) -> None:
        while True:
            gevent.sleep(self._look_s)
            try:
                self.look()
            except Exception as error:  # noqa: BLE001  # the database may be away: the next look tries again
                log.info("not %s, none of them error=%s: %s", self.done, type(error).__name__, error)

    def look(self) -> int:
        """One look; returns how many were accepted. Raises StoreError."""
        before_us = self._ledger.now_us() - self._interval_s * 1_000_000
        return sum(self._look_at(partition, before_us) for partition in self._ledger.owned())

    def _look_at(self, partition: int, before_us: int) -> int:
        if not self._ledger.owns(partition):
            return 0
        due = self._store.expired(INSTANCES, partition, self.column, before_us, self._rows_max)
        return sum(self._settled(instance, before_us) for instance in due if instance.task_id is None)

    def _settled(self, instance: Instance, before_us: int) -> bool:
        try:
            self.settle(instance, before_us)
        except (BusError, ServiceError) as error:
            log.info("not %s uuid=%s error=%s: %s", self.done, instance.uuid, type(error).__name__, error)
            return False
        log.info("%s uuid=%s", self.done, instance.uuid)
        return True
