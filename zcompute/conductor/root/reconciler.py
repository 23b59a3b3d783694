"""The reconciler: goes through the books of the owned partitions, page by page, asks the cells, and repairs.

On its own every ``reconcile_s``, and whenever an operator asks (``zcompute quota reconcile``). A page is looked at, and
what is doubted once more ``look_again_ms`` later; what is the same then is repaired by a decision of the owner.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import gevent

from zcompute.bus.errors import BusError, InvalidRequest
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.root.cell_words import CellSilent, ask_standings
from zcompute.conductor.root.intake import server_keys
from zcompute.conductor.root.reconciling import KINDS, SERVER_ABSENT, TOTAL_WRONG, Books, Doubt, judge, repair
from zcompute.conductor.root.totals import check_totals
from zcompute.db.errors import StoreError
from zcompute.db.tables import BUILD_REQUESTS, MAPPINGS, USAGES
from zcompute.measure import Measure
from zcompute.objects.errors import ObjectError
from zcompute.objects.interface import Method
from zcompute.objects.messages.quotas import (
    Discrepancy,
    QuotaReconcileReply,
    QuotaReconcileRequest,
    Standing,
)
from zcompute.objects.methods import QUOTA_RECONCILE
from zcompute.objects.partition import PARTITIONS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReconcilerLimits:
    """Of one step (an operator's call), one page, and one question to a cell."""

    rows_max: int = 10_000
    found_max: int = 1_000  # told of one step: what is more is counted and repaired with the next
    page_rows: int = 500
    page_pause_ms: int = 200  # of the reconciler's own walk: 2,500 servers a second at most
    look_again_ms: int = 2_000
    ask_ms_max: int = 5_000
    commit_ms_max: int = 10_000
    margin_ms: int = 10_000  # of the caller's deadline: a page is not begun with less


class Reconciler:
    """One conductor's part. What it cannot read or ask now is left to the next time, and said."""

    def __init__(self, env: ConductorEnv, limits: ReconcilerLimits = ReconcilerLimits()) -> None:
        self._env = env
        self._limits = limits
        self._period_s = env.config.quota.reconcile_s
        self._walker: gevent.Greenlet | None = None
        self._standing: Counter[str] = Counter()  # what the last whole walk has found and left
        self._repaired: Counter[str] = Counter()
        self._walked_at: float | None = None

    def handlers(self) -> list[tuple[Method, Handler]]:
        """For operators."""
        return [(QUOTA_RECONCILE, self.reconcile)]

    def measures(self) -> Iterable[Measure]:
        """For the metrics."""
        for kind in KINDS:
            labels = {"kind": kind}
            yield Measure("quota_discrepancies", "found by the last walk and not repaired", self._standing[kind],
                          labels=labels)  # fmt: skip
            yield Measure("quota_repairs", "discrepancies that were repaired", self._repaired[kind], True, labels)
        if self._walked_at is not None:
            age_s = time.monotonic() - self._walked_at
            yield Measure("quota_walk_age_seconds", "since the last whole walk through the owned books", age_s)

    def start(self) -> None:
        """Begin to walk, where a period is configured; the first walk comes within one."""
        if self._period_s:
            self._walker = gevent.spawn(self._walk_again_and_again)

    def stop(self) -> None:
        """End; a repair under way is decided or not, as a whole."""
        if self._walker is not None:
            self._walker.kill(block=False)

    # -- asked by an operator -----------------------------------------------------------------------------------

    def reconcile(self, request: QuotaReconcileRequest, context: Any) -> QuotaReconcileReply:
        """One step. Raises InvalidRequest, and StoreError where the database is away."""
        if not 1 <= request.rows_max <= self._limits.rows_max:
            raise InvalidRequest(f"expected 1 to {self._limits.rows_max} rows, found {request.rows_max}",
                                 field="rows_max")  # fmt: skip
        reply = QuotaReconcileReply()
        until = time.monotonic() + max(0, context.remaining_ms() - self._limits.margin_ms) / 1000
        after = request.after_uuid
        for partition in range(max(0, request.partition), PARTITIONS):
            if not self._env.ledger.owns(partition):
                after = ""
                continue
            while True:
                if reply.rows >= request.rows_max or time.monotonic() > until:
                    reply.more, reply.partition, reply.after_uuid = True, partition, after
                    return reply
                rows = min(self._limits.page_rows, request.rows_max - reply.rows)
                page, after = self._page(partition, after, rows)
                reply.rows += len(page)
                self._settle(partition, page, reply, repairs=not request.dry_run, absent=request.absent)
                if not after:
                    break
            reply.found += self._totals(partition, repairs=not request.dry_run)
            reply.partitions.append(partition)
        return reply

    # -- on its own ---------------------------------------------------------------------------------------------

    def _walk_again_and_again(self) -> None:
        while True:
            gevent.sleep(self._period_s * random.uniform(0.5, 1.0))
            try:
                self.walk()
            except Exception as error:  # noqa: BLE001  # the database may be away: the next walk tries again
                log.info("quota walk broken off error=%s: %s", type(error).__name__, error)

    def walk(self) -> QuotaReconcileReply:
        """Through all that is owned here, unhurriedly. Raises StoreError, BusError."""
        reply = QuotaReconcileReply()
        for partition in self._env.ledger.owned():
            after = ""
            while self._env.ledger.owns(partition):
                page, after = self._page(partition, after, self._limits.page_rows)
                reply.rows += len(page)
                self._settle(partition, page, reply, repairs=True, absent=False)
                if not after:
                    reply.found += self._totals(partition, repairs=True)
                    break
                gevent.sleep(self._limits.page_pause_ms / 1000)
            del reply.found[self._limits.found_max :]
        self._standing = Counter(found.kind for found in reply.found if not found.repaired)
        self._walked_at = time.monotonic()
        if reply.found or reply.silent:
            log.warning("quota walk rows=%s found=%s silent=%s", reply.rows, len(reply.found), ",".join(reply.silent))
        return reply

    # -- one page -----------------------------------------------------------------------------------------------

    def _page(self, partition: int, after: str, rows: int) -> tuple[list[Books], str]:
        """Books behind ``after`` in the order of their uuids, and where the next page begins; "" at the end."""
        store, key = self._env.store, (after,) if after else None
        # The last to be made first: what is on its way meanwhile is seen by one of them.
        build_requests = store.scan(BUILD_REQUESTS, partitions=[partition], limit=rows, after=key)
        mappings = store.scan(MAPPINGS, partitions=[partition], limit=rows, after=key)
        usages = store.scan(USAGES, partitions=[partition], limit=rows, after=key)
        full = [table[-1].uuid for table in (build_requests, mappings, usages) if len(table) == rows]
        end = min(full) if full else None
        return _joined(usages, mappings, build_requests, end), end or ""

    def _settle(
        self, partition: int, page: Sequence[Books], reply: QuotaReconcileReply, *, repairs: bool, absent: bool
    ) -> None:
        first = self._doubts(page, reply)
        if not first:
            return
        gevent.sleep(self._limits.look_again_ms / 1000)
        keys = [(doubt.uuid,) for doubt in first]
        store = self._env.store
        again = _joined(
            store.fetch(USAGES, keys).values(),
            store.fetch(MAPPINGS, keys).values(),
            store.fetch(BUILD_REQUESTS, keys).values(),
            None,
        )
        before = {doubt.uuid: doubt for doubt in first}
        for doubt in self._doubts(again, reply):
            if doubt != before.get(doubt.uuid):
                continue
            repaired = repairs and (absent or doubt.kind != SERVER_ABSENT) and self._repair(partition, doubt)
            if len(reply.found) < self._limits.found_max:
                reply.found.append(
                    Discrepancy(
                        kind=doubt.kind,
                        subject=doubt.uuid,
                        project_id=doubt.project_id,
                        detail=doubt.detail,
                        repaired=repaired,
                    )
                )

    def _doubts(self, page: Sequence[Books], reply: QuotaReconcileReply) -> list[Doubt]:
        by_cell: dict[str | None, list[Books]] = {}
        for books in page:
            by_cell.setdefault(books.cell, []).append(books)
        doubts: list[Doubt] = []
        for cell, of_cell in by_cell.items():
            said: dict[str, Standing] = {}
            if cell is not None:
                try:
                    uuids = [books.uuid for books in of_cell]
                    said = ask_standings(self._env.endpoint, cell, uuids, self._limits.ask_ms_max)
                except CellSilent as silent:
                    log.info("%s", silent)
                    if cell not in reply.silent:
                        reply.silent.append(cell)
                    continue
            now_us = self._env.ledger.now_us()
            found = [judge(books, said.get(books.uuid), now_us) for books in of_cell]
            doubts += [doubt for doubt in found if doubt is not None]
        return doubts

    def _repair(self, partition: int, doubt: Doubt) -> bool:
        keys = server_keys(doubt.uuid, doubt.project_id)
        repaired: bool = self._tried(
            lambda: self._env.ledger.commit(
                partition, keys, lambda change: repair(change, doubt), timeout_ms=self._limits.commit_ms_max
            )
        )
        if repaired:
            self._repaired[doubt.kind] += 1
            log.warning("quota repaired kind=%s uuid=%s project=%s detail=%s", doubt.kind, doubt.uuid,
                        doubt.project_id, doubt.detail)  # fmt: skip
        return repaired

    def _totals(self, partition: int, *, repairs: bool) -> list[Discrepancy]:
        found = check_totals(self._env.ledger, self._env.store, partition, repairs=repairs)
        self._repaired[TOTAL_WRONG] += sum(one.repaired for one in found)
        return found

    @staticmethod
    def _tried(act: Callable[[], bool]) -> bool:
        """False where the decision was not to be had: the next time finds it again."""
        try:
            return act()
        except (BusError, ObjectError, StoreError) as error:
            log.info("quota not repaired error=%s: %s", type(error).__name__, error)
            return False


def _joined(
    usages: Iterable[Any], mappings: Iterable[Any], build_requests: Iterable[Any], end: str | None
) -> list[Books]:
    """By uuid, up to ``end``."""
    rows: dict[str, dict[str, Any]] = {}
    for name, table in (("usage", usages), ("mapping", mappings), ("build_request", build_requests)):
        for row in table:
            if end is None or row.uuid <= end:
                rows.setdefault(row.uuid, {})[name] = row
    return [Books(uuid, **rows[uuid]) for uuid in sorted(rows)]
