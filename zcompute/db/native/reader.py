"""Rows of MariaDB's text protocol as typed objects, straight from the packets.

A reader is a function written for the columns of one form: one that looks up at run time what each column is takes
twice the time for a brief (docs/decisions/0020). Its source is made of our own tables' columns, nothing from outside,
once a form.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import sqlalchemy as sa

from zcompute.db.native.rows import NULL, cells, long_value
from zcompute.db.schema import TABLES
from zcompute.db.tables import RowForm

T = TypeVar("T")

READERS_KEPT_MAX = 256

Converter = Callable[[bytes], Any]

_HEAD = """\
def read(row):
    at = 0
"""
# partition_id, which is no field and never long or null.
_SKIPPED = """\
    at += row[at] + 1
"""
_COLUMN = """\
    size = row[at]
    at += 1
    if size < {null}:
        end = at + size
        v{n} = {value}
        at = end
    elif size == {null}:
        v{n} = None
    else:
        at, size = long_value(row, at, size)
        end = at + size
        v{n} = {value}
        at = end
"""
_DIGIT = "row[at] - 48 if size == 1 else int(row[at:end])"  # most numbers have one digit: a third of the time


@lru_cache(READERS_KEPT_MAX)
def reader_of(table: RowForm[T]) -> Callable[[bytes], T]:
    """row_reader, made once a form."""
    return row_reader(table)


def row_reader(table: RowForm[T]) -> Callable[[bytes], T]:
    """A function that makes the object of a row's packet; the row has all ``table.columns`` in their order."""
    if any(end - start > 1 for _, start, end, _ in table.readers):
        return _general_reader(table)
    known: dict[str, Any] = {"kind": table.kind, "long_value": long_value}
    fields = {start: (attribute, decode) for attribute, start, _, decode in table.readers}
    source, values = [_HEAD], []
    for n, column in enumerate(table.columns):
        if n not in fields:
            source.append(_SKIPPED)
            continue
        attribute, decode = fields[n]
        source.append(_COLUMN.format(n=n, null=NULL, value=_value(table, column, decode, f"decode{n}", known)))
        values.append(f"{attribute}=v{n}")
    source.append(f"    return kind({', '.join(values)})\n")
    exec("".join(source), known)
    read: Callable[[bytes], T] = known["read"]
    return read


def _value(
    table: RowForm[Any], column: str, decode: Callable[..., Any] | None, name: str, known: dict[str, Any]
) -> str:
    """The expression of a column's value, which is ``row[at:end]``; what it calls is added to what is known."""
    if decode is bool:
        return 'row[at:end] != b"0"'
    convert = decode or _converter(TABLES[table.name].c[column].type)
    if convert is int:
        return _DIGIT
    if convert is bytes:
        return "row[at:end]"
    if convert is bytes.decode:
        return "row[at:end].decode()"
    known[name] = convert
    return f"{name}(row[at:end])"


def _general_reader(table: RowForm[T]) -> Callable[[bytes], T]:
    """For tables with fields of several columns."""
    converters = [_converter(TABLES[table.name].c[name].type) for name in table.columns]

    def read(row: bytes) -> T:
        return table.from_row(
            tuple([None if v is None else convert(v) for v, convert in zip(cells(row), converters, strict=True)])
        )

    return read


def _converter(kind: sa.types.TypeEngine[Any]) -> Converter:
    if isinstance(kind, sa.LargeBinary):
        return bytes
    if isinstance(kind, sa.String):
        return bytes.decode
    if isinstance(kind, sa.Float):
        return float
    if isinstance(kind, sa.Integer | sa.Boolean):
        return int
    raise TypeError(f"a column of {kind!r} has no reader")
