"""Are the books right? What the root has of one server against what its cell says, and the repair. Pure.

The root's rows of a server are of one partition, so its owner's decision sees them as they are: among them alone a
contradiction is proof. What a cell says is proof with the mapping's generation, when the cell owes nothing: a cell
forgets what it owes only after the root has committed it. All the same everything is looked at twice, and repaired only
where nothing has moved between the first look and the decision.
"""

from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from zcompute.conductor.change import Change
from zcompute.conductor.root.charging import charge
from zcompute.conductor.root.intake import delete_server_rows, usage_of
from zcompute.db.tables import BUILD_REQUESTS, MAPPINGS, USAGES
from zcompute.objects.build_request import BuildRequest, InstanceMapping, Usage
from zcompute.objects.messages.quotas import Standing

USAGE_WITHOUT_SERVER = "usage_without_server"
SERVER_WITHOUT_USAGE = "server_without_usage"
USAGE_WRONG = "usage_wrong"
SERVER_GONE = "server_gone"
SERVER_ABSENT = "server_absent"
TOTAL_WRONG = "total_wrong"
RAISE_US_MAX = 60_000_000
"""A resize that raised the usage begins within this time, or does not begin."""
KINDS: dict[str, str] = {
    USAGE_WITHOUT_SERVER: "rows of a server that is neither in a cell nor on its way to one: let go",
    SERVER_WITHOUT_USAGE: "a server that no project pays for: charged",
    USAGE_WRONG: "a usage row differs from the server's flavor: corrected",
    SERVER_GONE: "its cell has deleted the server and owes the root no word of it: let go",
    SERVER_ABSENT: "its cell has no row of the server, or one of another generation: said, let go with --absent",
    TOTAL_WRONG: "the owner's total differs from the sum of the usage rows: corrected",
}


@dataclass(frozen=True)
class Books:
    """What the root has of one server."""

    uuid: str
    usage: Usage | None = None
    mapping: InstanceMapping | None = None
    build_request: BuildRequest | None = None

    @property
    def project_id(self) -> str:
        row = self.usage or self.mapping or self.build_request
        return "" if row is None else row.project_id

    @property
    def cell(self) -> str | None:
        """The cell that has the last word on it; None: the root itself."""
        return None if self.mapping is None or self.build_request is not None else self.mapping.cell

    @property
    def revisions(self) -> tuple[int | None, ...]:
        """What changes with any change of them."""
        return tuple(None if row is None else row.revision for row in (self.usage, self.mapping, self.build_request))


class Doubt(msgspec.Struct, frozen=True):
    """Something wrong with a server's books, and all that says so: two equal doubts are two looks at the same."""

    kind: str
    uuid: str
    project_id: str
    revisions: tuple[int | None, ...]
    detail: str = ""
    usage: Usage | None = None  # as it should be


def judge(books: Books, standing: Standing | None, now_us: int) -> Doubt | None:
    """``standing`` is the word of the books' cell, None when the cell has no row; not looked at where it has no say."""
    found = _judged(books, standing, now_us)
    if found is None:
        return None
    kind, detail, usage = found
    return Doubt(kind, books.uuid, books.project_id, books.revisions, detail, usage)


def _judged(books: Books, standing: Standing | None, now_us: int) -> tuple[str, str, Usage | None] | None:
    mapping = books.mapping
    if books.build_request is not None:
        return _against(books, usage_of(books.build_request))
    if mapping is None or mapping.cell is None:
        return (USAGE_WITHOUT_SERVER, "no mapping to a cell, no build request", None) if books.project_id else None
    place = f"{mapping.cell}/{mapping.generation}"
    if standing is None:
        return SERVER_ABSENT, f"mapped to {place}", None
    if standing.generation != mapping.generation:
        return SERVER_ABSENT, f"mapped to {place}, the cell has generation {standing.generation}", None
    if standing.deleted:
        return None if standing.owed else (SERVER_GONE, f"deleted in {place}", None)
    if standing.busy or _is_raised(books.usage, standing, now_us):
        return None
    return _against(books, replace(usage_by(standing), project_id=mapping.project_id))


def usage_by(standing: Standing) -> Usage:
    """What the server is charged by its cell's word."""
    return Usage(
        uuid=standing.uuid,
        project_id=standing.project_id,
        cores=standing.cores,
        ram_mb=standing.ram_mb,
        decided=standing.decided,
    )


def _is_raised(usage: Usage | None, standing: Standing, now_us: int) -> bool:
    """Whether a resize may be about to begin: it has raised the usage, and nothing was decided at the cell since."""
    return (
        usage is not None
        and standing.decided <= usage.decided
        and usage.raised_at_us > 0
        and now_us - usage.raised_at_us < RAISE_US_MAX
    )


def _against(books: Books, usage: Usage) -> tuple[str, str, Usage] | None:
    if books.usage is None:
        return SERVER_WITHOUT_USAGE, f"{usage.cores} cores {usage.ram_mb} MiB", usage
    found = (books.usage.cores, books.usage.ram_mb)
    if found == (usage.cores, usage.ram_mb):
        return None
    return USAGE_WRONG, f"{found[0]} cores {found[1]} MiB, should be {usage.cores} and {usage.ram_mb}", usage


def books_of(change: Change, uuid: str) -> Books:
    """As the owner knows them."""
    key = (uuid,)
    return Books(uuid, change.get(USAGES, key), change.get(MAPPINGS, key), change.get(BUILD_REQUESTS, key))


def repair(change: Change, doubt: Doubt) -> bool:
    """Put it right, if nothing has moved since it was doubted. False when something has."""
    books = books_of(change, doubt.uuid)
    if books.revisions != doubt.revisions or books.project_id != doubt.project_id:
        return False
    if doubt.usage is None:
        delete_server_rows(change, doubt.uuid)
    else:
        charge(change, [replace(doubt.usage)])
    return True
