"""The feed of schedulers: every committed change of an owned host, and a snapshot to whoever is new."""

import msgspec

from zcompute.bus import Endpoint, Link
from zcompute.bus.errors import BusError, NotOwner
from zcompute.conductor.cell.host_table import HostTable
from zcompute.conductor.ledger import Ledger
from zcompute.objects.host import Host, HostState
from zcompute.objects.messages.cluster import PartitionSnapshotDone
from zcompute.objects.methods import TOPIC_HOSTS, TOPIC_PARTITIONS
from zcompute.objects.partition import partition_of

_encode = msgspec.msgpack.Encoder().encode


def host_state(host: Host) -> HostState:
    """A host as a scheduler sees it. Pure."""
    return HostState(
        name=host.name,
        partition=partition_of(host.name),
        total=host.total,
        used=host.used,
        instances=host.instances,
        state=host.state,
        enabled=not host.disabled and not host.forced_down,
        availability_zone=host.availability_zone,
        revision=host.revision,
    )


class HostStates:
    """Publishes on topics ``hosts`` and ``partitions``. A partition is announced once all its hosts were sent."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger, table: HostTable) -> None:
        self._endpoint = endpoint
        self._ledger = ledger
        self._table = table
        self._ready: set[int] = set()
        self._schedulers: dict[Link, None] = {}  # kept, since each claim asks for them and agents' links are many

    def start(self) -> None:
        """Follow the table, greet new links."""
        self._table.on_change(self.changed)
        self._endpoint.on_link_up(self.link_up)
        self._endpoint.on_link_down(self.link_down)

    def changed(self, host: Host) -> None:
        """A newer row of an owned host."""
        if self._schedulers:
            state = host_state(host)
            encoded = _encode(state)
            for link in list(self._schedulers):
                link.event(TOPIC_HOSTS, host.name, host.revision, state if link.lowers else encoded)

    def gained(self, partitions: list[int]) -> None:
        """All hosts of these are in the table now."""
        self._ready.update(partitions)
        for link in list(self._schedulers):
            self._snapshot(link, partitions)

    def lost(self, partitions: list[int]) -> None:
        """Others speak of these now."""
        self._ready.difference_update(partitions)

    def link_up(self, link: Link) -> None:
        """A scheduler is new, or back: it gets everything."""
        if _wants_hosts(link):
            self._schedulers[link] = None
            self._snapshot(link, sorted(self._ready))

    def link_down(self, link: Link) -> None:
        """It gets everything when it is back."""
        self._schedulers.pop(link, None)

    def _snapshot(self, link: Link, partitions: list[int]) -> None:
        for partition in partitions:
            try:
                epoch = self._ledger.owner_epoch(partition)
                hosts = self._table.of_partition(partition)
                for host in hosts:
                    link.event(TOPIC_HOSTS, host.name, host.revision, host_state(host))
                done = PartitionSnapshotDone(partition=partition, owner_epoch=epoch, hosts=len(hosts))
                link.event(TOPIC_PARTITIONS, str(partition), epoch, _encode(done))
            except NotOwner:
                continue
            except BusError:
                return  # the link is gone again: its next hello brings everything


def _wants_hosts(link: Link) -> bool:
    return link.peer is not None and TOPIC_HOSTS in link.peer.topics
