"""What the agent asks of a hypervisor.

One driver serves all hosts of an agent, so every call names its host. Calls may block the calling greenlet as long as
the work takes, but must yield to the hub meanwhile; the agent never runs two calls for one instance of one host at
once. Everything else may run side by side, ``workers_max`` calls at most.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from zcompute.objects.command import Order, StepArguments
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HostInventory
from zcompute.objects.instance import Instance

NOTHING = Amounts()


@dataclass(frozen=True)
class Domain:
    """One machine on a host as its hypervisor sees it. ``power_state`` as in objects.instance."""

    uuid: str
    power_state: int
    amounts: Amounts = NOTHING


@dataclass(frozen=True)
class Capabilities:
    """What this driver can do. ``verbs`` of objects.command: a step of another ends as failed, and says so."""

    hypervisor_type: str
    verbs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Done:
    """What a verb has led to: the domain as it is now (None: it is not on this host), and what the next step of the
    task has to know."""

    domain: Domain | None
    answer: dict[str, str] = field(default_factory=dict)


class Driver(Protocol):
    """The interface of a hypervisor. All methods raise HostUnknown for a host that is not theirs."""

    capabilities: Capabilities

    def hosts(self) -> list[str]:
        """Names of the hosts behind this driver."""

    def inventory(self, host: str) -> HostInventory:
        """What the host has. Raises DriverError."""

    def spawn(self, host: str, instance: Instance, order: Order) -> Domain:
        """Make the domain and start it; nothing beyond ``instance`` is read from anywhere.

        Atomic as ``domains`` sees it: a domain is listed when it is whole, and what a process left half made when it
        died is replaced. ``order`` names the command for the hypervisor's own log. Raises DomainExists, DriverError.
        """

    def destroy(self, host: str, uuid: str, order: Order) -> None:
        """Stop and remove the domain and what belongs to it; nothing to do when it is not there. Raises DriverError."""

    def domains(self, host: str) -> Mapping[str, Domain]:
        """What runs or exists on the host now, by uuid. Raises DriverError."""

    # Verbs: each idempotent, begun again after a death it ends as if it had been done once. The instance is whole, with
    # the flavor that the verb is to leave it with; ``order`` names the command for the hypervisor's own log. All raise
    # DomainMissing where they need a domain that is not there, DriverError for what the hypervisor refuses.

    def start(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Power on; nothing to do for one that runs."""

    def stop(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Power off, by the guest's own shutdown where it obeys in time."""

    def reboot(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """By the guest, or the machine's reset (``arguments.hard``), which starts a stopped one too."""

    def pause(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Freeze, in memory."""

    def unpause(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Go on."""

    def suspend(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Freeze, to disk."""

    def resume(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Go on from disk."""

    def rescue(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Boot ``arguments.image_ref`` with the instance's disks beside it."""

    def unrescue(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Boot the instance's own disk again."""

    def rebuild(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Make the disk anew from ``arguments.image_ref``; ends in ``arguments.power``."""

    def snapshot(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Make the image ``arguments.image_ref`` of the instance's disk, which goes on as it was; one that is there
        under this id is replaced. Answers SIZE_BYTES (decimal) and CHECKSUM (MD5, in hex) of it."""

    def resize(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """On the same host: the domain takes the instance's flavor; ends in ``arguments.power``."""

    def prepare(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """At a move's destination: make room, no domain yet. Answers ``address``, where the data is awaited."""

    def send(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """At its source: stop the domain, give its data to ``arguments.peer``; the domain stays, stopped."""

    def activate(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """At the destination: the domain is made of what came, in ``arguments.power``."""

    def reopen(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """At the source: its own copy is the instance again, in ``arguments.power``."""

    def migrate(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """At the source of a live move: hand the running domain to ``arguments.peer``; from its end on it runs there,
        and is here no longer."""

    def abort(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Beside a migrate that is under way: have it fail, unless it is beyond that. Nothing to do where none is."""

    def complete(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """Beside a migrate that is under way: have it come to its end, with ``arguments.post_copy`` by letting the
        domain run there before all of its memory has arrived, else by pausing it here until it has. Nothing to do where
        none is."""
