"""Moves that nobody confirms are confirmed after a while.

As Nova's resize_confirm_window (nova/compute/manager.py: _poll_unconfirmed_resizes).
"""

from collections.abc import Callable

from zcompute.conductor.cell.due import DueSweep
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.ledger import Ledger
from zcompute.db.store import Store
from zcompute.objects.instance import Instance

Confirm = Callable[[Instance], None]


class AutoConfirm(DueSweep):
    """``confirm(instance)`` looks once more as the owner knows them, and confirms the move that was seen alone."""

    column = "resized_at_us"
    done = "move confirmed after its window"

    def __init__(self, ledger: Ledger, store: Store, window_s: int, settings: CellSettings, confirm: Confirm) -> None:
        look_s, rows_max = settings.confirm_look_s, settings.confirm_rows_max
        super().__init__(ledger, store, interval_s=window_s, look_s=look_s, rows_max=rows_max)
        self._confirm = confirm

    def settle(self, instance: Instance, before_us: int) -> None:
        """Confirm it."""
        self._confirm(instance)
