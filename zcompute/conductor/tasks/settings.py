"""Limits and intervals of the task engine, by name."""

from dataclasses import dataclass

from zcompute.objects.instance import (
    TASK_IMAGE_SNAPSHOT,
    TASK_PAUSING,
    TASK_POWERING_OFF,
    TASK_POWERING_ON,
    TASK_REBOOTING,
    TASK_REBOOTING_HARD,
    TASK_REBUILDING,
    TASK_RESCUING,
    TASK_RESTORING,
    TASK_RESUMING,
    TASK_SOFT_DELETING,
    TASK_SUSPENDING,
    TASK_UNPAUSING,
    TASK_UNRESCUING,
)
from zcompute.objects.task import (
    TASK_CONFIRM_RESIZE,
    TASK_EVACUATE,
    TASK_EXPORT,
    TASK_IMPORT,
    TASK_LIVE_MIGRATE,
    TASK_MIGRATE,
    TASK_RESIZE,
    TASK_REVERT_RESIZE,
    TASK_SHELVE,
    TASK_SHELVE_HERE,
    TASK_SHELVE_OFFLOAD,
    TASK_UNSHELVE,
    TASK_UNSHELVE_HERE,
)

ACT_DEADLINES_S = {
    TASK_POWERING_ON: 120,
    TASK_POWERING_OFF: 180,  # a guest has a minute to shut down
    TASK_REBOOTING: 180,
    TASK_REBOOTING_HARD: 120,
    TASK_PAUSING: 60,
    TASK_UNPAUSING: 60,
    TASK_SUSPENDING: 600,  # memory goes to disk
    TASK_RESUMING: 600,
    TASK_REBUILDING: 1800,  # an image is fetched
    TASK_RESCUING: 300,
    TASK_SOFT_DELETING: 180,
    TASK_RESTORING: 120,
    TASK_UNRESCUING: 300,
    TASK_IMAGE_SNAPSHOT: 1800,  # a disk is copied
}
"""How long a task_state may last: then the task is parked, or ends with a fault."""
MOVE_DEADLINES_S = {
    TASK_MIGRATE: 3600,  # disks go over the network
    TASK_RESIZE: 3600,
    TASK_LIVE_MIGRATE: 3600,
    TASK_EVACUATE: 1800,
    TASK_EXPORT: 3600,
    TASK_IMPORT: 3600,
    TASK_CONFIRM_RESIZE: 600,
    TASK_REVERT_RESIZE: 1800,
    TASK_SHELVE: 3600,  # a disk is copied
    TASK_SHELVE_HERE: 3600,
    TASK_SHELVE_OFFLOAD: 600,
    TASK_UNSHELVE: 1800,  # an image is fetched
    TASK_UNSHELVE_HERE: 120,
}
"""The same of a whole move, all its task_states together."""


@dataclass(frozen=True)
class TaskSettings:
    """``runners_max`` tasks run at once, the others wait in order; ``tasks_max`` in all, beyond it callers get Busy.

    ``permit_post_copy``: a live migration that is completed may finish behind the switch.
    ``act_deadline_s_max`` and ``move_deadline_s_max`` cap what ACT_DEADLINES_S and MOVE_DEADLINES_S give;
    ``act_link_wait_ms_max``: an action whose host was told nothing and is not linked for so long fails.
    ``shelved_offload_time_s``: what is shelved is offloaded after so long, with 0 at once, with -1 never (Nova's
    shelved_offload_time).
    """

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
    group_alternates: int = 16  # of a server group's member: others of its group race it for the same hosts
    reschedules_max: int = 3
    act_deadline_s_max: int = 1800
    act_link_wait_ms_max: int = 30_000
    move_deadline_s_max: int = 3600
    permit_post_copy: bool = False
    shelved_offload_time_s: int = 0
    build_deadline_s: int = 300
    delete_deadline_s: int = 300
    retry_deadline_s: int = 300  # of a parked task of another kind that an operator begins again
