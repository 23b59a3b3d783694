"""The hypervisors of the cell: what runs where is the truth that the database is held against."""

import random
from collections.abc import Callable, Mapping

import gevent
import msgspec

from zcompute.compute.errors import DomainExists, DomainMissing, DriverError
from zcompute.compute.virt.driver import Capabilities, Domain, Done
from zcompute.objects.command import (
    CHECKSUM,
    SIZE_BYTES,
    VERB_ABORT,
    VERB_ACTIVATE,
    VERB_MIGRATE,
    VERB_PAUSE,
    VERB_PREPARE,
    VERB_REBOOT,
    VERB_REBUILD,
    VERB_REOPEN,
    VERB_RESCUE,
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
)
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HostInventory
from zcompute.objects.instance import POWER_PAUSED, POWER_RUNNING, POWER_SHUTDOWN, POWER_SUSPENDED, Instance

TOTAL = Amounts(vcpus=64, memory_mb=65536, disk_gb=1000)
ADDRESS = "address"
_POWER_AFTER = {
    VERB_START: POWER_RUNNING,
    VERB_STOP: POWER_SHUTDOWN,
    VERB_REBOOT: POWER_RUNNING,
    VERB_PAUSE: POWER_PAUSED,
    VERB_UNPAUSE: POWER_RUNNING,
    VERB_SUSPEND: POWER_SUSPENDED,
    VERB_RESUME: POWER_RUNNING,
    VERB_RESCUE: POWER_RUNNING,
    VERB_UNRESCUE: POWER_RUNNING,
    VERB_REBUILD: POWER_RUNNING,
}
_MOVING = (VERB_PREPARE, VERB_SEND, VERB_ACTIVATE, VERB_REOPEN, VERB_MIGRATE, VERB_ABORT)


class Hypervisors:
    """All hosts' domains: they outlive the agents. ``began`` and ``made`` tell the checker of commands' effects.

    ``halted`` (host, uuid) are copies that stand still until somebody starts them again: what a cold move has stopped
    at its source, what a host had when its power went. ``awaited`` (host, uuid) is what a host was prepared for.
    """

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(f"{seed} hypervisors")
        self.domains: dict[str, dict[str, Domain]] = {}
        self.halted: set[tuple[str, str]] = set()
        self.awaited: set[tuple[str, str]] = set()
        self.off: set[str] = set()  # hosts without power
        self.began: Callable[[str, str, Order], None] = lambda *_: None
        self.made: Callable[[str, str], None] = lambda *_: None
        self.fail = 0.0
        self.build_s = (0.0, 0.05)

    def driver(self, host: str) -> "SimDriver":
        """The driver of an agent of this one host."""
        self.domains.setdefault(host, {})
        return SimDriver(self, host)

    def having(self, uuid: str) -> list[str]:
        """The hosts where an instance is, running or not."""
        return [host for host, domains in self.domains.items() if uuid in domains]

    def live(self, uuid: str) -> list[str]:
        """Those of them where it does not stand still: never more than one."""
        return [host for host in self.having(uuid) if (host, uuid) not in self.halted]

    def set_power(self, host: str, uuid: str, power_state: int) -> None:
        """Something happens to a machine; a copy that stands still has nothing that could happen to it."""
        domain = self.domains[host].get(uuid)
        if domain is not None and (host, uuid) not in self.halted:
            self.put(host, Domain(uuid, power_state, domain.amounts))

    def put(self, host: str, domain: Domain) -> None:
        """The domain as it is from now on."""
        self.domains[host][domain.uuid] = domain

    def run(self, host: str, domain: Domain) -> Domain:
        """It is there, and is the instance."""
        new = domain.uuid not in self.domains[host] or (host, domain.uuid) in self.halted
        self.put(host, domain)
        self.halted.discard((host, domain.uuid))
        if new:
            self.made(host, domain.uuid)
        return domain

    def halt(self, host: str, uuid: str) -> Domain:
        """It stands still."""
        domain = Domain(uuid, POWER_SHUTDOWN, self.domains[host][uuid].amounts)
        self.put(host, domain)
        self.halted.add((host, uuid))
        return domain

    def remove(self, host: str, uuid: str) -> None:
        """Nothing of it is left there."""
        self.domains[host].pop(uuid, None)
        self.halted.discard((host, uuid))
        self.awaited.discard((host, uuid))

    def power_off(self, host: str) -> None:
        """The power goes: whatever the host has stands still, on its disk."""
        self.off.add(host)
        for uuid in self.domains[host]:
            self.halt(host, uuid)


