"""Objects that the tests of tasks and of the cell start from."""

from typing import Any

import msgspec

from zcompute.conductor.tasks.build_walk import begin_attempt, begin_build, begin_spawn
from zcompute.conductor.tasks.decision import Decision
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.flavor import Amounts, Flavor
from zcompute.objects.host import HOST_UP, Host
from zcompute.objects.instance import Instance, ServerSpec
from zcompute.objects.report import OUTCOME_DONE, StepResult
from zcompute.objects.task import Task

NOW_US = 1_700_000_000_000_000
UUID = "7b02e141-4345-4a36-8377-9833c4cfc97f"
TASK = "0a5f0d4c-0000-4000-8000-000000000001"
TINY = Flavor(flavorid="1", name="m1.tiny", vcpus=1, memory_mb=512, root_gb=1)


def build_request(**fields: Any) -> BuildRequest:
    values: dict[str, Any] = {
        "uuid": UUID, "project_id": "demo", "user_id": "u", "name": "vm", "flavor": TINY, "spec": ServerSpec(),
        "operation_id": "op", "request_id": "req-1", "created_at_us": NOW_US - 5, "cell": "c1", "generation": 1,
    }  # fmt: skip
    return BuildRequest(**{**values, **fields})


def host(name: str = "h1", **fields: Any) -> Host:
    values: dict[str, Any] = {
        "service_id": "compute-1", "total": Amounts(vcpus=4, memory_mb=2048, disk_gb=10), "state": HOST_UP,
        "agent_epoch": 1,
    }  # fmt: skip
    return Host(name=name, **{**values, **fields})


def rows(decision: Decision, instance: Instance | None = None, task: Task | None = None) -> tuple[Instance, Task]:
    """The rows after a decision that changes one or both."""
    after = (decision.instance or instance, decision.task or task)
    assert after[0] is not None
    assert after[1] is not None
    return after[0], after[1]


def new_build() -> tuple[Instance, Task]:
    return rows(begin_build(build_request(), TASK, NOW_US, 300))


def claiming(*hosts: str) -> tuple[Instance, Task]:
    instance, task = new_build()
    return rows(begin_attempt(task, hosts or ("h1", "h2")), instance, task)


def spawning(*hosts: str) -> tuple[Instance, Task]:
    instance, task = claiming(*hosts)
    return rows(begin_spawn(instance, task), instance, task)


def result_of(instance: Instance, task: Task, host: str, outcome: str = OUTCOME_DONE, **fields: Any) -> StepResult:
    """The result that the step under way waits for."""
    result = StepResult(
        instance_uuid=instance.uuid, host=host, generation=instance.command_generation, task_id=task.id,
        step=task.step, attempt=task.attempt, outcome=outcome, power_state=1,
    )  # fmt: skip
    return msgspec.structs.replace(result, **fields)
