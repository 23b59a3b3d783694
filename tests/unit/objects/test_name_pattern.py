"""Names by the part of regular expressions that costs a bounded time: what is taken means what Nova's means."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcompute.objects.name_pattern import RUNS_MAX, like_of, matches, plain_part


@pytest.mark.parametrize(
    ("expression", "like"),
    [
        ("web", "%web%"),
        ("^web", "web%"),
        ("web$", "%web"),
        ("^web$", "web"),
        ("^$", ""),
        ("", "%"),
        ("a.c", "%a_c%"),
        ("a.*c", "%a%c%"),
        ("a.+c", "%a_%c%"),
        (".*", "%"),
        (r"a\.c", "%a.c%"),
        (r"cost\$", "%cost$%"),
        (r"\\$", "%\\"),
        ("100%", "%100|%%"),
        ("a_b", "%a|_b%"),
        (r"a\|b", "%a||b%"),
    ],
)
def test_expressions_and_their_patterns(expression: str, like: str) -> None:
    assert like_of(expression) == like


@pytest.mark.parametrize(
    "expression", ["a|b", "[ab]", "a*", "(a)", "a{2}", "a?", "a+", "\\", r"\d", "a^b", "a$b", r"\b"]
)
def test_what_cannot_be_had_is_refused_not_taken_for_something_else(expression: str) -> None:
    with pytest.raises(ValueError, match=r"it ends|not taken"):
        like_of(expression)


def test_runs_are_counted() -> None:
    like_of(".*a" * RUNS_MAX)
    with pytest.raises(ValueError, match="more than"):
        like_of("a.*" * (RUNS_MAX + 3))


PARTS = st.sampled_from(["a", "b", ".", ".*", ".+", r"\.", r"\|", "%", "_", r"\\", "é", " "])


@given(
    parts=st.lists(PARTS, max_size=7),
    begin=st.booleans(),
    end=st.booleans(),
    name=st.text("ab.|%_\\é ", max_size=12),
)
def test_it_matches_just_what_the_expression_matches(parts: list[str], begin: bool, end: bool, name: str) -> None:
    expression = "^" * begin + "".join(parts) + "$" * end
    strict = "^" * begin + "".join(parts) + r"\Z" * end  # no name ends with a line's end
    assert matches(like_of(expression), name) == (re.search(strict, name) is not None)
    part = plain_part(like_of(expression))
    if part is not None:
        assert (part in name) == matches(like_of(expression), name)


def test_the_worst_pattern_takes_no_time() -> None:
    began_s = time.monotonic()
    assert not matches(like_of("a.*" * RUNS_MAX + "b"), "a" * 255)
    assert time.monotonic() - began_s < 5  # to go back and forth would take years
