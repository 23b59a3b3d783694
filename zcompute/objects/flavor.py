"""Flavors and amounts of resources."""

import msgspec

from zcompute.objects.base import VersionedObject


class Amounts(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute amounts of a host's resources: whole vcpus, MiB of memory, GiB of disk."""

    vcpus: int = 0
    memory_mb: int = 0
    disk_gb: int = 0

    def plus(self, other: "Amounts") -> "Amounts":
        return Amounts(
            vcpus=self.vcpus + other.vcpus,
            memory_mb=self.memory_mb + other.memory_mb,
            disk_gb=self.disk_gb + other.disk_gb,
        )

    def minus(self, other: "Amounts") -> "Amounts":
        return Amounts(
            vcpus=self.vcpus - other.vcpus,
            memory_mb=self.memory_mb - other.memory_mb,
            disk_gb=self.disk_gb - other.disk_gb,
        )

    def fits_in(self, room: "Amounts") -> bool:
        return self.vcpus <= room.vcpus and self.memory_mb <= room.memory_mb and self.disk_gb <= room.disk_gb


class Flavor(VersionedObject):
    """A size of server, as Nova's flavor. ``flavorid`` is the id in the API."""

    flavorid: str
    name: str
    vcpus: int
    memory_mb: int
    root_gb: int
    ephemeral_gb: int = 0
    swap_mb: int = 0
    is_public: bool = True
    disabled: bool = False
    description: str | None = None
    extra_specs: dict[str, str] = msgspec.field(default_factory=dict)
    revision: int = 1

    def amounts(self) -> Amounts:
        """What a server of this flavor takes from its host (swap rounded up to whole GiB)."""
        disk_gb = self.root_gb + self.ephemeral_gb + -(-self.swap_mb // 1024)
        return Amounts(vcpus=self.vcpus, memory_mb=self.memory_mb, disk_gb=disk_gb)
