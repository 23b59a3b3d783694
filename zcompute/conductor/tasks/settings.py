"""Limits and intervals of the task engine, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskSettings:
    """``runners_max`` tasks run at once, the others wait in order; ``tasks_max`` in all, beyond it callers get Busy."""

    runners_max: int = 1000
    tasks_max: int = 20_000
    busy_retry_ms: int = 500
    scan_rows: int = 500
    adopt_at_once_max: int = 64
    hosts_at_once_max: int = 8
    commit_ms_max: int = 30_000
    command_ms_max: int = 3000
    claim_ms_max: int = 5000
    select_ms_max: int = 3000
    select_one_ms_max: int = 1000
    retry_ms_min: int = 20
    retry_ms_max: int = 2000
    link_wait_ms_max: int = 5000
    resend_ms: int = 5000
    revival_s_max: float = 30.0
    parked_look_s: float = 60.0
    parked_looks_max: int = 64
    ending_s_max: int = 60
    alternates: int = 2
    reschedules_max: int = 3
    build_deadline_s: int = 300
    delete_deadline_s: int = 300
