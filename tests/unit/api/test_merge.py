from hypothesis import given
from hypothesis import strategies as st

from tests.unit.api.servers import build_request, instance
from zcompute.api.merge import merge_pages
from zcompute.objects.build_request import BUILD_ERROR
from zcompute.objects.instance import Fault


def uuids(page) -> list[str]:
    return [found.uuid for found in page]


def test_newest_first_and_the_uuid_decides_between_equals():
    pages = [[instance("a", created_at_us=2), instance("c", created_at_us=1)], [instance("b", created_at_us=2)]]
    assert uuids(merge_pages(pages, [build_request("d", created_at_us=3)], 10)) == ["d", "b", "a", "c"]


def test_the_cells_row_wins_over_the_build_request():
    (found,) = merge_pages([[instance("a", vm_state="active")]], [build_request("a")], 10)
    assert found.vm_state == "active"


def test_a_deletion_accepted_by_the_root_shows_before_the_cell_knows_of_it():
    rows = [instance("a", vm_state="active", task_state=None)]
    pending = [build_request("a", delete_requested=True), build_request("b", delete_requested=True)]
    found = merge_pages([rows], pending, 10)
    assert {server.uuid: (server.vm_state, server.task_state) for server in found} == {
        "a": ("active", "deleting"),
        "b": ("building", "deleting"),
    }


def test_a_build_request_in_error_wins_over_the_left_over_row():
    pending = build_request("a", state=BUILD_ERROR, fault=Fault(message="No valid host was found."))
    (found,) = merge_pages([[instance("a")]], [pending], 10)
    assert (found.vm_state, found.fault) == ("error", pending.fault)


def test_a_build_request_of_a_later_generation_wins():
    (found,) = merge_pages([[instance("a", mapping_generation=1, host="old")]], [build_request("a", generation=2)], 10)
    assert (found.host, found.mapping_generation) == (None, 2)


def test_of_two_cells_the_later_generation_wins():
    pages = [[instance("a", mapping_generation=2, host="new")], [instance("a", mapping_generation=1, host="old")]]
    for order in (pages, pages[::-1]):
        assert [found.host for found in merge_pages(order, [], 10)] == ["new"]


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30, unique_by=lambda row: row),
    limit=st.integers(1, 10),
)
def test_pages_of_sources_merge_into_the_first_page_of_all(rows, limit):
    """Walking page by page sees each server once, in order."""
    servers = [
        (source, instance(f"{number:03}", created_at_us=time_us)) for number, (time_us, source) in enumerate(rows)
    ]

    def page_after(source: int, marker: tuple[int, str] | None):
        rows = [
            found
            for where, found in servers
            if where == source and (marker is None or (found.created_at_us, found.uuid) < marker)
        ]
        return sorted(rows, key=lambda found: (found.created_at_us, found.uuid), reverse=True)[:limit]

    seen, marker = [], None
    while page := merge_pages([page_after(source, marker) for source in range(3)], [], limit):
        seen += page
        marker = (page[-1].created_at_us, page[-1].uuid)
        if len(page) < limit:
            break
    everything = sorted((found for _, found in servers), key=lambda f: (f.created_at_us, f.uuid), reverse=True)
    assert uuids(seen) == uuids(everything)
