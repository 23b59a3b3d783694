"""Orders and instances as a conductor sends them to an agent."""

import uuid
from typing import Any

from zcompute.objects.command import Order
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import Instance, ServerSpec
from zcompute.objects.partition import partition_of


def fresh() -> str:
    return str(uuid.uuid4())


def make_order(instance_uuid: str, **changes: Any) -> Order:
    values: dict[str, Any] = {
        "host": "node1",
        "partition": partition_of(instance_uuid),
        "owner_epoch": 1,
        "generation": 1,
        "task_id": "t1",
        "step": "spawn",
        "attempt": 1,
        "reporter_generation": 1,
    }
    return Order(instance_uuid=instance_uuid, **(values | changes))


def make_instance(instance_uuid: str) -> Instance:
    return Instance(
        uuid=instance_uuid,
        project_id="p",
        user_id="u",
        name="server",
        flavor=Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1),
        spec=ServerSpec(),
    )
