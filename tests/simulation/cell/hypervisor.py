"""The hypervisors of the cell: what runs where is the truth that the database is held against."""

import random
from collections.abc import Callable, Mapping

import gevent
import msgspec

from zcompute.compute.errors import DomainExists, DomainMissing, DriverError
from zcompute.compute.virt.driver import Capabilities, Domain, Done
from zcompute.objects.command import VERB_PAUSE, VERB_REBOOT, VERB_START, VERB_STOP, VERB_UNPAUSE, Order, StepArguments
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HostInventory
from zcompute.objects.instance import POWER_PAUSED, POWER_RUNNING, POWER_SHUTDOWN, Instance

TOTAL = Amounts(vcpus=64, memory_mb=65536, disk_gb=1000)


class Hypervisors:
    """All hosts' domains: they outlive the agents. ``began`` and ``made`` tell the checker of commands' effects."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(f"{seed} hypervisors")
        self.domains: dict[str, dict[str, Domain]] = {}
        self.began: Callable[[str, str, Order], None] = lambda *_: None
        self.made: Callable[[str, str], None] = lambda *_: None
        self.fail = 0.0
        self.build_s = (0.0, 0.05)

    def driver(self, host: str) -> "SimDriver":
        """The driver of an agent of this one host."""
        self.domains.setdefault(host, {})
        return SimDriver(self, host)

    def running(self, uuid: str) -> list[str]:
        """The hosts where an instance is."""
        return [host for host, domains in self.domains.items() if uuid in domains]

    def set_power(self, host: str, uuid: str, power_state: int) -> None:
        """Something happens to a machine."""
        domain = self.domains[host].get(uuid)
        if domain is not None:
            self.domains[host][uuid] = Domain(uuid, power_state, domain.amounts)


class SimDriver:
    """zcompute.compute.virt.driver.Driver for one host. A death may fall before or behind the effect of a command."""

    capabilities = Capabilities("sim", frozenset({VERB_START, VERB_STOP, VERB_REBOOT, VERB_PAUSE, VERB_UNPAUSE}))

    def __init__(self, all_hosts: Hypervisors, host: str) -> None:
        self._all = all_hosts
        self._host = host
        self._inventory = HostInventory(name=host, total=TOTAL, hypervisor_type="sim", hypervisor_hostname=host)

    def hosts(self) -> list[str]:
        return [self._host]

    def inventory(self, host: str) -> HostInventory:
        return msgspec.structs.replace(self._inventory)

    def spawn(self, host: str, instance: Instance, order: Order) -> Domain:
        all_hosts = self._all
        all_hosts.began(host, "spawn", order)
        before_s, behind_s = (all_hosts.dice.uniform(*all_hosts.build_s) for _ in range(2))
        gevent.sleep(before_s)
        if all_hosts.dice.random() < all_hosts.fail:
            raise DriverError("the hypervisor could not")
        domains = all_hosts.domains[host]
        if instance.uuid in domains:
            raise DomainExists(instance.uuid)
        domain = domains[instance.uuid] = Domain(instance.uuid, POWER_RUNNING, instance.flavor.amounts())
        all_hosts.made(host, instance.uuid)
        gevent.sleep(behind_s)
        return domain

    def destroy(self, host: str, uuid: str, order: Order) -> None:
        self._all.began(host, "destroy", order)
        before_s, behind_s = (self._all.dice.uniform(*self._all.build_s) for _ in range(2))
        gevent.sleep(before_s)
        self._all.domains[host].pop(uuid, None)
        gevent.sleep(behind_s)

    def start(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, instance, order, POWER_RUNNING)

    def stop(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, instance, order, POWER_SHUTDOWN)

    def reboot(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, instance, order, POWER_RUNNING)

    def pause(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, instance, order, POWER_PAUSED)

    def unpause(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, instance, order, POWER_RUNNING)

    def _change(self, host: str, instance: Instance, order: Order, power_state: int) -> Done:
        all_hosts = self._all
        all_hosts.began(host, "act", order)
        before_s, behind_s = (all_hosts.dice.uniform(*all_hosts.build_s) for _ in range(2))
        gevent.sleep(before_s)
        if all_hosts.dice.random() < all_hosts.fail:
            raise DriverError("the hypervisor could not")
        if instance.uuid not in all_hosts.domains[host]:
            raise DomainMissing(instance.uuid)
        all_hosts.set_power(host, instance.uuid, power_state)
        changed = all_hosts.domains[host][instance.uuid]
        gevent.sleep(behind_s)
        return Done(changed)

    def domains(self, host: str) -> Mapping[str, Domain]:
        return dict(self._all.domains[host])
