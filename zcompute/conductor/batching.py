"""From decisions to one batch: pure, and always of a prefix of the queue, so that any batch is consistent in itself."""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from zcompute.conductor.change import Put, Ticket
from zcompute.conductor.settings import LedgerLimits
from zcompute.db.batch import Change as RowChange
from zcompute.db.batch import Delete, Insert, Numbering, Purge, Update, ordered
from zcompute.db.tables import NOTIFICATIONS, Row, TableCodec
from zcompute.objects.base import pack
from zcompute.objects.stored import Pack


class TableShape:
    """Which columns of a table each field of its objects fills, so that an UPDATE sends only what changed."""

    __slots__ = ("_columns_of", "_fields", "_table")

    def __init__(self, table: TableCodec[Any]) -> None:
        self._table = table
        self._fields = tuple(name for name in table.kind.__struct_fields__ if name not in table.key_columns)
        self._columns_of = {name: _columns_of(table, name) for name in self._fields}

    def changed(self, former: Any, image: Any) -> set[str]:
        """The fields that differ."""
        return {
            name
            for name in self._fields
            if (old := getattr(former, name)) is not (new := getattr(image, name)) and old != new
        }

    def columns(self, fields: set[str]) -> tuple[str, ...]:
        wanted = {column for name in fields for column in self._columns_of[name]}
        return tuple(column for column in self._table.update_columns if column in wanted)


def _columns_of(table: TableCodec[Any], field: str) -> tuple[str, ...]:
    """Columns named as the field, or after it ("total_vcpus"); all of them for a field that cannot be placed."""
    columns = table.update_columns
    own = tuple(column for column in columns if column == field or column.startswith(field + "_"))
    return own or columns


_shapes: dict[str, TableShape] = {}


def shape_of(table: TableCodec[Any]) -> TableShape:
    shape = _shapes.get(table.name)
    if shape is None:
        shape = _shapes[table.name] = TableShape(table)
    return shape


def render_put(put: Put, partition: int, packed: Pack = pack) -> None:
    """Make the image's row, while the decision can still be refused alone. Raises what the codec raises."""
    if put.image is not None:
        put.row = put.table.to_row(put.image, partition, packed)
        put.size_bytes = sum(len(v) if isinstance(v, (str, bytes)) else 8 for v in put.row)
    else:
        put.size_bytes = sum(len(v) if isinstance(v, (str, bytes)) else 8 for v in put.rowkey[1])


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


class _Final:
    """One row over the whole batch: before the first decision, after the last."""

    __slots__ = ("first", "last")

    def __init__(self, put: Put) -> None:
        self.first = put
        self.last = put


class _TableChanges:
    __slots__ = ("changed", "deletes", "inserts", "table", "updates")

    def __init__(self, table: TableCodec[Any]) -> None:
        self.table = table
        self.deletes: list[Row] = []
        self.inserts: list[Row] = []
        self.updates: list[Row] = []
        self.changed: set[str] = set()

    def add(self, final: _Final) -> None:
        key = final.first.rowkey[1]
        former, image, row = final.first.former, final.last.image, final.last.row
        if former is None:
            if row is not None:
                self.inserts.append(row)
        elif row is None:
            self.deletes.append(key)
        elif self.table.update_columns:
            self.changed |= shape_of(self.table).changed(former, image)
            self.updates.append(row)
        elif former != image:
            self.deletes.append(key)
            self.inserts.append(row)

    def statements(self) -> list[RowChange]:
        result: list[RowChange] = []
        if self.deletes:
            result.append(Delete(self.table, self.deletes))
        if self.inserts:
            result.append(Insert(self.table, self.inserts))
        if self.updates:
            columns = shape_of(self.table).columns(self.changed)
            pick = self.table.picker((*self.table.key_columns, *columns))
            result.append(Update(self.table, columns, [pick(row) for row in self.updates]))
        return result


def changes_of(tickets: Iterable[Ticket]) -> list[RowChange]:
    """The rows of these decisions, each coalesced to its final image; tables and keys in the database's one order.

    insert + update = insert, insert + delete = nothing, delete + insert = an update, or a deletion and an insertion
    where rows of the table never change.
    """
    finals: dict[tuple[str, Row], _Final] = {}
    for ticket in tickets:
        for put in ticket.puts:
            final = finals.get(put.rowkey)
            if final is None:
                finals[put.rowkey] = _Final(put)
            else:
                final.last = put
    tables: dict[str, _TableChanges] = {}
    for rowkey, final in finals.items():
        changes = tables.get(rowkey[0])
        if changes is None:
            changes = tables[rowkey[0]] = _TableChanges(final.first.table)
        changes.add(final)
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
