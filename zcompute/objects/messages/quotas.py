"""Requests and replies of quotas: limits, what is used of them, and whether the books are right."""

import msgspec

from zcompute.objects.quota import Amount, GroupLimits, Limits, ProjectUsage


class QuotaRequest(msgspec.Struct, kw_only=True):
    """What may this project have, and what has it? Answered by its owner."""

    project_id: str


class QuotaReply(msgspec.Struct, kw_only=True):
    """``limits`` are those in force, ``own`` those that the project has itself, ``used`` the sum of its servers;
    ``groups`` is of server groups."""

    limits: Limits
    own: Limits
    used: Amount
    groups: GroupLimits = GroupLimits()


class QuotaSetRequest(msgspec.Struct, kw_only=True):
    """Set what ``limits`` names; give back to the default what ``unset`` names (Nova's names).

    Without ``force`` a limit below what is used is refused.
    """

    project_id: str
    limits: Limits
    unset: list[str] = msgspec.field(default_factory=list)
    force: bool = False


class QuotaDefaultReply(msgspec.Struct, kw_only=True):
    """The limits of a project that has none of its own; ``own`` are those that were set, over the configuration's."""

    limits: Limits
    own: Limits
    groups: GroupLimits = GroupLimits()


class QuotaDefaultSetRequest(msgspec.Struct, kw_only=True):
    """As QuotaSetRequest, for every project that has no limit of its own."""

    limits: Limits
    unset: list[str] = msgspec.field(default_factory=list)


class QuotaUsageRequest(msgspec.Struct, kw_only=True):
    """A page of projects with servers, behind ``after``."""

    after: str = ""
    limit: int = 1000


class QuotaUsageReply(msgspec.Struct, kw_only=True):
    """The page, in the order of the projects; a full one may be followed by more."""

    usages: list[ProjectUsage]


class ServerAmount(msgspec.Struct, kw_only=True):
    """What a server is to be charged from now on, in the words of its cell: (``cell``, ``generation``) as it is mapped;
    ``decided`` counts the decisions of the row that says so, and orders these words."""

    uuid: str
    project_id: str
    cell: str
    generation: int
    decided: int
    cores: int
    ram_mb: int


class Discrepancy(msgspec.Struct, kw_only=True):
    """What is wrong with the books of one server, or of a project's total. ``repaired``: not any more."""

    kind: str
    subject: str
    project_id: str
    detail: str = ""
    repaired: bool = False


class QuotaReconcileRequest(msgspec.Struct, kw_only=True):
    """One bounded step through the books of the partitions that the conductor owns, behind (partition, after_uuid).

    ``absent``: a server of which its cell has no row at all is let go too.
    """

    rows_max: int
    partition: int = 0
    after_uuid: str = ""
    dry_run: bool = False
    absent: bool = False


class QuotaReconcileReply(msgspec.Struct, kw_only=True):
    """``rows`` looked at and what was wrong; ``more``: go on behind (partition, after_uuid). ``partitions`` were
    looked through to their end. ``silent`` cells did not answer: of their servers nothing is said."""

    rows: int = 0
    found: list[Discrepancy] = msgspec.field(default_factory=list)
    partitions: list[int] = msgspec.field(default_factory=list)
    silent: list[str] = msgspec.field(default_factory=list)
    more: bool = False
    partition: int = 0
    after_uuid: str = ""


class StandingRequest(msgspec.Struct, kw_only=True):
    """What does the cell say of these servers? Read at its primary."""

    uuids: list[str]


class Standing(msgspec.Struct, kw_only=True):
    """One server as its cell has it. ``owed``: the root has not acknowledged all that the cell has to tell of it.
    ``busy``: a task is under way. ``confirmed``: the row did not come back with a restore of the cell, or a host has
    reported the server's domain since. ``cores`` and ``ram_mb`` are what it is to be charged, ``decided`` counts the
    row's decisions."""

    uuid: str
    generation: int
    project_id: str = ""
    deleted: bool = False
    owed: bool = False
    busy: bool = False
    confirmed: bool = True
    cores: int = 0
    ram_mb: int = 0
    decided: int = 0
    group_uuid: str | None = None


class StandingReply(msgspec.Struct, kw_only=True):
    """Those of which the cell has a row."""

    servers: list[Standing]
