"""Which conductors to dial: those of the configuration always, others as long as the newest map names them."""

from dataclasses import dataclass

from zcompute.config import PeerConfig
from zcompute.objects.partition import PartitionMap


@dataclass(frozen=True)
class Address:
    """Where a conductor listens, and with which key."""

    address: str
    public_key: str


@dataclass(frozen=True)
class Changes:
    """What to do to the links, by service id."""

    dial: dict[str, Address]
    hang_up: list[str]


class KnownConductors:
    """The conductors that a scheduler dials; changes are those that a newer map brings."""

    def __init__(self, cell: str, configured: list[PeerConfig]) -> None:
        self._cell = cell
        self._map_version = -1
        self._configured = {peer.id: Address(peer.address, peer.public_key) for peer in configured}
        self._dialled = dict(self._configured)

    def first(self) -> dict[str, Address]:
        """Those to dial at the start."""
        return dict(self._configured)

    def learn(self, newest: PartitionMap) -> Changes:
        """Take a map; an older one, or another cell's, changes nothing. One that moved is hung up and dialled anew."""
        if newest.cell != self._cell or newest.version <= self._map_version:
            return Changes({}, [])
        self._map_version = newest.version
        wanted = dict(self._configured)
        for service_id, info in newest.conductors.items():
            wanted[service_id] = Address(info.address, info.public_key)
        hang_up = [service_id for service_id, known in self._dialled.items() if wanted.get(service_id) != known]
        dial = {service_id: seen for service_id, seen in wanted.items() if self._dialled.get(service_id) != seen}
        self._dialled = wanted
        return Changes(dial, hang_up)
