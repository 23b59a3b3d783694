"""What the agent asks of a hypervisor.

One driver serves all hosts of an agent, so every call names its host. Calls may block the calling greenlet as long as
the work takes, but must yield to the hub meanwhile; the agent never runs two calls for one instance of one host at
once. Everything else may run side by side, ``workers_max`` calls at most.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from zcompute.objects.command import Order
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
    """What this driver can do; conductors never ask for what it cannot."""

    hypervisor_type: str
    live_migration: bool = False
    snapshot: bool = False
    resize: bool = False


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
