"""Soft-deleted servers go for good after a while (Nova's reclaim_instance_interval)."""

from collections.abc import Callable

from zcompute.conductor.cell.due import DueSweep
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.ledger import Ledger
from zcompute.db.store import Store
from zcompute.objects.instance import Instance

Delete = Callable[[Instance, int], None]


class Reclaim(DueSweep):
    """``delete(instance, before_us)`` looks once more as the owner knows them."""

    column = "soft_deleted_at_us"
    done = "server reclaimed"

    def __init__(self, ledger: Ledger, store: Store, interval_s: int, settings: CellSettings, delete: Delete) -> None:
        look_s, rows_max = settings.reclaim_look_s, settings.reclaim_rows_max
        super().__init__(ledger, store, interval_s=interval_s, look_s=look_s, rows_max=rows_max)
        self._delete = delete

    def settle(self, instance: Instance, before_us: int) -> None:
        """Delete it."""
        self._delete(instance, before_us)
