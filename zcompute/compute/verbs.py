"""The verbs of a STEP command: each is done by the driver's method of its name."""

from collections.abc import Callable

from zcompute.compute.errors import VerbUnsupported
from zcompute.compute.virt.driver import Done, Driver
from zcompute.objects.command import (
    VERB_ABORT,
    VERB_ACTIVATE,
    VERB_COMPLETE,
    VERB_MIGRATE,
    VERB_PAUSE,
    VERB_PREPARE,
    VERB_REBOOT,
    VERB_REBUILD,
    VERB_REOPEN,
    VERB_RESCUE,
    VERB_RESIZE,
    VERB_RESUME,
    VERB_SEND,
    VERB_SNAPSHOT,
    VERB_START,
    VERB_STOP,
    VERB_SUSPEND,
    VERB_UNPAUSE,
    VERB_UNRESCUE,
    Order,
    StepArguments,
    StepRequest,
)
from zcompute.objects.instance import Instance

VERBS = frozenset(
    {
        VERB_START, VERB_STOP, VERB_REBOOT, VERB_PAUSE, VERB_UNPAUSE, VERB_SUSPEND, VERB_RESUME, VERB_RESCUE,
        VERB_UNRESCUE, VERB_REBUILD, VERB_RESIZE, VERB_PREPARE, VERB_SEND, VERB_ACTIVATE, VERB_REOPEN, VERB_MIGRATE,
        VERB_SNAPSHOT, VERB_ABORT, VERB_COMPLETE,
    }
)  # fmt: skip
"""Those that this agent knows, whatever its driver can do."""
BESIDE = frozenset({VERB_ABORT, VERB_COMPLETE})
"""Those that are done beside what is under way for the instance, not behind it, each time that they come."""


def do_verb(driver: Driver, request: StepRequest) -> Done:
    """Raises VerbUnsupported where this driver cannot, DriverError."""
    host = request.order.host
    if request.verb not in driver.capabilities.verbs & VERBS:
        raise VerbUnsupported(f"the {driver.capabilities.hypervisor_type} driver of host {host} cannot {request.verb}")
    method: Callable[[str, Instance, StepArguments, Order], Done] = getattr(driver, request.verb)
    return method(host, request.instance, request.arguments, request.order)
