"""What is written as TOML reads back the same."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcompute.cli.toml_text import dumps, value_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = SCALARS | st.lists(SCALARS, max_size=3)
TABLES = st.dictionaries(TEXTS, VALUES, max_size=4)
DOCUMENTS = st.dictionaries(TEXTS, VALUES | TABLES | st.lists(TABLES, min_size=1, max_size=3), max_size=5)


@given(DOCUMENTS)
def test_a_document_reads_back_the_same(document: dict[str, object]) -> None:
    assert tomllib.loads(dumps(document)) == document


def test_a_key_that_ends_in_a_newline_is_quoted() -> None:
    assert tomllib.loads(dumps({"0\n": {}})) == {"0\n": {}}


def test_none_is_left_out() -> None:
    assert tomllib.loads(dumps({"a": 1, "b": None, "c": [{"d": None}]})) == {"a": 1, "c": [{}]}


def test_what_toml_has_not_is_refused() -> None:
    with pytest.raises(TypeError, match="not TOML serializable"):
        value_text(object())
