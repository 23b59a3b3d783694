"""A hypervisor of files: hosts of a given size whose domains live outside the agent's memory (fake_host)."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import gevent
from gevent.event import Event

from zcompute.compute.errors import DomainExists, DomainMissing, DriverError, HostUnknown
from zcompute.compute.verbs import VERBS
from zcompute.compute.virt.driver import NOTHING, Capabilities, Domain, Done
from zcompute.compute.virt.fake_host import FakeHost
from zcompute.compute.virt.fake_log import OP_ARRIVE, OP_DESTROY, OP_SPAWN, DomainLine, domain_log_path
from zcompute.config import FakeHostConfig
from zcompute.objects.command import (
    CHECKSUM,
    SIZE_BYTES,
    VERB_ACTIVATE,
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
)
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HostInventory
from zcompute.objects.instance import POWER_PAUSED, POWER_RUNNING, POWER_SHUTDOWN, POWER_SUSPENDED, Instance

ADDRESS = "address"
_SCHEME = "fake://"


class Handing:
    """One live migration under way; ``woken`` ends the time that it takes."""

    def __init__(self) -> None:
        self.aborted = False
        self.woken = Event()


class FakeDriver:
    """Driver of fake hosts. ``build_ms`` and ``delete_ms`` pass before the domain appears or goes, ``step_ms`` before
    any other change. Hosts of several agents share their directory, through which a live migration hands over."""

    capabilities = Capabilities(hypervisor_type="fake", verbs=VERBS)

    def __init__(
        self,
        directory: str | Path,
        hosts: Sequence[FakeHostConfig],
        build_ms: int = 0,
        delete_ms: int = 0,
        step_ms: int = 0,
    ) -> None:
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DriverError(f"{directory}: expected a directory for fake hosts: {error.strerror}") from error
        self._directory = directory
        self._configs = {host.name: host for host in hosts}
        self._hosts = {host.name: FakeHost(domain_log_path(directory, host.name)) for host in hosts}
        self._build_s = build_ms / 1000
        self._delete_s = delete_ms / 1000
        self._step_s = step_ms / 1000
        self._migrating: dict[tuple[str, str], Handing] = {}

    def hosts(self) -> list[str]:
        return list(self._hosts)

    def inventory(self, host: str) -> HostInventory:
        config = self._configs.get(host)
        if config is None:
            raise HostUnknown(f"no fake host {host}: the configuration names {sorted(self._configs)}")
        return HostInventory(
            name=host,
            total=Amounts(vcpus=config.vcpus, memory_mb=config.memory_mb, disk_gb=config.disk_gb),
            hypervisor_type=self.capabilities.hypervisor_type,
            hypervisor_hostname=host,
            availability_zone=config.availability_zone,
        )

    def domains(self, host: str) -> Mapping[str, Domain]:
        fake = self._host(host)
        with fake.locked():
            return dict(fake.domains())

    def close(self) -> None:
        for host in self._hosts.values():
            host.close()

    # -- builds and deletes -------------------------------------------------------------------------------------------

    def spawn(self, host: str, instance: Instance, order: Order) -> Domain:
        fake = self._host(host)
        if self._build_s:
            with fake.locked():
                _refuse_existing(fake, instance.uuid)
            gevent.sleep(self._build_s)
        with fake.locked():
            _refuse_existing(fake, instance.uuid)
            fake.append(_line(OP_SPAWN, instance, order, POWER_RUNNING))
            return fake.domains()[instance.uuid]

    def destroy(self, host: str, uuid: str, order: Order) -> None:
        fake = self._host(host)
        if self._delete_s:
            gevent.sleep(self._delete_s)
        with fake.locked():
            domain = fake.domains().get(uuid)
            if domain is not None:
                fake.append(_line_of(OP_DESTROY, uuid, order, domain.amounts, domain.power_state))
            elif fake.awaits(uuid):
                fake.append(_line_of(OP_DESTROY, uuid, order, NOTHING, POWER_SHUTDOWN))

    # -- one domain ---------------------------------------------------------------------------------------------------

    def start(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_START, instance, order, POWER_RUNNING)

    def stop(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_STOP, instance, order, POWER_SHUTDOWN)

    def reboot(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_REBOOT, instance, order, POWER_RUNNING)

    def pause(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_PAUSE, instance, order, POWER_PAUSED)

    def unpause(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_UNPAUSE, instance, order, POWER_RUNNING)

    def suspend(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_SUSPEND, instance, order, POWER_SUSPENDED)

    def resume(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_RESUME, instance, order, POWER_RUNNING)

    def rescue(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_RESCUE, instance, order, POWER_RUNNING)

    def unrescue(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_UNRESCUE, instance, order, POWER_RUNNING)

    def rebuild(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_REBUILD, instance, order, arguments.power or POWER_RUNNING)

    def snapshot(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        fake = self._host(host)
        self._take_a_step()
        with fake.locked():
            domain = fake.domains().get(instance.uuid)
            if domain is None:
                raise DomainMissing(f"expected domain {instance.uuid} on host {host} to snapshot, found none")
            fake.append(_line(VERB_SNAPSHOT, instance, order, domain.power_state))
        made_of = f"{instance.uuid} {arguments.image_ref}".encode()
        checksum = hashlib.md5(made_of, usedforsecurity=False).hexdigest()
        return Done(domain, {SIZE_BYTES: str(instance.flavor.root_gb << 30), CHECKSUM: checksum})

    def resize(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_RESIZE, instance, order, arguments.power or POWER_RUNNING)

    def _change(self, host: str, verb: str, instance: Instance, order: Order, power_state: int) -> Done:
        fake = self._host(host)
        self._take_a_step()
        with fake.locked():
            if instance.uuid not in fake.domains():
                raise DomainMissing(f"expected domain {instance.uuid} on host {host} to {verb}, found none")
            fake.append(_line(verb, instance, order, power_state))
            return Done(fake.domains()[instance.uuid])

    # -- moves --------------------------------------------------------------------------------------------------------

    def prepare(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        fake = self._host(host)
        self._take_a_step()
        with fake.locked():
            _refuse_existing(fake, instance.uuid)
            fake.append(_line(VERB_PREPARE, instance, order, POWER_SHUTDOWN))
        return Done(None, {ADDRESS: f"{_SCHEME}{host}"})

    def send(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_SEND, instance, order, POWER_SHUTDOWN)

    def activate(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        fake = self._host(host)
        self._take_a_step()
        with fake.locked():
            fake.append(_line(VERB_ACTIVATE, instance, order, arguments.power or POWER_RUNNING))
            return Done(fake.domains()[instance.uuid])

    def reopen(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        return self._change(host, VERB_REOPEN, instance, order, arguments.power or POWER_RUNNING)

    def migrate(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        """It stops here before it runs there, and goes from here last of all: whenever the agent dies, one of the two
        hosts has it, and never both run it. One that does not get there runs here again."""
        source = self._host(host)
        there = FakeHost(domain_log_path(self._directory, _host_at(arguments.peer.get(ADDRESS, ""))))
        try:
            with there.locked():
                arrived = instance.uuid in there.domains()  # before this agent's death
            if not arrived:
                self._hand_over(source, there, instance, order)
            with source.locked():
                if instance.uuid in source.domains():
                    source.append(_line(VERB_MIGRATE, instance, order, POWER_SHUTDOWN))
        finally:
            there.close()
        return Done(None)

    def _hand_over(self, source: FakeHost, there: FakeHost, instance: Instance, order: Order) -> None:
        key = (order.host, instance.uuid)
        handing = self._migrating[key] = Handing()
        try:
            handing.woken.wait(self._step_s)
            if handing.aborted:
                raise DriverError(f"the live migration of {instance.uuid} was aborted")
            with source.locked():
                if instance.uuid not in source.domains():
                    raise DomainMissing(f"expected domain {instance.uuid} on host {order.host} to migrate, found none")
                source.append(_line(VERB_SEND, instance, order, POWER_SHUTDOWN))
            with there.locked():
                if not there.awaits(instance.uuid):
                    raise DriverError(f"{there.path.name} does not await domain {instance.uuid} any more")
                there.append(_line(OP_ARRIVE, instance, order, POWER_RUNNING))
        except DriverError:
            with source.locked():
                domain = source.domains().get(instance.uuid)
                if domain is not None and domain.power_state == POWER_SHUTDOWN:
                    source.append(_line(VERB_REOPEN, instance, order, POWER_RUNNING))
            raise
        finally:
            del self._migrating[key]

    def abort(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        self._host(host)
        if (handing := self._migrating.get((host, instance.uuid))) is not None:
            handing.aborted = True
            handing.woken.set()
        return Done(self.domains(host).get(instance.uuid))

    def complete(self, host: str, instance: Instance, arguments: StepArguments, order: Order) -> Done:
        self._host(host)
        if (handing := self._migrating.get((host, instance.uuid))) is not None:
            handing.woken.set()
        return Done(self.domains(host).get(instance.uuid))

    def _take_a_step(self) -> None:
        if self._step_s:
            gevent.sleep(self._step_s)

    def _host(self, host: str) -> FakeHost:
        fake = self._hosts.get(host)
        if fake is None:
            raise HostUnknown(f"no fake host {host}: the configuration names {sorted(self._hosts)}")
        return fake


def _refuse_existing(fake: FakeHost, uuid: str) -> None:
    if uuid in fake.domains():
        raise DomainExists(f"domain {uuid} exists on {fake.path.name}")


def _host_at(address: str) -> str:
    host = address.removeprefix(_SCHEME)
    if host == address or not host or "/" in host:
        raise DriverError(f"expected the address of a fake host ({_SCHEME}NAME), found {address!r}")
    return host


def _line(op: str, instance: Instance, order: Order, power_state: int) -> DomainLine:
    return _line_of(op, instance.uuid, order, instance.flavor.amounts(), power_state)


def _line_of(op: str, uuid: str, order: Order, amounts: Amounts, power_state: int) -> DomainLine:
    return DomainLine(
        op=op,
        uuid=uuid,
        task_id=order.task_id,
        step=order.step,
        attempt=order.attempt,
        generation=order.generation,
        pid=os.getpid(),
        at=time.time_ns() // 1000,
        amounts=amounts,
        power_state=power_state,
    )
