"""Which migrations there are: the chain that expands, the chain that contracts, and the numbers kept for backports.

An expand revision is named by four digits, NNNN: the first two are the release, the last two count in it. The last ten
of each release (NN90 to NN99) are reserved: a change that is backported to a release takes the next of them there. A
newer release knows them all, used or not, as steps that do nothing: a database that has been through a backport is
known to it, and its own revision of the change finds that it is there (zcompute.db.steps). A contract revision is
named ``c`` and four digits, and says in ``needs_level`` which release level must be committed before.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from alembic.config import Config
from alembic.script import Script, ScriptDirectory
from alembic.script.revision import RevisionMap

NUMBERS_PER_RELEASE = 100
RESERVED = 10
CONTRACT_PREFIX = "c"
MIGRATIONS = Path(__file__).parent / "migrations"


def is_contract(revision: str) -> bool:
    """Whether it takes something away."""
    return revision.startswith(CONTRACT_PREFIX)


def release_of(revision: str) -> int | None:
    """The number of the release to which a revision belongs; None for what is no revision's name."""
    digits = revision.removeprefix(CONTRACT_PREFIX)
    return int(digits) // NUMBERS_PER_RELEASE if len(digits) == 4 and digits.isdigit() else None


def is_reserved(revision: str) -> bool:
    """Whether an expand revision has a number that is kept for backports."""
    if is_contract(revision) or release_of(revision) is None:
        return False
    return int(revision) % NUMBERS_PER_RELEASE >= NUMBERS_PER_RELEASE - RESERVED


def reserved_of(release: int) -> list[str]:
    """The numbers that are kept for backports to a release."""
    end = (release + 1) * NUMBERS_PER_RELEASE
    return [f"{number:04d}" for number in range(end - RESERVED, end)]


def _all(scripts: ScriptDirectory) -> Iterator[Script]:
    """The revisions of both chains, with the reserved numbers of former releases filled in."""
    found = list(scripts._load_revisions())
    yield from [script for script in found if is_contract(script.revision)]
    yield from _with_reserved(scripts, [script for script in found if not is_contract(script.revision)])


def _with_reserved(scripts: ScriptDirectory, expand: Sequence[Script]) -> Iterator[Script]:
    """The chain in the order of its numbers; behind a release that is not the last come all its reserved ones."""
    by_number = {script.revision: script for script in expand}
    releases = sorted({found for name in by_number if (found := release_of(name)) is not None})
    last = releases[-1] if releases else 0
    numbers = set(by_number).union(*(reserved_of(release) for release in releases if release != last))
    before: str | None = None
    for number in sorted(numbers):
        script = by_number.get(number)
        yield (
            script
            if script is not None and script.down_revision == before
            else _linked(scripts, number, before, script)
        )
        before = number


def _linked(scripts: ScriptDirectory, number: str, before: str | None, script: Script | None) -> Script:
    """A reserved number that is not used, or a revision that comes behind such a one."""
    module = ModuleType(f"reserved_{number}" if script is None else script.module.__name__)
    if script is None:
        module.__doc__ = "Reserved for a backport."
        module.upgrade = module.downgrade = lambda: None  # type: ignore[attr-defined]  # a module made here
    else:
        module.__dict__.update(script.module.__dict__)
    module.revision, module.down_revision = number, before  # type: ignore[attr-defined]  # as above
    module.branch_labels = module.depends_on = None  # type: ignore[attr-defined]  # as above
    return Script(module, number, str(scripts.dir) if script is None else script.path)


class Revisions:
    """The migrations of one release, read from ``place`` (``versions/`` expand, ``contract/`` contract)."""

    def __init__(self, place: Path = MIGRATIONS) -> None:
        self.config = Config()
        self.config.set_main_option("script_location", _escaped(place))
        versions = f"{_escaped(place / 'versions')}\n{_escaped(place / 'contract')}"
        self.config.set_main_option("version_locations", versions)
        self.config.set_main_option("path_separator", "newline")
        scripts = self.scripts = ScriptDirectory.from_config(self.config)
        scripts.revision_map = RevisionMap(lambda: _all(scripts))

    @property
    def expand_head(self) -> str:
        """The newest expand revision."""
        return max(self._names(contract=False))

    @property
    def contract_head(self) -> str | None:
        """The newest contract revision, None when there is none."""
        return max(self._names(contract=True), default=None)

    def knows(self, revision: str) -> bool:
        """Whether this release has the revision, or keeps its number."""
        return revision in self._names(contract=is_contract(revision))

    def pending(self, applied: Sequence[str], *, contract: bool) -> list[str]:
        """What is still to be run of one chain, oldest first, in a database at these revisions."""
        at = max((name for name in applied if is_contract(name) == contract), default="")
        return [name for name in self._names(contract=contract) if name > at]

    def title(self, revision: str) -> str:
        """What the revision is about, in a line."""
        doc: str = self.scripts.get_revision(revision).module.__doc__ or ""
        return doc.strip().partition("\n")[0]

    def needs_level(self, revision: str) -> str:
        """The release level that must be committed before a contract revision."""
        return str(self.scripts.get_revision(revision).module.needs_level)

    def _names(self, *, contract: bool) -> list[str]:
        names = (script.revision for script in self.scripts.walk_revisions())
        return sorted(name for name in names if is_contract(name) == contract)


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")
