"""The audit's judgement of what is told and recorded: notifications, cursors, history. Pure.

Nothing in motion excuses these: a record is written with the very change that it is of.
"""

from collections.abc import Iterator

from zcompute.cli.audit_kinds import CURSOR_BEYOND, NOTIFICATIONS_MISSING, TASK_WITHOUT_ACTION, Finding
from zcompute.cli.audit_motion import ACTION_GRACE_US
from zcompute.cli.audit_snapshot import CellRows, Snapshot


def wrong_records(snapshot: Snapshot) -> Iterator[Finding]:
    """What cannot be right whatever is under way."""
    for name, rows in snapshot.tellers():
        last_n = {row.partition_id: row.last_n for row in rows.told}
        for row in rows.told:
            if row.kept and (row.last != row.last_n or row.kept != row.last - row.first + 1):
                detail = f"{row.kept} from {row.first} to {row.last}, {row.last_n} were told"
                yield Finding(NOTIFICATIONS_MISSING, f"{name}/{row.partition_id}", detail)
        for cursor in rows.cursors:
            told = last_n.get(cursor.partition_id, 0)
            if cursor.n > told:
                detail = f"notifier {cursor.notifier} is at {cursor.n}, {told} were told"
                yield Finding(CURSOR_BEYOND, f"{name}/{cursor.partition_id}", detail)
    for cell in snapshot.cells.values():
        yield from _tasks_without_action(cell)


def _tasks_without_action(cell: CellRows) -> Iterator[Finding]:
    recorded = {(action.instance_uuid, action.operation_id) for action in cell.actions}
    for task in cell.tasks:
        operation = task.operation_id or task.id
        old = task.created_at_us + ACTION_GRACE_US < cell.now_us
        if old and (task.instance_uuid, operation) not in recorded:
            yield Finding(TASK_WITHOUT_ACTION, task.instance_uuid, f"{task.kind} at {task.step}, operation {operation}")
