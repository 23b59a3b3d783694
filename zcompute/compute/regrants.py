"""Asks the owners what a host reports, at each new epoch: the journal may have been lost, in part or as a whole.

Partition by partition, a page at a time, and on where it stopped when an owner is away or changes meanwhile. While the
host runs what nobody granted, its partitions are asked again, ever more rarely.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import gevent

from zcompute.bus import BusError, Link
from zcompute.compute.backoff import Backoff
from zcompute.compute.ending import end_all
from zcompute.compute.fences import Fences
from zcompute.compute.generations import Generations
from zcompute.compute.links import ConductorLinks
from zcompute.compute.observer import Observer
from zcompute.compute.settings import Settings
from zcompute.objects.errors import ServiceError
from zcompute.objects.messages.hosts import HostGrantsReply, HostGrantsRequest
from zcompute.objects.methods import HOST_GRANTS
from zcompute.objects.partition import PARTITIONS, PartitionMap, partition_of

log = logging.getLogger(__name__)


@dataclass
class Pending:
    """The partitions of a host that were not answered to the end, each with the uuid behind which it goes on."""

    after: dict[int, str] = field(default_factory=lambda: dict.fromkeys(range(PARTITIONS), ""))

    def by_owner(self, cell_map: PartitionMap) -> dict[str, list[int]]:
        """Whom to ask for what; nobody is asked for what nobody owns."""
        asked: dict[str, list[int]] = {}
        for partition in self.after:
            owner = cell_map.owners[partition] if cell_map.owners else ""
            if owner:
                asked.setdefault(owner, []).append(partition)
        return asked

    def request(self, host: str, partitions: list[int]) -> HostGrantsRequest:
        """The next page of these: from where the hindmost of them is, as the others are harmed by no repeat."""
        after = min(self.after[partition] for partition in partitions)
        return HostGrantsRequest(host=host, partitions=partitions, after=after)

    def answered(self, reply: HostGrantsReply, partitions: list[int]) -> list[int]:
        """A page has come; answers those partitions of which there is more."""
        told = [partition for partition in partitions if partition in reply.owner_epochs]
        for partition in told:
            if reply.after:
                self.after[partition] = max(reply.after, self.after[partition])
            else:
                del self.after[partition]
        return told if reply.after else []


class Regrants:
    """A greenlet for each host that has begun. ``on_done(host)`` is set by the service."""

    def __init__(
        self,
        links: ConductorLinks,
        fences: Fences,
        generations: Generations,
        observer: Observer,
        settings: Settings,
    ) -> None:
        self._links = links
        self._fences = fences
        self._generations = generations
        self._observer = observer
        self._settings = settings
        self._asking: dict[str, gevent.Greenlet] = {}
        self.granted_anew = 0
        self.on_done: Callable[[str], None] = lambda _: None

    def begin(self, host: str) -> None:
        """The host has a new epoch."""
        self.end(host)
        self._asking[host] = gevent.spawn(self._run, host)

    def end(self, host: str) -> None:
        """The host must not speak any more, or begins again."""
        former = self._asking.pop(host, None)
        if former is not None:
            former.kill(block=False)

    def stop(self) -> None:
        end_all(self._asking.values(), "questions for grants")

    def _run(self, host: str) -> None:
        self._ask_all(host, Pending())
        self._observer.look(host)
        self._tell_of_unknown(host)
        self.on_done(host)
        self._ask_again(host)

    def _ask_again(self, host: str) -> None:
        """What nobody granted may be this host's by now: the result of its spawn, whose record was lost with the
        journal, was still owed when the owners were asked."""
        backoff = Backoff(self._settings.unknown_retry_ms_min, self._settings.unknown_retry_ms_max)
        while unknown := self._observer.unknown(host):
            gevent.sleep(backoff.next_s())
            granted = self.granted_anew
            self._ask_all(host, Pending({partition_of(uuid): "" for uuid in unknown}))
            if self.granted_anew > granted:
                self._observer.look(host)

    def _ask_all(self, host: str, pending: Pending) -> None:
        backoff = Backoff(self._settings.retry_ms_min, self._settings.retry_ms_max)
        while pending.after:
            left = len(pending.after)
            for owner, partitions in pending.by_owner(self._links.map).items():
                link = self._links.way_to_owner(owner)
                if link is not None:
                    self._ask(host, owner, link, partitions, pending)
            if len(pending.after) < left:
                backoff.reset()
            if pending.after:
                gevent.sleep(backoff.next_s())

    def _ask(self, host: str, owner: str, link: Link, partitions: list[int], pending: Pending) -> None:
        while partitions:
            request = pending.request(host, partitions)
            try:
                reply: HostGrantsReply = link.call(HOST_GRANTS, request, timeout_ms=self._settings.call_ms)
            except (BusError, ServiceError) as error:
                log.info("grants not answered host=%s owner=%s error=%s", host, owner, error)
                self._links.owner_refused(owner, link)
                self._links.refresh(link)
                return
            self._take(host, reply)
            partitions = pending.answered(reply, partitions)
            if partitions:
                self._observer.look(host)
                gevent.sleep(self._settings.grants_pause_ms / 1000)

    def _take(self, host: str, reply: HostGrantsReply) -> None:
        for grant in reply.grants:
            partition = partition_of(grant.instance_uuid)
            owner_epoch = reply.owner_epochs.get(partition)
            if owner_epoch is None:
                continue
            if not self._fences.allows(partition, owner_epoch):
                del reply.owner_epochs[partition]  # of a former owner: the present one is asked
                continue
            if self._generations.regrant(host, grant, time.monotonic()):
                self.granted_anew += 1
                log.info(
                    "instance granted anew instance=%s host=%s generation=%d reporter_generation=%d",
                    grant.instance_uuid, host, grant.generation, grant.reporter_generation,
                )  # fmt: skip

    def _tell_of_unknown(self, host: str) -> None:
        """What nobody grants is left alone: it may be an operator's, or a task's that has not come yet."""
        unknown = self._observer.unknown(host)
        if unknown:
            log.warning(
                "domains that no owner knows are left alone host=%s count=%d first=%s", host, len(unknown), unknown[0]
            )
