"""From decisions to one batch: pure, and always of a prefix of the queue, so that any batch is consistent in itself."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from zcompute.conductor.cache import RowKey
from zcompute.conductor.change import Put, Ticket
from zcompute.conductor.rendering import shape_of
from zcompute.conductor.settings import LedgerLimits
from zcompute.db.batch import Change as RowChange
from zcompute.db.batch import Delete, Insert, Numbering, Purge, Update, ordered
from zcompute.db.tables import NOTIFICATIONS, Row, TableCodec


def take_prefix(queue: deque[Ticket], limits: LedgerLimits) -> list[Ticket]:
    """Take from the left what fits in one batch: one decision at least, rows counted as if none coalesced.

    A hand-over is a batch of its own.
    """
    taken: list[Ticket] = []
    rows = size_bytes = 0
    while queue and len(taken) < limits.batch_decisions_max:
        ticket = queue[0]
        if ticket.hand_over is not None:
            return taken or [queue.popleft()]
        rows += ticket.rows
        size_bytes += ticket.size_bytes
        if taken and (rows > limits.batch_rows_max or size_bytes > limits.batch_bytes_max):
            break
        taken.append(queue.popleft())
    return taken


class _TableChanges:
    """What a batch does to one table. Updates are told apart by their packed columns only: these differ seldom, and a
    plain column can be sent for a row where it did not change."""

    __slots__ = ("deletes", "inserts", "table", "updates")

    def __init__(self, table: TableCodec[Any]) -> None:
        self.table = table
        self.deletes: list[Row] = []
        self.inserts: list[Row] = []
        self.updates: dict[tuple[str, ...], list[tuple[tuple[str, ...], Any, dict[str, Any] | None]]] = {}

    def add(self, first: Put, last: Put) -> None:
        """One row over the whole batch: as it was before the first decision, as it is after the last."""
        table, image = self.table, last.image
        if table.derived:
            return
        if first.former is None:
            if image is not None:
                self.inserts.append(_whole(last))
        elif image is None:
            self.deletes.append(first.rowkey[1])
        elif not table.update_columns:
            if first.former != image:
                self.deletes.append(first.rowkey[1])
                self.inserts.append(_whole(last))
        elif first is last and last.fields is not None:
            encoded = last.encoded
            self.updates.setdefault(() if encoded is None else tuple(encoded), []).append((last.fields, image, encoded))
        else:
            fields, encoded = _coalesced(first, last)
            self.updates.setdefault(tuple(encoded), []).append((fields, image, encoded))

    def statements(self) -> list[RowChange]:
        result: list[RowChange] = []
        if self.deletes:
            result.append(Delete(self.table, self.deletes))
        if self.inserts:
            result.append(Insert(self.table, self.inserts))
        for encoded, updates in self.updates.items():
            result.append(self._update(encoded, updates))
        return result

    def _update(
        self, encoded: tuple[str, ...], updates: list[tuple[tuple[str, ...], Any, dict[str, Any] | None]]
    ) -> Update:
        shape = shape_of(self.table)
        kinds = {fields for fields, _, _ in updates}
        columns = shape.columns(kinds.pop() if len(kinds) == 1 else tuple(sorted(set().union(*kinds))))
        values = shape.reader(columns)
        if not encoded:
            return Update(self.table, columns, [values(image) for _, image, _ in updates])
        rows = []
        places = [(len(self.table.key_columns) + columns.index(column), column) for column in encoded]
        for _, image, packed in updates:
            row = list(values(image))
            for place, column in places:
                row[place] = None if packed is None else packed[column]
            rows.append(tuple(row))
        return Update(self.table, columns, rows)


def _whole(put: Put) -> Row:
    """The whole row of an image: rendered with its decision, or out of parts that were."""
    if put.row is None:
        put.row = put.table.to_row(put.image, put.table.home_of(put.image), put.packed)
    return put.row


def _coalesced(first: Put, last: Put) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What several decisions changed together, and its packed columns."""
    shape = shape_of(last.table)
    fields = shape.changed(first.former, last.image)
    wanted = [column for column in shape.columns(fields) if column in shape.encoded]
    if not wanted:
        return fields, {}
    row, columns = _whole(last), last.table.columns
    return fields, {column: row[columns.index(column)] for column in wanted}


def changes_of(tickets: Iterable[Ticket]) -> list[RowChange]:
    """The rows of these decisions, each coalesced to its final image; tables and keys in the database's one order.

    insert + update = insert, insert + delete = nothing, delete + insert = an update, or a deletion and an insertion
    where rows of the table never change.
    """
    firsts: dict[RowKey, Put] = {}
    lasts: dict[RowKey, Put] = {}  # of rows that were put more than once
    for ticket in tickets:
        for put in ticket.puts:
            if firsts.setdefault(put.rowkey, put) is not put:
                lasts[put.rowkey] = put
    tables: dict[str, _TableChanges] = {}
    for rowkey, first in firsts.items():
        changes = tables.get(rowkey[0])
        if changes is None:
            changes = tables[rowkey[0]] = _TableChanges(first.table)
        changes.add(first, lasts.get(rowkey, first) if lasts else first)
    return ordered([statement for changes in tables.values() for statement in changes.statements()])


def numbered(tickets: Iterable[Ticket], last_n: Mapping[int, int]) -> tuple[list[RowChange], list[Numbering]]:
    """Number the notifications of these decisions, in their order, from each partition's ``last_n`` on.

    Each ticket learns its first number. Numbers hold with this batch only: refused, it is numbered anew in parts.
    """
    after: dict[int, int] = {}
    rows: list[Row] = []
    for ticket in tickets:
        if not ticket.notes:
            continue
        partition = ticket.partition
        n = after.get(partition, last_n[partition])
        ticket.first_n = n + 1
        for note in ticket.notes:
            n += 1
            rows.append((partition, n, note.created_at_us, note.event_type, note.instance_uuid, note.body))
        after[partition] = n
    numberings = [Numbering(partition, last_n[partition], n) for partition, n in after.items()]
    return [Insert(NOTIFICATIONS, rows)] if rows else [], numberings


def purges_of(tickets: Iterable[Ticket]) -> list[Purge]:
    """The notifications that these decisions let go."""
    return [purge for ticket in tickets for purge in ticket.purges]
