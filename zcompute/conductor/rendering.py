"""From an image to what a batch says of its row: while the decision can still be refused alone. Pure.

An update carries the fields that changed, and only those are rendered: the values of an instance that an observation
leaves as they are (its flavor, its spec) are neither packed nor compared.
"""

from collections.abc import Callable, Iterable
from operator import is_not
from typing import Any

from zcompute.conductor.change import Put
from zcompute.db.tables import Row, TableCodec
from zcompute.objects.base import pack
from zcompute.objects.stored import Pack

MASKS_MAX = 4096
FIXED_BYTES = 8  # what a value that is neither text nor bytes counts
KEY_BYTES = 36  # what the key counts where nothing is looked at: a uuid


class TableShape:
    """Which fields of a table's objects changed, which columns they fill, and how these are read from an object."""

    def __init__(self, table: TableCodec[Any]) -> None:
        self._table = table
        self._fields = tuple(name for name in table.kind.__struct_fields__ if name not in table.key_columns)
        self._columns_of = {name: _columns_of(table, name) for name in self._fields}
        self._values = table.getter(self._fields)
        self._masks: dict[tuple[bool, ...], tuple[int, ...]] = {}
        self._columns: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._readers: dict[tuple[str, ...], Callable[[Any], Row]] = {}
        self._sizes: dict[tuple[str, ...], int] = {}
        self.encoded = frozenset(column for column in table.update_columns if column in table.encoders)

    def changed(self, former: Any, image: Any) -> tuple[str, ...]:
        """The fields that differ, in the objects' order."""
        old, new = self._values(former), self._values(image)
        mask = tuple(map(is_not, old, new))  # most values are the very same objects
        places = self._masks.get(mask)
        if places is None:
            places = tuple(place for place, differs in enumerate(mask) if differs)
            if len(self._masks) < MASKS_MAX:
                self._masks[mask] = places
        return tuple([self._fields[place] for place in places if old[place] != new[place]])

    def columns(self, fields: tuple[str, ...]) -> tuple[str, ...]:
        """The columns that these fields fill, in the table's order."""
        columns = self._columns.get(fields)
        if columns is None:
            wanted = {column for name in fields for column in self._columns_of[name]}
            columns = tuple(column for column in self._table.update_columns if column in wanted)
            if len(self._columns) < MASKS_MAX:
                self._columns[fields] = columns
        return columns

    def plain_bytes(self, fields: tuple[str, ...]) -> int:
        """What the columns of these fields count in a batch, 0 when one of them is packed. Texts count as numbers do:
        those that observations change are short, and a batch's limit is of its text and not exact."""
        size = self._sizes.get(fields)
        if size is None:
            columns = self.columns(fields)
            size = FIXED_BYTES * len(columns) if self.encoded.isdisjoint(columns) else 0
            if len(self._sizes) < MASKS_MAX:
                self._sizes[fields] = size
        return size

    def reader(self, columns: tuple[str, ...]) -> Callable[[Any], Row]:
        """A function that takes the key and these columns from an object: the packed ones not packed yet."""
        reader = self._readers.get(columns)
        if reader is None:
            reader = self._table.values((*self._table.key_columns, *columns))
            if len(self._readers) < MASKS_MAX:
                self._readers[columns] = reader
        return reader


def _columns_of(table: TableCodec[Any], field: str) -> tuple[str, ...]:
    """Columns named as the field, or after it ("total_vcpus"); all of them for a field that cannot be placed."""
    columns = table.update_columns
    own = tuple(column for column in columns if column == field or column.startswith(field + "_"))
    return own or columns


_shapes: dict[str, TableShape] = {}


def shape_of(table: TableCodec[Any]) -> TableShape:
    """The table's shape, made once."""
    shape = _shapes.get(table.name)
    if shape is None:
        shape = _shapes[table.name] = TableShape(table)
    return shape


def render_put(put: Put, partition: int, packed: Pack = pack) -> None:
    """Render what the put changes; of a derived row nothing is written. Raises what the codec raises."""
    table, image = put.table, put.image
    if table.derived:
        return
    if image is None:
        put.size_bytes = size_of(put.rowkey[1])
    elif put.former is None or not table.update_columns:
        put.row = table.to_row(image, partition, packed)
        put.size_bytes = size_of(put.row)
    else:
        put.packed = packed
        shape = shape_of(table)
        if put.differs is not None and (plain_bytes := shape.plain_bytes(put.differs)):
            put.fields = put.differs
            put.size_bytes = plain_bytes + KEY_BYTES
            return
        fields = shape.changed(put.former, image)
        if put.rewritten:
            fields = (*(name for name in put.rewritten if name not in fields), *fields)
        put.fields = fields
        columns = shape.columns(fields)
        row = shape.reader(columns)(image)
        put.size_bytes = size_of(row)
        if not shape.encoded.isdisjoint(columns):
            width = len(table.key_columns)
            put.encoded = {
                column: table.encoders[column](value, packed)
                for column, value in zip(columns, row[width:], strict=True)
                if column in shape.encoded
            }
            put.size_bytes += size_of(put.encoded.values())


def size_of(values: Iterable[object]) -> int:
    """Bytes, as far as batches are measured."""
    size = 0
    for value in values:
        kind = type(value)
        size += len(value) if kind is str or kind is bytes else FIXED_BYTES  # type: ignore[arg-type]  # both have one
    return size
