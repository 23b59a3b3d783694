"""What tunes a selection, and every limit of a scheduler."""

from dataclasses import dataclass

from zcompute.config import SchedulerConfig


@dataclass(frozen=True)
class SelectionSettings:
    """Ratios and limits; the defaults are a scheduler's.

    ``host_subset_size`` is Nova's setting of that name: the host is drawn at random from so many of the best ones, so
    that schedulers racing for the same hosts differ.
    """

    cpu_allocation_ratio: float = 16.0
    ram_allocation_ratio: float = 1.0
    disk_allocation_ratio: float = 1.0
    host_subset_size: int = 5
    hosts_max: int = 20_000  # a cell has 10,000
    instances_per_call_max: int = 1_000
    alternates_max: int = 16
    ignore_hosts_max: int = 10_000
    consumption_ttl_s: float = 5.0  # optimistic consumption lapses when the host's owner says nothing for so long
    consumptions_max: int = 50_000

    @classmethod
    def from_config(cls, config: SchedulerConfig) -> "SelectionSettings":
        """The settings of a configured scheduler."""
        return cls(
            cpu_allocation_ratio=config.cpu_allocation_ratio,
            ram_allocation_ratio=config.ram_allocation_ratio,
            disk_allocation_ratio=config.disk_allocation_ratio,
        )
