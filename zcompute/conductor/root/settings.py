"""Every limit and interval of the root role, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HandOffLimits:
    """The hand-off of build requests to cells. A cell that does not answer holds ``per_cell_max`` workers at most.

    ``commit_ms_max`` is longer than the ledger goes on trying (its ``lane_retry_s_max``): a decision is waited for
    until its outcome is known.
    """

    workers_max: int = 64
    per_cell_max: int = 32
    queue_max: int = 20_000
    call_ms_max: int = 5000
    commit_ms_max: int = 150_000
    retry_ms_min: int = 50
    retry_ms_max: int = 5000
    unreachable_ms_max: int = 2000
    scan_rows_max: int = 500
    scan_retry_ms: int = 500
    idle_ms: int = 1000


@dataclass(frozen=True)
class CrossMoveSettings:
    """Moves of servers between cells. ``moves_max`` are under way at a conductor at once, a cell that does not answer
    is asked again after ``retry_ms_min`` to ``retry_ms_max``, one that is at work every ``look_ms``.

    ``deadline_s``: by then the switch has been committed, or the move is rolled back. ``lists_s_max``: no list lasts
    longer (zcompute.api.settings); the source stops the server only when every list that began before the target had a
    row has ended, so that none misses it on both sides.
    """

    moves_max: int = 500
    deadline_s: int = 3600
    lists_s_max: float = 6.0
    call_ms_max: int = 5000
    commit_ms_max: int = 150_000
    retry_ms_min: int = 50
    retry_ms_max: int = 5000
    look_ms: int = 200
    scan_rows_max: int = 500
    scan_retry_ms: int = 500
    busy_retry_ms: int = 1000


@dataclass(frozen=True)
class RootSettings:
    """The other limits of the root role."""

    servers_max: int = 1000
    conductors_max: int = 16
    cells_max: int = 1000
    counted_max: int = 1000  # servers of a cell are counted as far as that
    mappings_rows_max: int = 1000  # a page for those who verify
    flavors_max: int = 1000
    groups_list_max: int = 1000  # server groups of a page
    groups_read_max: int = 9000  # behind which no page begins
    group_members_page: int = 10_000  # read at once
    group_members_max: int = 50_000  # of all server groups of an answer
    list_rows_max: int = 1001  # one more than the largest page, so that the api can tell that there is a next one
    commit_ms_max: int = 10_000
    busy_retry_ms: int = 100
    flavor_cache_ms: int = 1000
    quota_cache_ms: int = 1000  # after so long a changed default holds at every conductor
    cells_poll_ms: int = 1000
    capacity_ms_max: int = 5000
    handed_ms_max: int = 2000
    handed_slice_ms: int = 100
