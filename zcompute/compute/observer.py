"""Compares what runs with what was last reported of it, and reports the difference."""

import logging
from collections.abc import Callable, Iterable, Mapping

from zcompute.compute.errors import DriverError, ObservationsFull
from zcompute.compute.generations import Generations, Record
from zcompute.compute.reporter import Reporter
from zcompute.compute.resources import HostResources, account
from zcompute.compute.virt.driver import Domain, Driver
from zcompute.objects.flavor import Amounts
from zcompute.objects.instance import POWER_NOSTATE
from zcompute.objects.report import Observation

log = logging.getLogger(__name__)

Key = tuple[str, str]


def observation(record: Record, domain: Domain | None) -> Observation:
    """The state of a granted instance; no domain = gone."""
    return Observation(
        instance_uuid=record.uuid,
        host=record.host,
        generation=record.grant,
        power_state=POWER_NOSTATE if domain is None else domain.power_state,
        gone=domain is None,
    )


def differences(
    granted: Iterable[Record], domains: Mapping[str, Domain], reported: Mapping[Key, Observation]
) -> list[Observation]:
    """What has changed since it was reported; everything that was never reported."""
    found = (observation(record, domains.get(record.uuid)) for record in granted)
    return [seen for seen in found if reported.get((seen.host, seen.instance_uuid)) != seen]


class Observer:
    """Remembers the newest report of each granted instance; the agent's memory only, a new epoch reports everything."""

    def __init__(
        self, driver: Driver, generations: Generations, reporter: Reporter, busy: Callable[[Key], bool]
    ) -> None:
        self._driver = driver
        self._generations = generations
        self._reporter = reporter
        self._busy = busy
        self._reported: dict[Key, Observation] = {}
        self._resources: dict[str, HostResources] = {}
        self._unknown: dict[str, list[str]] = {}

    def report_all(self, host: str) -> None:
        """A new epoch: the full state of every granted instance of the host."""
        self._reported = {key: seen for key, seen in self._reported.items() if key[0] != host}
        self.look(host)

    def look(self, host: str) -> None:
        """Report what changed on a host. An instance whose command is under way is reported when that ends."""
        before = self._idle_grants(host)
        try:
            domains = self._driver.domains(host)
            inventory = self._driver.inventory(host)
        except DriverError as error:
            log.error("host not observed host=%s error=%s", host, error)
            return
        granted = self._generations.granted(host)
        # The driver may have yielded: what a command changed meanwhile is newer than this look.
        unchanged = before & self._idle_grants(host)
        idle = [record for record in granted if (record.uuid, record.grant) in unchanged]
        for seen in differences(idle, domains, self._reported):
            self._report(seen)
        known = frozenset(record.uuid for record in granted)
        self._unknown[host] = sorted(uuid for uuid in domains if uuid not in known)
        resources = account(inventory, domains.values(), known)
        if resources != self._resources.get(host):
            self._resources[host] = resources
            log.info(
                "host resources host=%s used=%s total=%s domains=%d ungranted=%d",
                host,
                _text(resources.used),
                _text(resources.total),
                resources.domains,
                resources.ungranted,
            )

    def report(self, record: Record, domain: Domain | None) -> None:
        """Report one instance now, because a command has just changed it."""
        self._report(observation(record, domain))

    def forget(self, host: str, uuid: str) -> None:
        """The instance is no longer this host's to observe."""
        self._reported.pop((host, uuid), None)
        self._reporter.retract(host, uuid)

    def resources(self) -> list[HostResources]:
        """What was found at the last look, per host."""
        return list(self._resources.values())

    def unknown(self, host: str) -> list[str]:
        """Domains that nobody told this agent to report, as of the last look at the host."""
        return self._unknown.get(host, [])

    def _idle_grants(self, host: str) -> set[tuple[str, int]]:
        return {
            (record.uuid, record.grant)
            for record in self._generations.granted(host)
            if not self._busy((host, record.uuid))
        }

    def _report(self, seen: Observation) -> None:
        try:
            self._reporter.report(seen)
        except ObservationsFull as error:
            log.error("observation not reported yet instance=%s error=%s", seen.instance_uuid, error)
            return
        self._reported[(seen.host, seen.instance_uuid)] = seen


def _text(amounts: Amounts) -> str:
    return f"{amounts.vcpus}vcpus/{amounts.memory_mb}MiB/{amounts.disk_gb}GiB"
