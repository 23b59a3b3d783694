"""Requests and replies of upkeep: operator -> any conductor, of the partitions that it owns."""

import msgspec


class UpkeepRequest(msgspec.Struct, kw_only=True):
    """One bounded step over the partitions that the conductor owns, ``rows_max`` rows at most.

    ``before_us`` (primary's UTC time): what is older. With ``dry_run`` nothing is changed.
    """

    rows_max: int
    before_us: int = 0
    dry_run: bool = False


class UpkeepReply(msgspec.Struct, kw_only=True):
    """``rows`` that were (dry run: would be) changed, ``by_table``; ``more``: there is more to do here. ``partitions``
    are those that were looked through: what others own is theirs to do."""

    rows: int = 0
    more: bool = False
    partitions: list[int] = msgspec.field(default_factory=list)
    by_table: dict[str, int] = msgspec.field(default_factory=dict)


class SchemaReply(msgspec.Struct, kw_only=True):
    """At which revisions the cell's database is (the newest of each chain), and its committed release level."""

    applied: list[str]
    level: str = ""


class MigrationProgress(msgspec.Struct, kw_only=True):
    """An online data migration: rows ``done`` by now and still ``remaining``, of ``total``."""

    name: str
    done: int
    total: int
    remaining: int


class MigrateDataReply(msgspec.Struct, kw_only=True):
    """``rows`` that this step has changed; where every registered migration stands in these ``partitions``."""

    rows: int = 0
    partitions: list[int] = msgspec.field(default_factory=list)
    progress: list[MigrationProgress] = msgspec.field(default_factory=list)
