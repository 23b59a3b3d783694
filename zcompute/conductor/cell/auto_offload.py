"""Shelved servers that nobody unshelves give their room back after a while.

As Nova's shelved_offload_time (nova/compute/manager.py: _poll_shelved_instances).
"""

from collections.abc import Callable

from zcompute.conductor.cell.due import DueSweep
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.ledger import Ledger
from zcompute.db.store import Store
from zcompute.objects.instance import Instance

Offload = Callable[[Instance], None]


class AutoOffload(DueSweep):
    """``offload(instance)`` looks once more as the owner knows them. What is offloaded at once, or never, is not swept:
    ``after_s`` 0 or below."""

    column = "shelved_at_us"
    done = "shelved server offloaded"

    def __init__(self, ledger: Ledger, store: Store, after_s: int, settings: CellSettings, offload: Offload) -> None:
        look_s, rows_max = settings.offload_look_s, settings.offload_rows_max
        super().__init__(ledger, store, interval_s=max(0, after_s), look_s=look_s, rows_max=rows_max)
        self._offload = offload

    def settle(self, instance: Instance, before_us: int) -> None:
        """Offload it."""
        self._offload(instance)
