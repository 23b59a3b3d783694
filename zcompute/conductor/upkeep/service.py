"""The handlers of interface ``upkeep``: an operator's bounded steps over the partitions owned here."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gevent

from zcompute.bus import CallContext
from zcompute.bus.errors import InvalidRequest, Unavailable
from zcompute.conductor.env import ConductorEnv, Handler
from zcompute.conductor.upkeep.archive import Archived, Archiver, Operations, Servers
from zcompute.conductor.upkeep.rewrite import CELL_MIGRATIONS, ROOT_MIGRATIONS, DataMigration
from zcompute.db.errors import StoreError
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.interface import Method
from zcompute.objects.messages.cluster import Empty
from zcompute.objects.messages.upkeep import MigrateDataReply, SchemaReply, UpkeepReply, UpkeepRequest
from zcompute.objects.methods import UPKEEP_ARCHIVE, UPKEEP_MIGRATE_DATA, UPKEEP_PURGE, UPKEEP_SCHEMA

log = logging.getLogger(__name__)

ROWS_MAX = 10_000  # of one call
PAGE_ROWS = 200  # of one look at a partition
PAUSE_MS = 5  # between two: the cell's own work goes on
MARGIN_MS = 2_000  # of the caller's deadline: what is not begun is more


class Upkeep:
    """One conductor's part. What is lost meanwhile (a partition, the database) is the caller's to ask for again."""

    def __init__(self, env: ConductorEnv) -> None:
        self._env = env
        is_root = env.cell == ROOT_CELL
        self._archivers: tuple[Archiver, ...] = (
            (Operations(env.ledger, env.store),) if is_root else (Servers(env.ledger, env.store),)
        )
        self._archived = Archived(env.ledger, env.store)
        self._migrations: Sequence[DataMigration] = ROOT_MIGRATIONS if is_root else CELL_MIGRATIONS

    def handlers(self) -> list[tuple[Method, Handler]]:
        """Interface ``upkeep``."""
        return [
            (UPKEEP_ARCHIVE, self.archive),
            (UPKEEP_PURGE, self.purge),
            (UPKEEP_MIGRATE_DATA, self.migrate_data),
            (UPKEEP_SCHEMA, self.schema),
        ]

    def archive(self, request: UpkeepRequest, context: CallContext) -> UpkeepReply:
        """Put aside what ended before. Raises InvalidRequest, Unavailable."""
        return self._over_partitions("archive", self._archivers, request, context)

    def purge(self, request: UpkeepRequest, context: CallContext) -> UpkeepReply:
        """Let go for good what was archived before. Raises InvalidRequest, Unavailable."""
        return self._over_partitions("purge", (self._archived,), request, context)

    def schema(self, request: Empty, context: CallContext) -> SchemaReply:
        """As this very conductor's primary has it. Raises Unavailable."""
        store = self._env.store
        return SchemaReply(applied=self._tried(store.read_schema), level=self._tried(store.read_map).release)

    def _over_partitions(
        self, what: str, archivers: Sequence[Archiver], request: UpkeepRequest, context: CallContext
    ) -> UpkeepReply:
        self._check(request)
        if not 0 < request.before_us <= self._env.ledger.now_us():
            raise InvalidRequest("expected a date in the past", field="before_us")
        reply = UpkeepReply()
        for partition in self._owned(reply.partitions):
            for archiver in archivers:
                self._pages(archiver, partition, request, reply, self._until(context))
        if reply.rows and not request.dry_run:
            log.info("upkeep what=%s rows=%s more=%s by=%s", what, reply.rows, reply.more, context.peer.service_id)
        return reply

    def _pages(
        self, archiver: Archiver, partition: int, request: UpkeepRequest, reply: UpkeepReply, until: float
    ) -> None:
        more = True
        while more:
            left = request.rows_max - reply.rows
            if time.monotonic() > until:
                reply.more = True
                return
            # With nothing left, a look says whether there is more.
            rows = min(PAGE_ROWS, left) if left > 0 else 1
            counts, more = self._tried(
                lambda rows=rows, dry=request.dry_run or left <= 0: archiver.archive(  # type: ignore[misc]  # binds them
                    partition, request.before_us, rows, dry_run=dry
                )
            )
            if left <= 0:
                reply.more = reply.more or bool(counts)
                return
            for name, count in counts.items():
                reply.by_table[name] = reply.by_table.get(name, 0) + count
                reply.rows += count
            if request.dry_run:
                reply.more = reply.more or more
                return
            gevent.sleep(PAUSE_MS / 1000)

    def migrate_data(self, request: UpkeepRequest, context: CallContext) -> MigrateDataReply:
        """Do so many rows of what the registered data migrations have left, and say how far they are.

        Raises InvalidRequest, Unavailable.
        """
        self._check(request)
        env, reply = self._env, MigrateDataReply()
        until = self._until(context)
        level = self._tried(env.store.read_map).release
        for partition in self._owned(reply.partitions):
            for migration in self._migrations:
                while not request.dry_run and reply.rows < request.rows_max and time.monotonic() < until:
                    left = request.rows_max - reply.rows
                    done = self._tried(
                        lambda m=migration, p=partition, n=left: m.step(env.ledger, env.store, p, level, n)  # type: ignore[misc]  # binds them
                    )
                    reply.rows += done
                    if not done:
                        break
                    gevent.sleep(PAUSE_MS / 1000)
        owned = reply.partitions
        reply.progress = [self._tried(lambda m=m: m.progress(env.store, owned, level)) for m in self._migrations]  # type: ignore[misc]  # binds it
        return reply

    def _owned(self, looked_at: list[int]) -> Iterator[int]:
        """The partitions owned here, noting each that still was when its turn came."""
        for partition in self._env.ledger.owned():
            if self._env.ledger.owns(partition):
                looked_at.append(partition)
                yield partition

    @staticmethod
    def _until(context: CallContext) -> float:
        return time.monotonic() + max(0, context.remaining_ms() - MARGIN_MS) / 1000

    @staticmethod
    def _check(request: UpkeepRequest) -> None:
        if not 1 <= request.rows_max <= ROWS_MAX:
            raise InvalidRequest(f"expected 1 to {ROWS_MAX} rows, found {request.rows_max}", field="rows_max")

    @staticmethod
    def _tried(act: Callable[[], Any]) -> Any:
        try:
            return act()
        except StoreError as error:
            raise Unavailable(f"the database is away: {error}") from error
