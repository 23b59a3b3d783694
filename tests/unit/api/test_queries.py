"""Query strings of lists: whatever comes, it is understood or refused with a name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcompute.api.auth import Caller
from zcompute.api.errors import ApiError
from zcompute.api.listing import MISSING_CHARS_MAX, named_in_header
from zcompute.api.queries import Query, ServerList, server_list, time_us
from zcompute.objects.messages.instances import SortBy
from zcompute.objects.server_list import SORT_KEYS, check

ADMIN = Caller("ops", "root", True, b"")
ANN = Caller("demo", "ann", False, b"")
NAMES = (
    "limit", "marker", "sort_key", "sort_dir", "status", "name", "flavor", "image", "changes-since", "changes-before",
    "tags", "all_tenants", "project_id", "host", "node", "uuid", "vm_state", "task_state", "power_state", "deleted",
    "user_id", "reservation_id", "with_count", "ip", "_x", "whatever",
)  # fmt: skip
VALUES = st.one_of(
    st.text(max_size=300),
    st.sampled_from(["", "0", "1", "true", "-1", "1e3", "ACTIVE", "deleted", "asc", "desc", "2026-01-01T00:00:00Z"]),
    st.sampled_from(sorted(SORT_KEYS)),
)


def asked(query: Query, caller: Caller) -> ServerList | ApiError:
    try:
        return server_list(query, caller, 1000)
    except ApiError as error:
        return error


@given(query=st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=12), caller=st.sampled_from([ADMIN, ANN]))
def test_any_query_is_a_list_that_cells_take_or_an_error_of_ours(query, caller) -> None:
    wanted = asked(query, caller)
    if isinstance(wanted, ApiError):
        assert wanted.code in (400, 403)
        assert wanted.message
        return
    check(wanted.query)
    assert 0 <= wanted.query.limit <= 1000
    if caller is ANN:
        assert wanted.query.project_id == "demo"
        assert wanted.query.host is wanted.query.user_id is None
        assert wanted.query.deleted is not True


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000),
        ("1970-01-01T00:00:01", 1_000_000),
        ("1970-01-01T00:00:01.5Z", 1_500_000),
        ("1970-01-01T02:00:01+02:00", 1_000_000),
        ("1970-01-01T02:00:01 02:00", 1_000_000),  # a plus that was not quoted
        ("1970-01-02", 86_400_000_000),
        ("1970-01-01 00:00:01", 1_000_000),
        ("1969-12-31T00:00:00Z", 0),
        ("0001-01-01T00:00:00+14:00", 0),
        ("9999-12-31T23:59:59Z", 253_402_300_799_000_000),
        ("yesterday", None),
        ("", None),
        ("2026-02-30T00:00:00Z", None),
        ("2026-01-01T00:00:00+25:00", None),
        ("2026-01-01T00:00:00Z" + "0" * 40, None),
    ],
)
def test_times(text: str, found: int | None) -> None:
    assert time_us(text) == found


def test_directions_stand_for_the_keys_at_their_places() -> None:
    query = [("sort_key", "uuid"), ("sort_key", "metadata"), ("sort_key", "display_name"), ("sort_dir", "asc"),
             ("sort_dir", "desc")]  # fmt: skip
    assert server_list(query, ANN, 10).query.sort == [
        SortBy(key="uuid", descending=False),
        SortBy(key="display_name", descending=False),
    ]
    assert server_list([("sort_dir", "asc")], ANN, 10).query.sort == [SortBy(key="created_at", descending=False)]
    assert server_list([("sort_key", "uuid")], ANN, 10).query.sort == [SortBy(key="uuid", descending=True)]


def test_a_header_names_as_many_cells_as_it_may() -> None:
    assert named_in_header(["c1", "root"]) == "c1,root"
    many = [f"cell-{number:04}" + "x" * 55 for number in range(1000)]
    text = named_in_header(many)
    assert len(text) <= MISSING_CHARS_MAX + 10
    *named, rest = text.split(",")
    assert named == many[: len(named)]
    assert rest == f"+{1000 - len(named)}"
