"""Python values as SQL literals, in bytes.

Ten times faster than PyMySQL's own escaping. Right for connections opened by zcompute.db.native.connection only: they
speak utf8mb4 and have backslash escapes on.
"""

from collections.abc import Iterable

from zcompute.db.columns import BIGINT_MAX


class UnrenderableValue(ValueError):
    """A value that has no literal: not a primitive, an integer beyond 64 bits, or a text that is not Unicode."""


def literal(value: object) -> bytes:
    """One value. Raises UnrenderableValue."""
    if type(value) is str:
        return text_literal(value)
    if type(value) is int:
        if not -BIGINT_MAX - 1 <= value <= BIGINT_MAX:
            raise UnrenderableValue(f"the integer {value} does not fit into 64 bits")
        return b"%d" % value
    if value is None:
        return b"NULL"
    if isinstance(value, bytes):
        return b"x'" + value.hex().encode() + b"'"
    if value is True:
        return b"1"
    if value is False:
        return b"0"
    if isinstance(value, float):
        return _float_literal(value)
    if isinstance(value, str):
        return text_literal(str(value))
    raise UnrenderableValue(f"expected None, int, float, str, bytes or bool, found {type(value).__name__}")


def text_literal(value: str) -> bytes:
    """A text, quoted and escaped."""
    if "'" in value or "\\" in value or "\0" in value:
        value = value.replace("\\", "\\\\").replace("'", "''").replace("\0", "\\0")
    try:
        return b"'" + value.encode() + b"'"
    except UnicodeEncodeError as error:
        raise UnrenderableValue(f"the text is not valid Unicode at position {error.start}") from error


def _float_literal(value: float) -> bytes:
    if value != value or value in (float("inf"), float("-inf")):
        raise UnrenderableValue(f"the database has no {value}")
    return repr(value).encode()


def tuple_literal(values: Iterable[object]) -> bytes:
    """``(a,b,c)``."""
    # Integers are most of what is written: those that fit are not worth a call.
    return b"(%s)" % b",".join(
        [
            b"%d" % value if type(value) is int and -BIGINT_MAX <= value <= BIGINT_MAX else literal(value)
            for value in values
        ]
    )
