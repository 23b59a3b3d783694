"""A hypervisor of files: hosts of a given size whose domains live outside the agent's memory.

The file of a host is the host: it outlives the agent, every operation reads what others appended first, and a lock
on it makes "is it there? then write" one step, whoever else serves the host by mistake.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import gevent
import msgspec

from zcompute.compute.errors import DomainExists, DriverError, HostUnknown
from zcompute.compute.virt.driver import Capabilities, Domain
from zcompute.compute.virt.fake_log import OP_DESTROY, OP_SPAWN, DomainLine, domain_log_path, parse_lines
from zcompute.config import FakeHostConfig
from zcompute.objects.command import Order
from zcompute.objects.flavor import Amounts
from zcompute.objects.host import HostInventory
from zcompute.objects.instance import POWER_RUNNING, Instance

log = logging.getLogger(__name__)


class FakeHost:
    """One host's file. Raises DriverError when the file system fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._domains: dict[str, Domain] = {}
        self._read_bytes = 0
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DriverError(f"{path}: the fake host's domains cannot be opened: {error.strerror}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone on the file and up to date with it. Held for microseconds: nothing yields inside."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                self._refresh()
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        except OSError as error:
            raise DriverError(f"{self.path}: {error.strerror}") from error

    def _refresh(self) -> None:
        size_bytes = os.fstat(self._descriptor).st_size
        if size_bytes == self._read_bytes:
            return
        data = os.pread(self._descriptor, size_bytes - self._read_bytes, self._read_bytes)
        lines, end, unreadable = parse_lines(data)
        if end < len(data):
            # A writer died inside its write: end its line, so that the next one begins a line of its own.
            os.write(self._descriptor, b"\n")
            end, unreadable = len(data) + 1, unreadable + 1
        if unreadable:
            log.warning("fake host has unreadable lines path=%s count=%d", self.path, unreadable)
        self._read_bytes += end
        for line in lines:
            self._apply(line)

    def _apply(self, line: DomainLine) -> None:
        if line.op == OP_SPAWN:
            self._domains[line.uuid] = Domain(line.uuid, POWER_RUNNING, line.amounts)
        else:
            self._domains.pop(line.uuid, None)

    def domains(self) -> dict[str, Domain]:
        """What is there; valid while locked."""
        return self._domains

    def append(self, line: DomainLine) -> None:
        """One line in one write; called while locked."""
        data = msgspec.json.encode(line) + b"\n"
        written = os.write(self._descriptor, data)
        if written < len(data):
            raise DriverError(f"{self.path}: wrote {written} of {len(data)} bytes: is the disk full?")
        self._read_bytes += written
        self._apply(line)

    def close(self) -> None:
        os.close(self._descriptor)


class FakeDriver:
    """Driver of fake hosts. ``build_ms`` and ``delete_ms`` pass before the domain appears or goes."""

    capabilities = Capabilities(hypervisor_type="fake")

    def __init__(
        self, directory: str | Path, hosts: Sequence[FakeHostConfig], build_ms: int = 0, delete_ms: int = 0
    ) -> None:
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DriverError(f"{directory}: expected a directory for fake hosts: {error.strerror}") from error
        self._configs = {host.name: host for host in hosts}
        self._hosts = {host.name: FakeHost(domain_log_path(directory, host.name)) for host in hosts}
        self._build_s = build_ms / 1000
        self._delete_s = delete_ms / 1000

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

    def spawn(self, host: str, instance: Instance, order: Order) -> Domain:
        fake = self._host(host)
        if self._build_s:
            with fake.locked():
                self._refuse_existing(fake, instance.uuid)
            gevent.sleep(self._build_s)
        with fake.locked():
            self._refuse_existing(fake, instance.uuid)
            fake.append(_line(OP_SPAWN, instance.uuid, order, instance.flavor.amounts()))
            return fake.domains()[instance.uuid]

    def destroy(self, host: str, uuid: str, order: Order) -> None:
        fake = self._host(host)
        if self._delete_s:
            gevent.sleep(self._delete_s)
        with fake.locked():
            domain = fake.domains().get(uuid)
            if domain is not None:
                fake.append(_line(OP_DESTROY, uuid, order, domain.amounts))

    def domains(self, host: str) -> Mapping[str, Domain]:
        fake = self._host(host)
        with fake.locked():
            return dict(fake.domains())

    def close(self) -> None:
        for host in self._hosts.values():
            host.close()

    def _host(self, host: str) -> FakeHost:
        fake = self._hosts.get(host)
        if fake is None:
            raise HostUnknown(f"no fake host {host}: the configuration names {sorted(self._hosts)}")
        return fake

    @staticmethod
    def _refuse_existing(fake: FakeHost, uuid: str) -> None:
        if uuid in fake.domains():
            raise DomainExists(f"domain {uuid} exists on {fake.path.name}")


def _line(op: str, uuid: str, order: Order, amounts: Amounts) -> DomainLine:
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
    )
