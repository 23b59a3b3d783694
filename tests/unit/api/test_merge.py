"""Pages of many sources: the first page of all, each server once, with few rows asked for."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.api.servers import build_request, instance
from zcompute.api.merge import Ask, Merge, share_of
from zcompute.objects.build_request import BUILD_ERROR, BuildRequest
from zcompute.objects.instance import Fault, Instance
from zcompute.objects.messages.instances import InstanceQuery, SortBy
from zcompute.objects.server_list import SORT_KEYS, instance_of, order_of, page_of

Answer = Callable[[InstanceQuery], list[Instance]]


def uuids(page: Iterable[Instance]) -> list[str]:
    return [found.uuid for found in page]


def holding(rows: list[Instance]) -> Answer:
    return lambda query: page_of(query, rows)


def merged(
    cells: dict[str, Answer], query: InstanceQuery, pending: Iterable[BuildRequest] = (), asked: list[int] | None = None
) -> list[Instance]:
    """What a list does with a merge, without a wire."""
    merge = Merge(order_of(query), query.limit, cells, list(pending))
    for _ in range(50):
        asks = merge.asks()
        if not asks:
            return merge.page
        for cell, ask in asks.items():
            if asked is not None:
                asked.append(ask.rows)
            wanted = InstanceQuery(
                project_id=None, limit=ask.rows, sort=query.sort, after=ask.after or query.after, deleted=None
            )
            merge.add(cell, cells[cell](wanted), ask)
    raise AssertionError("no end")


def newest(rows: list[list[Instance]], pending: Iterable[BuildRequest] = (), limit: int = 10) -> list[Instance]:
    query = InstanceQuery(project_id=None, limit=limit)
    return merged({f"c{at}": holding(each) for at, each in enumerate(rows)}, query, pending)


def test_newest_first_and_the_uuid_decides_between_equals() -> None:
    pages = [[instance("a", created_at_us=2), instance("c", created_at_us=1)], [instance("b", created_at_us=2)]]
    assert uuids(newest(pages, [build_request("d", created_at_us=3)])) == ["d", "b", "a", "c"]


def test_the_cells_row_wins_over_the_build_request() -> None:
    (found,) = newest([[instance("a", vm_state="active")], []], [build_request("a")])
    assert found.vm_state == "active"


def test_a_deletion_accepted_by_the_root_shows_before_the_cell_knows_of_it() -> None:
    rows = [instance("a", vm_state="active", task_state=None)]
    pending = [build_request("a", delete_requested=True), build_request("b", delete_requested=True)]
    assert {server.uuid: (server.vm_state, server.task_state) for server in newest([rows], pending)} == {
        "a": ("active", "deleting"),
        "b": ("building", "deleting"),
    }


def test_a_build_request_in_error_wins_over_the_left_over_row() -> None:
    pending = build_request("a", state=BUILD_ERROR, fault=Fault(message="No valid host was found."))
    (found,) = newest([[instance("a")]], [pending])
    assert (found.vm_state, found.fault) == ("error", pending.fault)


def test_a_build_request_of_a_later_generation_wins_but_not_over_the_cell_that_took_it() -> None:
    left_over = instance("a", mapping_generation=1, host="old")
    (found,) = newest([[left_over], []], [build_request("a", generation=2)])
    assert (found.host, found.mapping_generation) == (None, 2)
    taken = instance("a", mapping_generation=2, host="new")
    for order in ([left_over], [taken]), ([taken], [left_over]):
        assert [found.host for found in newest(list(order), [build_request("a", generation=2)])] == ["new"]


def test_of_two_cells_the_later_generation_wins() -> None:
    pages = [[instance("a", mapping_generation=2, host="new")], [instance("a", mapping_generation=1, host="old")]]
    for order in (pages, pages[::-1]):
        assert [found.host for found in newest(order)] == ["new"]


def test_a_cell_that_is_dropped_holds_nobody_up() -> None:
    merge = Merge(order_of(InstanceQuery(project_id=None, limit=2)), 2, ["a", "b"])
    asks = merge.asks()
    merge.add("a", [instance("x", created_at_us=1)], asks["a"])
    merge.drop("b")
    assert merge.asks() == {}
    assert uuids(merge.page) == ["x"]


def test_a_cell_that_answers_more_than_asked_or_after_it_was_dropped_disturbs_nobody() -> None:
    merge = Merge(order_of(InstanceQuery(project_id=None, limit=1)), 1, ["a", "b"])
    asks = merge.asks()
    merge.drop("b")
    merge.add("b", [instance("late")], asks["b"])
    merge.add("a", [instance(f"{n}", created_at_us=9 - n) for n in range(9)], asks["a"])
    assert merge.asks() == {}
    assert uuids(merge.page) == ["0"]


@pytest.mark.parametrize("cells", [1, 2, 3, 10, 100])
def test_servers_spread_over_cells_are_had_for_little_more_than_the_page(cells: int) -> None:
    rows: list[list[Instance]] = [[] for _ in range(cells)]
    for number in range(3000):
        rows[number * 7919 % cells].append(instance(f"{number:05}", created_at_us=number))
    asked: list[int] = []
    query = InstanceQuery(project_id=None, limit=1000)
    found = merged({f"c{at}": holding(each) for at, each in enumerate(rows)}, query, asked=asked)
    assert uuids(found) == [f"{number:05}" for number in range(2999, 1999, -1)]
    assert len(asked) == cells  # each once
    assert sum(asked) <= {1: 1000, 2: 1120, 3: 1150, 10: 1260, 100: 2000}[cells]


def test_a_cell_that_has_them_all_is_asked_again_and_the_others_are_not() -> None:
    rows = [[instance(f"{n:04}", created_at_us=n) for n in range(2000)], *([] for _ in range(9))]
    asked: list[int] = []
    query = InstanceQuery(project_id=None, limit=1000)
    found = merged({f"c{at}": holding(each) for at, each in enumerate(rows)}, query, asked=asked)
    assert len(found) == 1000
    assert sum(asked[:10]) + asked[10] <= 2300
    assert len(asked) == 11


def test_a_cell_whose_reply_was_cut_is_asked_for_the_rest() -> None:
    rows = [instance(f"{n}", created_at_us=n) for n in range(9)]
    merge = Merge(order_of(InstanceQuery(project_id=None, limit=6)), 6, ["a", "b"])
    asks = merge.asks()
    merge.add("a", rows[:5:-1], asks["a"], cut=True)
    merge.add("b", [instance("last", created_at_us=0)], asks["b"])
    asks = merge.asks()
    assert asks["a"].after == [6, "6"]
    merge.add("a", rows[5::-1], asks["a"])
    assert merge.asks() == {}
    assert uuids(merge.page) == ["8", "7", "6", "5", "4", "3"]
    assert not merge.more


def test_a_page_of_servers_that_are_too_large_ends_early_and_says_that_there_are_more() -> None:
    rows = [instance(f"{n:02}", created_at_us=n) for n in range(90)]
    merge = Merge(order_of(InstanceQuery(project_id=None, limit=50)), 50, ["a", "b"])
    rounds = 0
    while asks := merge.asks():
        rounds += 1
        for cell, ask in asks.items():
            found = [] if cell == "b" else page_of(InstanceQuery(project_id=None, limit=1, after=ask.after), rows)
            merge.add(cell, found, ask, cut=cell == "a")
    assert merge.more
    assert (rounds, len(merge.page)) == (8, 8)


@pytest.mark.parametrize("limit", [2, 3, 10])
def test_nothing_behind_the_last_build_request_of_a_cut_reply_is_shown(limit: int) -> None:
    pending = [build_request("p9", created_at_us=9), build_request("p7", created_at_us=7)]
    rows = [instance(f"a{at}", created_at_us=at) for at in (8, 6, 5)]
    query = InstanceQuery(project_id=None, limit=limit)
    merge = Merge(order_of(query), limit, ["a"], pending, pending_cut=True)
    while asks := merge.asks():
        merge.add("a", page_of(InstanceQuery(project_id=None, limit=asks["a"].rows), rows), asks["a"])
    assert uuids(merge.page) == ["p9", "a8", "p7"][:limit]
    assert merge.more == (limit == 10)


def test_shares_are_never_more_than_the_page() -> None:
    assert [share_of(1000, 1), share_of(1, 10), share_of(20, 2), share_of(1000, 10)] == [1000, 1, 16, 124]


ROWS = st.lists(
    st.tuples(
        st.integers(0, 3), st.integers(0, 2), st.sampled_from([None, "h1", "h2"]), st.sampled_from(["active", "error"])
    ),
    max_size=40,
)
SORTS = st.lists(
    st.builds(lambda key, down: SortBy(key=key, descending=down), st.sampled_from(sorted(SORT_KEYS)), st.booleans()),
    max_size=3,
)


@given(rows=ROWS, sort=SORTS, limit=st.integers(1, 10), requests=st.integers(0, 5))
def test_walking_page_by_page_sees_each_server_once_and_in_order(rows, sort, limit, requests) -> None:
    cells: list[list[Instance]] = [[], [], []]
    for number, (time_us, cell, host, state) in enumerate(rows):
        name = f"n{number % 3}"
        cells[cell].append(instance(f"{number:03}", created_at_us=time_us, host=host, vm_state=state, name=name))
    pending = [build_request(f"p{number}", created_at_us=number % 4) for number in range(requests)]
    everything = InstanceQuery(project_id=None, limit=1000, sort=sort)
    order = order_of(everything)
    all_of_all = merged({f"c{at}": holding(each) for at, each in enumerate(cells)}, everything, pending)
    one_cell = [row for each in cells for row in each]
    expected = newest_of(order, one_cell, pending)
    assert uuids(all_of_all) == expected
    seen: list[str] = []
    after = None
    while True:
        query = InstanceQuery(project_id=None, limit=limit, sort=sort, after=after)
        asked_root = page_of(query, [each for each in all_of_all if each.uuid.startswith("p")])
        here = [request for request in pending if request.uuid in uuids(asked_root)]
        page = merged({f"c{at}": holding(each) for at, each in enumerate(cells)}, query, here)
        seen += uuids(page)
        if len(page) < limit:
            break
        after = order.values(page[-1])
    assert seen == expected


COPIES = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 2), st.integers(1, 3)), max_size=30, unique_by=lambda row: row[:2]
)


@given(copies=COPIES, limit=st.integers(1, 10), share=st.integers(1, 3))
def test_a_server_that_is_in_several_cells_is_shown_once_as_its_latest_generation_has_it(copies, limit, share) -> None:
    cells: list[list[Instance]] = [[], [], []]
    newest_generation: dict[str, int] = {}
    for number, cell, generation in copies:
        uuid = f"{number}"
        cells[cell].append(instance(uuid, created_at_us=number // 2, mapping_generation=generation))
        newest_generation[uuid] = max(newest_generation.get(uuid, 0), generation)
    query = InstanceQuery(project_id=None, limit=limit)
    merge = Merge(order_of(query), limit, [f"c{at}" for at in range(3)])
    while asks := merge.asks():
        for cell, ask in asks.items():  # few rows at a time, so that one server comes in different rounds
            wanted = InstanceQuery(project_id=None, limit=min(share, ask.rows), after=ask.after)
            found = page_of(wanted, cells[int(cell[1:])])
            merge.add(cell, found, Ask(wanted.limit, ask.after))
    assert [(row.uuid, row.mapping_generation) for row in merge.page] == [
        (uuid, newest_generation[uuid])
        for uuid in sorted(newest_generation, key=lambda uuid: (int(uuid) // 2, uuid), reverse=True)
    ][:limit]


def newest_of(order, rows: list[Instance], pending: list[BuildRequest]) -> list[str]:
    servers = [*rows, *map(instance_of, pending)]
    for column, descending in reversed(order.columns):  # a stable sort by each key, the last first
        servers.sort(key=lambda row: (getattr(row, column) is not None, getattr(row, column) or 0)
                     if not isinstance(getattr(row, column), str) else (True, getattr(row, column)),
                     reverse=descending)  # fmt: skip
    return uuids(servers)
