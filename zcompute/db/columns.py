"""Column types of the schema, and the limits that go with them.

Ids are ASCII and compare byte for byte; texts are UTF-8 and compare byte for byte too (``nopad``: a trailing space
counts, as it does on SQLite). SQLite enforces neither lengths nor ranges, so there CHECK constraints do, and a row
that one database refuses is refused by all.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

INT_MAX = 2**31 - 1
SMALLINT_MAX = 2**15 - 1
BIGINT_MAX = 2**63 - 1
BLOB_BYTES_MAX = 2**24 - 1

TABLE_OPTIONS: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_nopad_bin",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_nopad_bin",
}


def ident(length: int) -> sa.types.TypeEngine[str]:
    """An ASCII identifier."""
    native = mysql.VARCHAR(length, charset="ascii", collation="ascii_nopad_bin")
    return sa.String(length).with_variant(native, "mysql", "mariadb")


def text(length: int) -> sa.types.TypeEngine[str]:
    """A UTF-8 text of at most ``length`` characters."""
    native = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_nopad_bin")
    return sa.String(length).with_variant(native, "mysql", "mariadb")


def blob() -> sa.types.TypeEngine[bytes]:
    """Packed bytes, up to 16 MiB."""
    return sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def serial() -> sa.types.TypeEngine[int]:
    """A 64-bit key that the database numbers (SQLite numbers INTEGER only)."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def problem_of(column: sa.Column[Any], value: object) -> str | None:
    """Why the database would refuse this value in this column; None when it would not."""
    kind = column.type
    if value is None:
        return None if column.nullable else "is NULL"
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        limit = _int_max(kind)
        return None if -limit - 1 <= value <= limit else f"is {value}, out of the column's range"
    if isinstance(value, str):
        return _text_problem(kind, value)
    if isinstance(value, bytes) and len(value) > BLOB_BYTES_MAX:
        return f"has {len(value)} bytes, at most {BLOB_BYTES_MAX} are allowed"
    return None


def _text_problem(kind: sa.types.TypeEngine[Any], value: str) -> str | None:
    length = kind.length if isinstance(kind, sa.String) else None
    if length is not None and len(value) > length:
        return f"has {len(value)} characters, at most {length} are allowed"
    if is_ascii(kind):
        return None if value.isascii() else "is not ASCII"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    return None


def is_ascii(kind: sa.types.TypeEngine[Any]) -> bool:
    """True for the columns that ``ident`` makes."""
    variant = getattr(kind, "_variant_mapping", {}).get("mysql")
    return isinstance(variant, mysql.VARCHAR) and variant.charset == "ascii"


def _int_max(kind: sa.types.TypeEngine[Any]) -> int:
    if isinstance(kind, sa.BigInteger):
        return BIGINT_MAX
    return SMALLINT_MAX if isinstance(kind, sa.SmallInteger) else INT_MAX


def sqlite_checks(table: str, columns: Sequence[sa.Column[Any]]) -> list[sa.CheckConstraint]:
    """What MariaDB's column types refuse by themselves, as CHECK constraints that only SQLite gets."""
    checks = []
    for column in columns:
        rule = _check_of(column)
        if rule is not None:
            check = sa.CheckConstraint(rule, name=f"ck_{table}_{column.name}")
            checks.append(check.ddl_if(dialect="sqlite"))
    return checks


def _check_of(column: sa.Column[Any]) -> str | None:
    kind, name = column.type, column.name
    if isinstance(kind, sa.String) and not isinstance(kind, sa.Text) and kind.length is not None:
        rule = f"length({name}) <= {kind.length}"
        # GLOB's set of all characters up to DEL, so that what is left is not ASCII.
        return f"{rule} AND {name} NOT GLOB '*[^' || char(1) || '-' || char(127) || ']*'" if is_ascii(kind) else rule
    if isinstance(kind, sa.Integer) and not isinstance(kind, sa.BigInteger) and not column.primary_key:
        limit = _int_max(kind)
        return f"{name} BETWEEN {-limit - 1} AND {limit}"
    return None
