"""Whether a delete is a soft one, which can be taken back until the server is reclaimed: pure.

As Nova's with reclaim_instance_interval: the domain is stopped and kept, with its room; a restore starts it again.
A soft delete is an act whose verb is stop.
"""

import enum

from zcompute.objects.actions import SOFT_DELETE
from zcompute.objects.errors import InstanceBusy
from zcompute.objects.instance import VM_SOFT_DELETED, Instance
from zcompute.objects.task import TASK_ACT, TASK_DELETE, TASK_PARKED, Task


class Manner(enum.Enum):
    """What a delete does where servers are reclaimed later."""

    SOFT = "soft"
    DONE = "done"  # it is soft-deleted, or is being
    AT_ONCE = "at_once"


def manner_of_delete(instance: Instance, task: Task | None) -> Manner:
    """What was never active, is on no host, or waits for a silent host, has nothing to be kept for: it goes at once.

    Raises InstanceBusy while another task is under way: a delete that can be taken back breaks nothing off.
    """
    if task is None:
        if instance.vm_state == VM_SOFT_DELETED:
            return Manner.DONE
        kept = instance.launched_at_us is not None and instance.host is not None and instance.task_id is None
        return Manner.SOFT if kept else Manner.AT_ONCE
    if task.kind == TASK_DELETE or task.state == TASK_PARKED or instance.launched_at_us is None:
        return Manner.AT_ONCE
    if task.kind == TASK_ACT and task.body.action == SOFT_DELETE.key:
        return Manner.DONE
    raise InstanceBusy(
        f"Cannot 'delete' instance {instance.uuid} while it is in task_state {instance.task_state}",
        uuid=instance.uuid,
        vm_state=instance.vm_state,
        task_state=instance.task_state or "",
    )


def is_due(instance: Instance | None, before_us: int) -> bool:
    """Whether a soft-deleted server is to be reclaimed: deleted before this time, and not taken back since."""
    if instance is None or instance.vm_state != VM_SOFT_DELETED or instance.soft_deleted_at_us is None:
        return False
    return instance.soft_deleted_at_us < before_us
