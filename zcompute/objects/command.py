"""Commands to agents and their replies."""

import msgspec

from zcompute.objects.instance import Instance


class Order(msgspec.Struct, kw_only=True, frozen=True):
    """Who commands what: the agent refuses an order of an older owner of the partition or an older generation.

    ``owner_epoch`` = the map version at which the commanding conductor took ``partition``; ``generation`` = the
    instance's command_generation; (task_id, step, attempt) makes a repeat recognisable. ``reporter_generation`` > 0
    grants this host to report the instance under that generation.
    """

    instance_uuid: str
    host: str
    partition: int
    owner_epoch: int
    generation: int
    task_id: str
    step: str
    attempt: int
    reporter_generation: int = 0


class SpawnRequest(msgspec.Struct, kw_only=True):
    """Build the instance; everything needed is inside. The result comes as a StepResult report."""

    order: Order
    instance: Instance


class DestroyRequest(msgspec.Struct, kw_only=True):
    """Destroy the instance if it is here, leave a tombstone; done also when it is not. Result: a StepResult."""

    order: Order


class AdoptRequest(msgspec.Struct, kw_only=True):
    """A new owner takes the instance over at this host: raises owner epoch and generation, learns what runs."""

    order: Order


class ForgetRequest(msgspec.Struct, kw_only=True):
    """The task has ended: generations and tombstones of the instance may go (grants stay)."""

    order: Order


class CommandReply(msgspec.Struct, kw_only=True):
    """The command is recorded (not done). For adopt: what is here.

    ``running`` says that the domain exists; ``last_*`` name the newest (task, step, attempt) whose outcome is known.
    """

    running: bool = False
    power_state: int = 0
    last_task_id: str = ""
    last_step: str = ""
    last_attempt: int = 0
    last_outcome: str = ""
    last_message: str = ""
