"""Soft-deleted servers go for good after a while, at the owner of each, a few at a time."""

import logging
from collections.abc import Callable

import gevent

from zcompute.bus.errors import BusError
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.ledger import Ledger
from zcompute.db.store import Store
from zcompute.db.tables import INSTANCES
from zcompute.objects.errors import ServiceError
from zcompute.objects.instance import Instance

log = logging.getLogger(__name__)

Delete = Callable[[Instance, int], None]


class Reclaim:
    """Every ``reclaim_look_s`` the oldest ``reclaim_rows_max`` of each owned partition that were soft-deleted more than
    ``interval_s`` ago are deleted: ``delete(instance, before_us)`` looks once more as the owner knows them. With an
    interval of 0 none is."""

    def __init__(self, ledger: Ledger, store: Store, interval_s: int, settings: CellSettings, delete: Delete) -> None:
        self._ledger = ledger
        self._store = store
        self._interval_s = interval_s
        self._settings = settings
        self._delete = delete
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Begin, where servers are reclaimed at all."""
        if self._interval_s:
            self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        """End."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _loop(self) -> None:
        while True:
            gevent.sleep(self._settings.reclaim_look_s)
            try:
                self.look()
            except Exception as error:  # noqa: BLE001  # the database may be away: the next look tries again
                log.info("servers not reclaimed error=%s: %s", type(error).__name__, error)

    def look(self) -> int:
        """One look; returns how many deletes were accepted. Raises StoreError."""
        before_us = self._ledger.now_us() - self._interval_s * 1_000_000
        return sum(self._reclaim(partition, before_us) for partition in self._ledger.owned())

    def _reclaim(self, partition: int, before_us: int) -> int:
        if not self._ledger.owns(partition):
            return 0
        rows = self._settings.reclaim_rows_max
        due = self._store.expired(INSTANCES, partition, "soft_deleted_at_us", before_us, rows)
        accepted = 0
        for instance in due:
            if instance.task_id is not None:
                continue
            try:
                self._delete(instance, before_us)
            except (BusError, ServiceError) as error:
                log.info("server not reclaimed uuid=%s error=%s: %s", instance.uuid, type(error).__name__, error)
                continue
            accepted += 1
            log.info("server reclaimed uuid=%s", instance.uuid)
        return accepted
