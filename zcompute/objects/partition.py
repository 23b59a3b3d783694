"""Which partition a key belongs to, and who owns it.

partition = first 4 bytes (big-endian) of SHA-256(key as UTF-8) mod 256. Keys: an instance's uuid (canonical lower
case), a host's name, in the root cell a project's id, a user's id (key pairs), or ``global``.
"""

import hashlib

import msgspec

from zcompute.objects.base import VersionedObject

PARTITIONS = 256
GLOBAL_KEY = "global"


def partition_of(key: str) -> int:
    """The partition of a key, 0 to 255. No case folding: callers pass uuids in canonical lower case."""
    # The first four bytes, big-endian, mod 256: the fourth.
    return hashlib.sha256(key.encode(), usedforsecurity=False).digest()[3]


class ConductorInfo(VersionedObject):
    """A live conductor: where it listens, and with which key."""

    service_id: str
    incarnation: str
    address: str
    public_key: str = ""


class PartitionMap(VersionedObject):
    """Who owns each partition of a cell. ``version`` rises with every change of ownership.

    ``owners[p]`` is a service id ("" = nobody yet), ``epochs[p]`` the map version at which that owner took p
    (the ``owner_epoch`` of its commands), ``term`` the cell's term (raised when a primary is promoted).
    """

    cell: str
    version: int = 0
    term: int = 1
    owners: list[str] = msgspec.field(default_factory=lambda: [""] * PARTITIONS)
    epochs: list[int] = msgspec.field(default_factory=lambda: [0] * PARTITIONS)
    conductors: dict[str, ConductorInfo] = msgspec.field(default_factory=dict)

    def owner_of(self, key: str) -> str:
        """The service id that owns the key's partition, "" when nobody does."""
        return self.owners[partition_of(key)]


class MapShare(msgspec.Struct):
    """Partitions that one conductor took at one map version."""

    owner: str
    epoch: int
    partitions: list[int]


class PartitionMapDelta(VersionedObject):
    """What a map of ``version`` has otherwise than that of ``base``, for whoever knows one from ``base`` on.

    A partition's epoch only rises, so one that is alike in both maps was so in every map between them; conductors may
    come and go and be again as they were, so ``conductors`` are always all of them.
    """

    cell: str
    version: int
    base: int
    term: int = 1
    shares: list[MapShare] = msgspec.field(default_factory=list)
    conductors: dict[str, ConductorInfo] = msgspec.field(default_factory=dict)


def map_delta(base: PartitionMap, new: PartitionMap) -> PartitionMapDelta | None:
    """What is new since ``base``; None where only the whole map will do (another term, no map before)."""
    if not base.version or base.term != new.term or base.cell != new.cell or base.version > new.version:
        return None
    moved: dict[tuple[str, int], list[int]] = {}
    for partition, place in enumerate(zip(new.owners, new.epochs, strict=True)):
        if place != (base.owners[partition], base.epochs[partition]):
            moved.setdefault(place, []).append(partition)
    shares = [MapShare(owner, epoch, partitions) for (owner, epoch), partitions in moved.items()]
    return PartitionMapDelta(
        cell=new.cell,
        version=new.version,
        base=base.version,
        term=new.term,
        shares=shares,
        conductors=new.conductors,
    )


def patched(old: PartitionMap, delta: PartitionMapDelta) -> PartitionMap | None:
    """The newer map; None when it cannot be told from ``old``: ask for the whole one."""
    if old.cell != delta.cell or old.term != delta.term or old.version < delta.base:
        return None
    owners, epochs = list(old.owners), list(old.epochs)
    for share in delta.shares:
        for partition in share.partitions:
            if not 0 <= partition < len(owners):
                return None
            owners[partition], epochs[partition] = share.owner, share.epoch
    return PartitionMap(
        cell=old.cell, version=delta.version, term=delta.term, owners=owners, epochs=epochs, conductors=delta.conductors
    )
