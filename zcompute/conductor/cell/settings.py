"""Limits and intervals of a cell's conductor, by name."""

from dataclasses import dataclass, field

from zcompute.conductor.cell.liveness import LivenessSettings


@dataclass(frozen=True)
class CellSettings:
    """Everything but the task engine's (TaskSettings) and the ledger's own."""

    commit_ms_max: int = 10_000
    scan_rows: int = 500
    scan_retry_ms: int = 500
    attach_hosts_max: int = 1000
    grants_rows: int = 500  # a page of a host's grants
    liveness: LivenessSettings = field(default_factory=LivenessSettings)
    liveness_check_ms: int = 500
    alarm_s: float = 30.0
    sweep_s: float = 5.0
    sweep_rows: int = 1000
    claim_age_s_min: float = 10.0
    capacity_ms: int = 500
    capacity_ms_min: int = 50  # between two casts, however many hosts come up
    register_ms_max: int = 5000
    register_retry_ms: int = 1000
    outbox_senders_max: int = 16
    outbox_send_ms_max: int = 5000
    outbox_retry_ms_min: int = 200
    outbox_retry_ms_max: int = 5000
    outbox_rows_max: int = 100_000  # as configured: [conductor] root_outbox_rows_max
    outbox_busy_ms: int = 1000
    raise_ms_max: int = 5000
    raises_max: int = 64
    reclaim_look_s: float = 60.0
    reclaim_rows_max: int = 100  # of a partition, at each look
    confirm_look_s: float = 60.0
    confirm_rows_max: int = 100  # of a partition, at each look
    offload_look_s: float = 60.0
    offload_rows_max: int = 100  # of a partition, at each look
    list_rows_max: int = 1000
    without_max: int = 20_000  # uuids that a count leaves out
    history_rows_max: int = 1000
    services_max: int = 20_000
    census_rows_max: int = 1000
