"""Moves that nobody confirms are confirmed after a while, at the owner of each server, a few at a time.

As Nova's resize_confirm_window (nova/compute/manager.py: _poll_unconfirmed_resizes).
"""

import logging
from collections.abc import Callable

import gevent

from zcompute.bus.errors import BusError
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.ledger import Ledger
from zcompute.db.store import Store
from zcompute.objects.errors import ServiceError
from zcompute.objects.instance import VM_RESIZED, Instance
from zcompute.objects.messages.instances import InstanceQuery
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)

Confirm = Callable[[Instance], None]


def is_due(instance: Instance, before_us: int) -> bool:
    """Whether its move has ended before this time and still waits to be confirmed. Pure."""
    waits = instance.vm_state == VM_RESIZED and instance.task_id is None
    return waits and instance.move is not None and instance.move.since_us < before_us


class AutoConfirm:
    """Every ``confirm_look_s`` the next ``confirm_rows_max`` servers of the cell that wait to be confirmed are read.
    Those of owned partitions that have waited ``window_s`` are confirmed: ``confirm(instance)`` looks once more as the
    owner knows them. Looks go round, so that servers which cannot be confirmed never keep others from it.

    With a window of 0 none is. No index knows what waits: a look reads through the cell's servers, once a minute.
    """

    def __init__(self, ledger: Ledger, store: Store, window_s: int, settings: CellSettings, confirm: Confirm) -> None:
        self._ledger = ledger
        self._store = store
        self._window_s = window_s
        self._settings = settings
        self._confirm = confirm
        self._after: list[int | str | None] | None = None
        self._greenlet: gevent.Greenlet | None = None

    def start(self) -> None:
        """Begin, where moves are confirmed by themselves at all."""
        if self._window_s:
            self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        """End."""
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def _loop(self) -> None:
        while True:
            gevent.sleep(self._settings.confirm_look_s)
            try:
                self.look()
            except Exception as error:  # noqa: BLE001  # the database may be away: the next look tries again
                log.info("moves not confirmed error=%s: %s", type(error).__name__, error)

    def look(self) -> int:
        """One look; returns how many confirmations were accepted. Raises StoreError."""
        rows = self._settings.confirm_rows_max
        query = InstanceQuery(project_id=None, limit=rows, vm_states=[VM_RESIZED], after=self._after)
        page = self._store.list_instances(query)
        self._after = [page[-1].created_at_us, page[-1].uuid] if len(page) == rows else None
        before_us = self._ledger.now_us() - self._window_s * 1_000_000
        due = [instance for instance in page if is_due(instance, before_us)]
        return sum(self._confirm_one(instance) for instance in due if self._ledger.owns(partition_of(instance.uuid)))

    def _confirm_one(self, instance: Instance) -> bool:
        try:
            self._confirm(instance)
        except (BusError, ServiceError) as error:
            log.info("move not confirmed uuid=%s error=%s: %s", instance.uuid, type(error).__name__, error)
            return False
        log.info("move confirmed after its window uuid=%s", instance.uuid)
        return True
