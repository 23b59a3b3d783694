"""Are the totals that the owner keeps the sums of its usage rows?

Between two decisions that find a total unmoved (its revision says so) nothing of the project was decided, and what was
decided before the first had committed when that answered: the sum read between them must be the same. One that is not
is looked at once more before anything is said.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

from msgspec.structs import replace

from zcompute.conductor.change import Change
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.root.charging import total_key
from zcompute.conductor.root.reconciling import TOTAL_WRONG
from zcompute.db.tables import PROJECT_USAGES, Key, TableCodec
from zcompute.objects.messages.quotas import Discrepancy
from zcompute.objects.quota import ProjectUsage

log = logging.getLogger(__name__)

PROJECTS_PAGE = 500
COMMIT_MS_MAX = 10_000

Totals = dict[str, ProjectUsage]


class Sums(Protocol):
    """What is asked of the store."""

    def project_usages(self, after: str, limit: int, partition: int | None = None) -> list[ProjectUsage]: ...

    def fetch(self, table: TableCodec[ProjectUsage], keys: Sequence[Key]) -> dict[Key, ProjectUsage]: ...


def check_totals(ledger: Ledger, store: Sums, partition: int, *, repairs: bool) -> list[Discrepancy]:
    """Every project of the partition whose total is in memory. Raises StoreError, NotOwner, Busy."""
    found: list[Discrepancy] = []
    after = ""
    while True:
        page = store.project_usages(after, PROJECTS_PAGE, partition)
        projects = [usage.project_id for usage in page]
        wrong = _wrong(ledger, store, partition, projects)
        wrong = _wrong(ledger, store, partition, list(wrong)) if wrong else {}
        for project_id, (kept, summed) in wrong.items():
            repaired = repairs and _put_right(ledger, partition, kept, summed)
            detail = f"kept {_text(kept)}, the rows have {_text(summed)}"
            log.error("quota total wrong project=%s %s repaired=%s", project_id, detail, repaired)
            found.append(
                Discrepancy(
                    kind=TOTAL_WRONG, subject=project_id, project_id=project_id, detail=detail, repaired=repaired
                )
            )
        if len(page) < PROJECTS_PAGE:
            return found
        after = projects[-1]


def _wrong(
    ledger: Ledger, store: Sums, partition: int, projects: Sequence[str]
) -> dict[str, tuple[ProjectUsage, ProjectUsage]]:
    before = _kept(ledger, partition, projects)
    if not before:
        return {}
    sums = store.fetch(PROJECT_USAGES, [(project_id,) for project_id in before])
    after = _kept(ledger, partition, list(before))
    wrong = {}
    for project_id, kept in before.items():
        summed = sums.get((project_id,)) or ProjectUsage(project_id=project_id)
        if kept == after.get(project_id) and kept.used != summed.used:
            wrong[project_id] = (kept, summed)
    return wrong


def _kept(ledger: Ledger, partition: int, projects: Sequence[str]) -> Totals:
    """The totals in memory, once all that they count has committed."""

    def decide(change: Change) -> Totals:
        totals = {}
        for project_id in projects:
            table, key = total_key(project_id)
            if change.loaded(table, key) and (total := change.get(PROJECT_USAGES, key)) is not None:
                totals[project_id] = total
        return totals

    return ledger.commit(partition, [], decide, timeout_ms=COMMIT_MS_MAX) if projects else {}


def _put_right(ledger: Ledger, partition: int, kept: ProjectUsage, summed: ProjectUsage) -> bool:
    def decide(change: Change) -> bool:
        total = change.get(PROJECT_USAGES, (kept.project_id,))
        if total != kept:
            return False
        change.put(PROJECT_USAGES, replace(summed))
        return True

    return ledger.commit(partition, [total_key(kept.project_id)], decide, timeout_ms=COMMIT_MS_MAX)


def _text(usage: ProjectUsage) -> str:
    return f"{usage.instances} instances {usage.cores} cores {usage.ram_mb} MiB"
