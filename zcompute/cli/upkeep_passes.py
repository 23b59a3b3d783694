"""Passes over the conductors of a cell, each of which does for the partitions that it owns what upkeep asks."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gevent

from zcompute.cli.operator import Missing
from zcompute.objects.messages.upkeep import MigrateDataReply, MigrationProgress, UpkeepReply, UpkeepRequest
from zcompute.objects.partition import PARTITIONS

STEP_ROWS = 2_000  # asked of one conductor at a time
ROUNDS_MAX = 100_000
PASSES_MAX = 10
PASS_PAUSE_S = 1.0


@dataclass
class Done:
    """What all conductors have done together. ``unasked`` partitions are those that nobody looked at to the end."""

    rows: int = 0
    by_table: dict[str, int] = field(default_factory=dict)
    more: bool = False
    looked_at: set[int] = field(default_factory=set)
    missing: list[Missing] = field(default_factory=list)

    @property
    def unasked(self) -> int:
        return PARTITIONS - len(self.looked_at)

    def add(self, reply: UpkeepReply) -> None:
        """A step that was made, or would be."""
        self.rows += reply.rows
        for table, count in reply.by_table.items():
            self.by_table[table] = self.by_table.get(table, 0) + count


def until_all_asked(one_pass: Callable[[], bool], pause: Callable[[float], None] = gevent.sleep) -> None:
    """Pass by pass over the conductors until one says that every partition was looked at, or PASSES_MAX are made.

    While partitions are on their way from one conductor to another a pass can ask the one before it gains them and the
    other after it has lost them.
    """
    for left in reversed(range(PASSES_MAX)):
        if one_pass() or not left:
            return
        pause(PASS_PAUSE_S)


def through_owners(
    ask: Callable[[str, UpkeepRequest], Any], conductors: list[str], request: UpkeepRequest, done: Done
) -> Done:
    """One pass: ask each conductor, step by step, until nothing is left or ``rows_max`` rows are done.

    Returns ``done`` carried on; of a dry run each pass counts anew.
    """
    done = Done() if request.dry_run else replace(done, more=False, missing=[])
    for name in conductors:
        answer = _through_one(partial(ask, name), request, done)
        if isinstance(answer, Missing):
            done.missing.append(answer)
        else:
            done.looked_at.update(answer.partitions)
    return done


def _through_one(ask: Callable[[UpkeepRequest], Any], request: UpkeepRequest, done: Done) -> UpkeepReply | Missing:
    """What a conductor answers last."""
    for _ in range(ROUNDS_MAX):
        left = request.rows_max - done.rows
        dry = request.dry_run or left <= 0
        rows = max(1, min(STEP_ROWS, left))
        answer: UpkeepReply | Missing = ask(UpkeepRequest(rows_max=rows, before_us=request.before_us, dry_run=dry))
        if isinstance(answer, Missing):
            return answer
        if left <= 0:
            done.more = done.more or bool(answer.rows)
            return answer
        done.add(answer)
        if not answer.more or dry:
            done.more = done.more or answer.more
            return answer
    done.more = True
    return answer


@dataclass
class Migrated:
    """What a pass has found, and the rows that all passes have written."""

    rows: int = 0
    totals: dict[str, MigrationProgress] = field(default_factory=dict)
    looked_at: set[int] = field(default_factory=set)
    missing: list[Missing] = field(default_factory=list)

    @property
    def unasked(self) -> int:
        return PARTITIONS - len(self.looked_at)


def migrate_through_owners(
    ask: Callable[[str, UpkeepRequest], Any], conductors: list[str], rows_max: int, dry_run: bool, former: Migrated
) -> Migrated:
    """One pass: where each migration stands is asked of every owner again, the rows written are carried on."""
    found = Migrated(rows=0 if dry_run else former.rows)
    for name in conductors:
        _migrate_one(partial(ask, name), rows_max, dry_run, found)
    return found


def _migrate_one(ask: Callable[[UpkeepRequest], Any], rows_max: int, dry_run: bool, found: Migrated) -> None:
    answer: MigrateDataReply | None = None
    while answer is None or (answer.rows and found.rows < rows_max and not dry_run):
        left = rows_max - found.rows
        given = ask(UpkeepRequest(rows_max=max(1, min(STEP_ROWS, left)), dry_run=dry_run or left <= 0))
        if isinstance(given, Missing):
            found.missing.append(given)
            return
        answer = given
        found.rows += given.rows
    found.looked_at.update(answer.partitions)
    for one in answer.progress:
        former = found.totals.get(one.name)
        found.totals[one.name] = one if former is None else _sum(former, one)


def _sum(one: MigrationProgress, other: MigrationProgress) -> MigrationProgress:
    return MigrationProgress(
        name=one.name,
        done=one.done + other.done,
        total=one.total + other.total,
        remaining=one.remaining + other.remaining,
    )
