"""What a host has and what runs on it, for the log and later reports. Claims decide what fits, at the host's owner."""

from collections.abc import Iterable
from dataclasses import dataclass

from zcompute.compute.virt.driver import Domain
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HostInventory


@dataclass(frozen=True)
class HostResources:
    """One look at a host. ``ungranted`` counts domains that this agent was not told to report."""

    host: str
    total: Amounts
    used: Amounts
    domains: int
    ungranted: int


def account(inventory: HostInventory, domains: Iterable[Domain], granted: frozenset[str]) -> HostResources:
    """Sum up what runs. ``granted`` are the uuids that this host reports."""
    used, count, ungranted = Amounts(), 0, 0
    for domain in domains:
        used = used.plus(domain.amounts)
        count += 1
        ungranted += domain.uuid not in granted
    return HostResources(host=inventory.name, total=inventory.total, used=used, domains=count, ungranted=ungranted)
