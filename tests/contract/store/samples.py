"""Objects to store."""

import uuid
from typing import Any

from zcompute.objects.build_request import BuildRequest
from zcompute.objects.flavor import Amounts, Flavor
from zcompute.objects.host import Claim, Host
from zcompute.objects.instance import Instance, ServerSpec
from zcompute.objects.task import Task

TINY = Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1, extra_specs={"hw:cpu": "shared"})


def new_uuid(number: int | None = None) -> str:
    return str(uuid.uuid4() if number is None else uuid.UUID(int=number))


def instance(**fields: Any) -> Instance:
    return Instance(
        **{
            "uuid": new_uuid(),
            "project_id": "p1",
            "user_id": "u1",
            "name": "näme \\ 'quoted' \"x\" \0 🐧",
            "flavor": TINY,
            "spec": ServerSpec(image_ref="img", metadata={"k": "v'; DROP TABLE instances; --"}),
            "created_at_us": 1_000,
            **fields,
        }
    )


def build_request(**fields: Any) -> BuildRequest:
    return BuildRequest(
        **{
            "uuid": new_uuid(),
            "project_id": "p1",
            "user_id": "u1",
            "name": "vm",
            "flavor": TINY,
            "spec": ServerSpec(),
            "operation_id": "op",
            **fields,
        }
    )


def host(name: str = "h1", **fields: Any) -> Host:
    return Host(name=name, service_id=f"compute:{name}", total=Amounts(vcpus=8, memory_mb=8192, disk_gb=80), **fields)


def claim(host_name: str = "h1", **fields: Any) -> Claim:
    amounts = Amounts(vcpus=1, memory_mb=512, disk_gb=1)
    return Claim(
        **{"instance_uuid": new_uuid(), "task_id": "t1", "attempt": 1, "host": host_name, "amounts": amounts, **fields}
    )


def task(**fields: Any) -> Task:
    return Task(**{"id": new_uuid(), "instance_uuid": new_uuid(), "kind": "build", "step": "schedule", **fields})
