"""Literals: what cannot be said in SQL is refused."""

import math

import pytest

from zcompute.db.native.literal import UnrenderableValue, literal, tuple_literal
from zcompute.db.native.session import bound


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, b"NULL"),
        (0, b"0"),
        (-5, b"-5"),
        (True, b"1"),
        (False, b"0"),
        (1.5, b"1.5"),
        ("", b"''"),
        ("it's", b"'it''s'"),
        ("back\\slash", b"'back\\\\slash'"),
        ("\\'", b"'\\\\'''"),
        ("nul\0", b"'nul\\0'"),
        ("ä", "'ä'".encode()),
        (b"", b"x''"),
        (b"\x00'\\", b"x'00275c'"),
    ],
)
def test_literals(value: object, expected: bytes) -> None:
    assert literal(value) == expected


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, math.nan, math.inf, "\ud800", [1], object()])
def test_what_has_no_literal_is_refused(value: object) -> None:
    with pytest.raises(UnrenderableValue):
        literal(value)


def test_tuples() -> None:
    assert tuple_literal((1, "a", None)) == b"(1,'a',NULL)"


def test_values_are_put_where_their_names_are_and_never_looked_into() -> None:
    sql = "SELECT a FROM t WHERE a = :a AND b IN :b"
    assert bound(sql, {"a": ":b '\\", "b": [1, 2]}) == b"SELECT a FROM t WHERE a = ':b ''\\\\' AND b IN (1,2)"
    with pytest.raises(KeyError):
        bound(sql, {"a": 1})
