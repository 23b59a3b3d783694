"""What one transaction of a lane changes, as data. Pure: drivers turn it into statements.

A batch is numbered; its first statement moves the lane's watermark from ``number - 1`` to ``number`` and leaves the
nonce, by which a resend whose first copy got through is told from a stranger's batch under the same number.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import msgspec

from zcompute.db.tables import REVISION_COLUMN, TABLE_ORDER, Key, Row, TableCodec

NONCE_MAX = 2**63 - 1


class Insert(msgspec.Struct, frozen=True):
    """Insert whole rows (TableCodec.to_row). All must be new."""

    table: TableCodec[Any]
    rows: list[Row]


class Update(msgspec.Struct, frozen=True):
    """Set ``columns`` of existing rows. A row is (key columns..., columns...); revision is one of the columns.

    The row guard: only rows whose stored revision is lower change, and every one of ``rows`` must.
    """

    table: TableCodec[Any]
    columns: tuple[str, ...]
    rows: list[Row]


class Delete(msgspec.Struct, frozen=True):
    """Delete rows by key. All must be there."""

    table: TableCodec[Any]
    keys: list[Key]


class HandOver(msgspec.Struct, frozen=True):
    """These partitions leave the batch's lane for ``to_lane``, which must be alive: their last word on this lane.

    The map's version rises by one and becomes their owner_epoch.
    """

    partitions: list[int]
    to_lane: int


class Numbering(msgspec.Struct, frozen=True):
    """The notifications of a partition in this batch: its last_n goes from ``before`` to ``after``.

    The guard: the partition is on the batch's lane, and its last_n is ``before``.
    """

    partition_id: int
    before: int
    after: int


class Purge(msgspec.Struct, frozen=True):
    """Delete the notifications of a partition from ``first`` to ``last``; those that are not there are gone already."""

    partition_id: int
    first: int
    last: int


Change = Insert | Update | Delete


class Batch(msgspec.Struct):
    """One transaction of a lane. Without changes it is a barrier: the watermark only.

    ``rendered`` keeps the bytes that a driver sent, because a resend must send the same ones.
    """

    lane_id: int
    term: int
    number: int
    nonce: int
    changes: list[Change] = msgspec.field(default_factory=list)
    hand_over: HandOver | None = None
    numberings: list[Numbering] = msgspec.field(default_factory=list)
    purges: list[Purge] = msgspec.field(default_factory=list)
    rendered: bytes | None = None

    def rows(self) -> int:
        """How many rows this batch changes."""
        return sum(len(change.keys if isinstance(change, Delete) else change.rows) for change in self.changes)


def ordered(changes: Sequence[Change]) -> list[Change]:
    """The changes as they are sent: tables in their fixed order, rows sorted by key; in a table deletes go first.

    Deletes first, because a new row may take over a unique value from one that goes (a second task of an instance).
    Empty changes fall away. Raises ValueError for an Update without revision or of a column that never changes.
    """
    kept: list[Change] = []
    for change in changes:
        if isinstance(change, Delete):
            if change.keys:
                kept.append(Delete(change.table, sorted(change.keys)))
            continue
        if not change.rows:
            continue
        width = len(change.table.key_columns)
        rows = sorted(change.rows, key=itemgetter(*range(width)))
        if isinstance(change, Insert):
            kept.append(Insert(change.table, rows))
        else:
            _check_columns(change)
            kept.append(Update(change.table, change.columns, rows))
    kept.sort(key=lambda change: (TABLE_ORDER[change.table.name], _RANK[type(change)]))
    return kept


_RANK: dict[type, int] = {Delete: 0, Update: 1, Insert: 2}


def _check_columns(change: Update) -> None:
    strange = set(change.columns) - set(change.table.update_columns)
    if strange or REVISION_COLUMN not in change.columns:
        raise ValueError(
            f"an update of {change.table.name} sets {change.columns}: expected revision and columns out of "
            f"{change.table.update_columns}"
        )
