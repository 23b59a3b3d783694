"""What a server is charged against its project's quota, by the rows of its cell. Pure.

While it could have either of two flavors it is charged the larger of both, each resource by itself: so that a resize,
and the way back, find room.
"""

from zcompute.objects.cell import OutboxEntry
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import Instance
from zcompute.objects.quota import Amount
from zcompute.objects.task import TASK_RESIZE, Task

OUTBOX_RESIZED = "resized"


def charged(instance: Instance, task: Task | None) -> Amount:
    """By its flavor, the one that it could go back to, and the one that it is to have."""
    flavors = [instance.flavor]
    if instance.move is not None:
        flavors.append(instance.move.former_flavor)
    if task is not None and task.kind == TASK_RESIZE and task.body.arguments.flavor is not None:
        flavors.append(task.body.arguments.flavor)
    return largest(flavors)


def largest(flavors: list[Flavor]) -> Amount:
    """Of one server."""
    return Amount(
        instances=1,
        cores=max(flavor.vcpus for flavor in flavors),
        ram_mb=max(flavor.memory_mb for flavor in flavors),
    )


def resized(instance: Instance, request_id: str, now_us: int) -> OutboxEntry:
    """The root is owed a word of what the server is charged; what it says is read when it is sent."""
    return OutboxEntry(
        instance_uuid=instance.uuid,
        project_id=instance.project_id,
        kind=OUTBOX_RESIZED,
        generation=instance.mapping_generation,
        request_id=request_id,
        created_at_us=now_us,
    )
