"""Which actions and moves a life has: every row of the tables is simulated, or excused with the reason."""

from zcompute.objects.actions import (
    CONFIRM_RESIZE,
    EVACUATE,
    LIVE_MIGRATE,
    LOCK,
    MIGRATE,
    PAUSE,
    REBOOT,
    REBOOT_HARD,
    REBUILD,
    RESCUE,
    RESET_STATE,
    RESIZE,
    RESTORE,
    RESUME,
    REVERT_RESIZE,
    SHELVE,
    SHELVE_OFFLOAD,
    SNAPSHOT,
    SOFT_DELETE,
    START,
    STOP,
    SUSPEND,
    UNLOCK,
    UNPAUSE,
    UNRESCUE,
    UNSHELVE,
)
from zcompute.objects.task import TASK_EXPORT, TASK_IMPORT

DELETE = "delete"
ABORT = "abort"  # an operator's, of the move under way

ACTS: dict[str, int] = {
    STOP.key: 3,
    START.key: 2,
    REBOOT.key: 1,
    REBOOT_HARD.key: 2,
    PAUSE.key: 2,
    UNPAUSE.key: 2,
    SUSPEND.key: 1,
    RESUME.key: 1,
    RESCUE.key: 1,
    UNRESCUE.key: 1,
    REBUILD.key: 1,
    SNAPSHOT.key: 2,
}
"""Actions that are asked for at any time, and how often against one another."""

WALKS: tuple[tuple[str, ...], ...] = (
    (MIGRATE.key, CONFIRM_RESIZE.key),
    (MIGRATE.key, CONFIRM_RESIZE.key, LIVE_MIGRATE.key),
    (MIGRATE.key, REVERT_RESIZE.key),
    (MIGRATE.key, REVERT_RESIZE.key, DELETE),
    (MIGRATE.key, CONFIRM_RESIZE.key, DELETE),
    (STOP.key, MIGRATE.key, CONFIRM_RESIZE.key, START.key),
    (RESIZE.key, CONFIRM_RESIZE.key),
    (RESIZE.key, REVERT_RESIZE.key, RESIZE.key),
    (RESIZE.key, ABORT),
    (RESIZE.key, DELETE),
    (MIGRATE.key, DELETE),
    (MIGRATE.key, ABORT),
    (MIGRATE.key,),
    (LIVE_MIGRATE.key,),
    (LIVE_MIGRATE.key, LIVE_MIGRATE.key),
    (LIVE_MIGRATE.key, ABORT),
    (LIVE_MIGRATE.key, DELETE),
    (SHELVE.key, UNSHELVE.key),
    (SHELVE.key, UNSHELVE.key, ABORT),
    (STOP.key, SHELVE.key, UNSHELVE.key, SHELVE.key),
    (SHELVE.key, UNSHELVE.key, DELETE),
    (SHELVE.key, SHELVE_OFFLOAD.key, UNSHELVE.key),
    (SHELVE.key, ABORT),
    (SHELVE.key, DELETE),
)
"""What clients ask of one server, one after the other."""

LOST_HOST: tuple[str, ...] = (EVACUATE.key,)
"""What is asked of the servers of a host that was forced down."""

SIMULATED = frozenset({*ACTS, *LOST_HOST, *(action for walk in WALKS for action in walk)}) - {DELETE, ABORT}
KINDS_EXCUSED: dict[str, str] = {
    TASK_EXPORT: "one side of a move between cells, and a life has one: tests/failpoints/test_cross_moves.py",
    TASK_IMPORT: "the other side",
}
EXCUSED: dict[str, str] = {
    LOCK.key: "its commit is its end, and clients whose deletes it refuses would ask for ever",
    UNLOCK.key: "its commit is its end",
    RESET_STATE.key: "its commit is its end: what is shown would not tell any more what was done",
    SOFT_DELETE.key: "wants [conductor] reclaim_interval_s; it is a stop, and the reclaim behind it a delete",
    RESTORE.key: "of what was deleted softly",
}
