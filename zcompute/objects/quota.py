"""What a project may have, and what it has: limits by project and by default, and the totals of its usage rows."""

from collections.abc import Iterator

import msgspec

from zcompute.objects.base import VersionedObject

UNLIMITED = -1
LIMIT_MAX = 2**31 - 1  # as Nova's schema
DEFAULT_CLASS = "default"
RESOURCES = ("cores", "instances", "ram")  # Nova's names, in the order in which it names those that are exceeded


class Limits(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Hard limits; -1 is none. None (in what is stored and set): as the default has it."""

    instances: int | None = None
    cores: int | None = None
    ram_mb: int | None = None

    def over(self, default: "Limits") -> "Limits":
        """These, and the default's where these say nothing."""
        return Limits(
            instances=default.instances if self.instances is None else self.instances,
            cores=default.cores if self.cores is None else self.cores,
            ram_mb=default.ram_mb if self.ram_mb is None else self.ram_mb,
        )

    def by_name(self) -> Iterator[tuple[str, int]]:
        """(Nova's name, limit) of each resource; what is not said is no limit."""
        for name, limit in (("cores", self.cores), ("instances", self.instances), ("ram", self.ram_mb)):
            yield name, UNLIMITED if limit is None else limit


class Amount(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """So many instances, cores and MiB: of one server, or of many together."""

    instances: int = 0
    cores: int = 0
    ram_mb: int = 0

    def of(self, name: str) -> int:
        """By Nova's name."""
        return self.instances if name == "instances" else self.cores if name == "cores" else self.ram_mb

    def times(self, count: int) -> "Amount":
        return Amount(instances=self.instances * count, cores=self.cores * count, ram_mb=self.ram_mb * count)


class Quota(VersionedObject):
    """A project's own limits; None is the default's. A project without a row has none of its own."""

    project_id: str
    instances: int | None = None
    cores: int | None = None
    ram_mb: int | None = None
    revision: int = 1

    @property
    def limits(self) -> Limits:
        return Limits(instances=self.instances, cores=self.cores, ram_mb=self.ram_mb)


class GroupLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many server groups a project may have, of how many members each (-1: any number), and how many it has."""

    groups: int = 10
    members: int = 10
    used: int = 0


class QuotaClass(VersionedObject):
    """The limits of every project that has none of its own: class ``default``; None is the configuration's."""

    name: str = DEFAULT_CLASS
    instances: int | None = None
    cores: int | None = None
    ram_mb: int | None = None
    revision: int = 1

    @property
    def limits(self) -> Limits:
        return Limits(instances=self.instances, cores=self.cores, ram_mb=self.ram_mb)


class ProjectUsage(VersionedObject):
    """The sum of a project's usage rows. Never stored: the project's owner keeps it beside the rows that it sums.

    ``revision`` rises with each decision that changes it."""

    project_id: str
    instances: int = 0
    cores: int = 0
    ram_mb: int = 0
    revision: int = 1

    @property
    def used(self) -> Amount:
        return Amount(instances=self.instances, cores=self.cores, ram_mb=self.ram_mb)