class SimDriver:
    """zcompute.compute.virt.driver.Driver for one host. A death may fall before or behind the effect of a command."""

    capabilities = Capabilities("sim", frozenset({*_POWER_AFTER, *_MOVING, VERB_SNAPSHOT}))

    def __init__(self, all_hosts: Hypervisors, host: str) -> None:
        self._all = all_hosts
        self._host = host
        self._inventory = HostInventory(name=host, total=TOTAL, hypervisor_type="sim", hypervisor_hostname=host)
        self._migrating: dict[str, bool] = {}  # whether it is to be aborted

    def hosts(self) -> list[str]:
        return [self._host]

    def inventory(self, host: str) -> HostInventory:
        return msgspec.structs.replace(self._inventory)

    def domains(self, host: str) -> Mapping[str, Domain]:
        return dict(self._all.domains[host])

    def _work(self) -> None:
        gevent.sleep(self._all.dice.uniform(*self._all.build_s))

    def _begin(self, host: str, what: str, order: Order) -> None:
        """What comes before an effect."""
        self._all.began(host, what, order)
        self._work()
        if self._all.dice.random() < self._all.fail:
            raise DriverError("the hypervisor could not")

    # -- builds and deletes -----------------------------------------------------------------------------------------

    def spawn(self, host: str, instance: Instance, order: Order) -> Domain:
        self._begin(host, "spawn", order)
        if instance.uuid in self._all.domains[host]:
            raise DomainExists(instance.uuid)
        domain = self._all.run(host, Domain(instance.uuid, POWER_RUNNING, instance.flavor.amounts()))
        self._work()
        return domain

    def destroy(self, host: str, uuid: str, order: Order) -> None:
        self._all.began(host, "destroy", order)
        self._work()
        self._all.remove(host, uuid)
        self._work()

    # -- one domain -------------------------------------------------------------------------------------------------

    def _change(self, host: str, instance: Instance, arguments: StepArguments, order: Order, power: int) -> Done:
        self._begin(host, "act", order)
        if instance.uuid not in self._all.domains[host]:
            raise DomainMissing(instance.uuid)
        domain = Domain(instance.uuid, power, instance.flavor.amounts())
        if power == POWER_SHUTDOWN:
            self._all.put(host, domain)
        else:
            self._all.run(host, domain)
        self._work()
        return Done(self._all.domains[host][instance.uuid])

    def snapshot(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        self._begin(host, "act", order)
        if instance.uuid not in self._all.domains[host]:
            raise DomainMissing(instance.uuid)
        self._work()
        return Done(self._all.domains[host].get(instance.uuid), {SIZE_BYTES: "1", CHECKSUM: "c"})

    # -- moves ------------------------------------------------------------------------------------------------------

    def prepare(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        self._begin(host, "act", order)
        if instance.uuid in self._all.domains[host]:
            raise DomainExists(instance.uuid)
        self._all.awaited.add((host, instance.uuid))
        self._work()
        return Done(None, {ADDRESS: host})

    def send(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        self._begin(host, "act", order)
        if instance.uuid not in self._all.domains[host]:
            raise DomainMissing(instance.uuid)
        domain = self._all.halt(host, instance.uuid)
        self._work()
        if (arguments.peer[ADDRESS], instance.uuid) not in self._all.awaited:
            raise DriverError(f"host {arguments.peer[ADDRESS]} does not await {instance.uuid}")
        return Done(domain)

    def activate(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        self._begin(host, "act", order)
        place = (host, instance.uuid)
        if place not in self._all.awaited and instance.uuid not in self._all.domains[host]:
            raise DriverError(f"nothing of {instance.uuid} has come to host {host}")
        self._all.awaited.discard(place)
        domain = self._all.run(host, Domain(instance.uuid, arguments.power or POWER_RUNNING, instance.flavor.amounts()))
        self._work()
        return Done(domain)

    def reopen(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        self._begin(host, "act", order)
        if instance.uuid not in self._all.domains[host]:
            raise DomainMissing(instance.uuid)
        domain = Domain(instance.uuid, arguments.power or POWER_RUNNING, instance.flavor.amounts())
        self._all.run(host, domain)
        self._work()
        return Done(domain)

    def migrate(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """It stops here before it runs there, and goes from here last of all. What its destination was told to destroy
        meanwhile, and what has lost its power, is not handed to it."""
        uuid, there = instance.uuid, arguments.peer[ADDRESS]
        if uuid in self._all.domains[there]:  # it had arrived before this agent's death
            self._all.remove(host, uuid)
            return Done(None)
        self._migrating[uuid] = False
        try:
            self._hand_over(host, there, instance, order)
        except DriverError:
            if (host, uuid) in self._all.halted:
                self._all.run(host, Domain(uuid, POWER_RUNNING, instance.flavor.amounts()))
            raise
        finally:
            self._migrating.pop(uuid)
        self._work()
        self._all.remove(host, uuid)
        return Done(None)

    def _hand_over(self, host: str, there: str, instance: Instance, order: Order) -> None:
        uuid = instance.uuid
        self._begin(host, "act", order)
        if self._migrating[uuid]:
            raise DriverError(f"the live migration of {uuid} was aborted")
        if uuid not in self._all.domains[host]:
            raise DomainMissing(uuid)
        self._all.halt(host, uuid)
        self._work()
        if (there, uuid) not in self._all.awaited or there in self._all.off:
            raise DriverError(f"host {there} does not await {uuid}")
        self._all.awaited.discard((there, uuid))
        self._all.run(there, Domain(uuid, POWER_RUNNING, instance.flavor.amounts()))

    def abort(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        if instance.uuid in self._migrating:
            self._migrating[instance.uuid] = True
        return Done(self._all.domains[host].get(instance.uuid))


def _verb(power: int) -> Callable[[SimDriver, str, Instance, StepArguments, Order], Done]:
    return lambda driver, host, instance, arguments, order: driver._change(host, instance, arguments, order, power)


for _name, _power in _POWER_AFTER.items():
    setattr(SimDriver, _name, _verb(_power))
