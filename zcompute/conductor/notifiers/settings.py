"""Limits and intervals of the ways out of notifications, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class NotifierSettings:
    """What is not configured (zcompute.config.NotificationsConfig)."""

    recent_rows_max: int = 128  # of one partition, in memory
    recent_bytes_max: int = 256 * 1024
    page_rows_max: int = 100  # read from the table at once
    page_bytes_max: int = 1024 * 1024  # taken from memory at once
    workers_max: int = 8  # deliveries of one notifier at once, each of another partition
    deliver_s_max: float = 65.0  # above any timeout of a sink
    retry_ms_min: int = 200
    retry_ms_max: int = 30_000
    cursor_save_s: float = 0.5  # while there is more to deliver; at rest it is saved at once
    commit_ms_max: int = 10_000
    purge_rows_max: int = 500  # by one batch
    purge_steps_max: int = 200  # of one partition in a round
    purge_pause_ms: int = 10
    exists_look_s: float = 10.0
    exists_workers_max: int = 8  # partitions told of at once
    exists_rows_max: int = 100  # told by one batch
    exists_pause_ms: int = 20
    exists_periods_max: int = 24  # that are made good after an absence; older ones are skipped, and that is logged
