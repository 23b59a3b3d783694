"""Every limit and interval of the ledger, the lease and the life of a conductor, by name."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LedgerLimits:
    """Limits of queues, batches and the cache. At a queue's limit callers get Busy(``busy_retry_ms``)."""

    batch_rows_max: int = 500
    batch_bytes_max: int = 4 << 20  # of row values: hexadecimal literals double it, max_allowed_packet is 16 MiB
    batch_decisions_max: int = 2000
    batch_age_ms_max: int = 5_000  # the oldest change of the batch that fills: newcomers are told Busy
    decision_rows_max: int = 5000
    decision_keys_max: int = 20_000  # far below cache_rows_max: all rows of a decision must be in the cache at once
    notification_bytes_max: int = 60_000  # of a packed one: it is an event of a stream (stream_event_bytes_max)
    filling_rows_max: int = 20_000
    filling_bytes_max: int = 64 << 20
    filling_decisions_max: int = 50_000
    waiting_decisions_max: int = 20_000
    cache_rows_max: int = 200_000
    evict_scan_max: int = 64
    fetch_keys_max: int = 2000
    decisions_per_turn_max: int = 256
    busy_retry_ms: int = 50
    dependent_retry_ms: int = 20
    retry_ms_min: int = 10
    retry_ms_max: int = 1000
    reconnect_ms_max: int = 5000
    lane_retry_s_max: float = 120.0
    away_ms_max: int = 1000  # the database out of reach for longer: callers are told Busy(``away_retry_ms``) at once
    away_retry_ms: int = 500


@dataclass(frozen=True)
class LeaseSettings:
    """Liveness by beats (design, section 6). ``refused_beats``: so many silent beats and a refused port are enough."""

    beat_ms: int = 100
    hub_tick_ms: int = 50
    hub_late_ms_max: int = 300
    lease_ms: int = 600
    round_trip_ms_max: int = 150
    refused_beats: int = 2
    doubt_ms: int = 20  # between two looks at the beats while a link with a peer has just ended
    probe_ms_max: int = 100
    probe_pause_ms: int = 20
    join_ms: int = 1500  # a newcomer beats for so long before it is given a share: agents redial within a second

    @classmethod
    def sqlite(cls, beat_ms: int = 100, lease_ms: int = 3000) -> "LeaseSettings":
        """One writer thread a process and one write lock a file: slower beats are no sign of death."""
        return cls(beat_ms=beat_ms, lease_ms=lease_ms, round_trip_ms_max=1000)


@dataclass(frozen=True)
class LifeSettings:
    """One incarnation of a conductor."""

    lanes: int = 2
    map_poll_ms: int = 1000
    clock_s: float = 10.0
    stop_ms_max: int = 3000
    register_retry_s_max: float = 10.0
    ledger: LedgerLimits = field(default_factory=LedgerLimits)
    lease: LeaseSettings = field(default_factory=LeaseSettings)
