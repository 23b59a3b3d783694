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
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % PARTITIONS


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
