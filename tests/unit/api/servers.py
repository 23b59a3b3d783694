"""Instances and build requests for tests."""

from zcompute.objects.build_request import BuildRequest
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import Instance, ServerSpec

TINY = Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1)


def instance(uuid: str, **changes) -> Instance:
    fields = {"project_id": "demo", "user_id": "ann", "name": "web", "flavor": TINY, "spec": ServerSpec()}
    return Instance(uuid=uuid, **(fields | changes))


def build_request(uuid: str, **changes) -> BuildRequest:
    fields = {
        "project_id": "demo", "user_id": "ann", "name": "web", "flavor": TINY, "spec": ServerSpec(),
        "operation_id": "op",
    }  # fmt: skip
    return BuildRequest(uuid=uuid, **(fields | changes))
