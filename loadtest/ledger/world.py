"""What the benchmark's cell holds, the same for whoever computes it: hosts, instances, and how they change."""

import hashlib
from functools import cache

from zcompute.objects.flavor import Flavor
from zcompute.objects.history import RESULT_SUCCESS, InstanceActionEvent
from zcompute.objects.instance import POWER_RUNNING, POWER_SHUTDOWN, VM_ACTIVE, Instance, ServerSpec

CELL = "c1"
BARE_HOST = "bare"
BARE_INSTANCES = 20_000
TRANSITION_EVERY = 5
PROGRESS_MAX = 100
EVENT_POWER = "power_state"


def host_name(agent: int) -> str:
    """The host of an agent."""
    return f"host-{agent:05d}"


@cache
def uuid_of(number: int) -> str:
    """The instance's uuid: as random as a real one, and known to every process."""
    digest = hashlib.md5(b"%d" % number, usedforsecurity=False).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:]}"


def instance(number: int, host: str) -> Instance:
    """An instance as it is seeded: built, granted to its host, running."""
    return Instance(
        uuid=uuid_of(number),
        project_id="5a1c57f0b1f44b4f9d1ed1d0a2d3c1aa",
        user_id="9d60b1a2c5a54e7f8c1d0f2b3a4c5d6e",
        name=f"server-{number}",
        flavor=Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1),
        spec=ServerSpec(image_ref="1f0e6b1c-6f7d-4a55-9d07-2b8f5b7f2a11", metadata={"role": "web", "stage": "prod"}),
        vm_state=VM_ACTIVE,
        task_state=None,
        power_state=POWER_RUNNING,
        host=host,
        claim="t/1",
        generation=1,
        command_generation=1,
        created_at_us=1_700_000_000_000_000,
        updated_at_us=1_700_000_000_000_000,
        launched_at_us=1_700_000_001_000_000,
    )


def other_power(power_state: int) -> int:
    """What a transition leads to."""
    return POWER_SHUTDOWN if power_state == POWER_RUNNING else POWER_RUNNING


def history_of(image: Instance, now_us: int) -> InstanceActionEvent:
    """The history row of a transition, as wide as that of a task's step."""
    return InstanceActionEvent(
        instance_uuid=image.uuid,
        operation_id=f"observed-{image.agent_epoch}-{image.observed_seq}",
        task_id="",
        event=EVENT_POWER,
        host=image.host or "",
        started_at_us=now_us,
        finished_at_us=now_us,
        result=RESULT_SUCCESS,
    )
