"""Lists of clients: whatever the filters, the order and the marker, both databases have what a plain model has."""

import itertools
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.store.lane_writer import LaneWriter, insert
from tests.contract.store.samples import TINY, build_request, instance, new_uuid
from zcompute.db.errors import DatabaseBusy
from zcompute.db.lists import BRIEF_COLUMNS, PENDING_PAGE
from zcompute.db.store import Store
from zcompute.db.tables import BUILD_REQUESTS, INSTANCES
from zcompute.objects.instance import Fault, Instance, ServerSpec
from zcompute.objects.messages.instances import InstanceBrief, InstanceQuery, SortBy
from zcompute.objects.name_pattern import like_of
from zcompute.objects.server_list import SORT_KEYS, instance_of, matches, order_of, page_of

NAMES = ("web", "Web", "web-1", "wéb", "a%b", "a_b", "a|b", "a\\b", "", "web.example", "🐧", "zz")
PATTERNS = (
    "web", "^web", "1$", "^web$", "w.b", "e.*p", "%", "_", r"\|", r"a\\b", "W", "^.$", "^$", "é", r"web\.e", "w.+1",
    "🐧",
)  # fmt: skip
LARGE = msgspec.structs.replace(TINY, flavorid="2", name="m1.large")
NAMED_AS_TINY = msgspec.structs.replace(TINY, flavorid="12", extra_specs={"flavorid": "1"})

BY_TASK_STATE = (["REBOOT"], ["REBUILD", "RESIZE"], ["REBOOT", "ERROR"])
# Each by itself, so that a filter is tried against every value; many together below.
VALUES: dict[str, tuple[Any, ...]] = {
    "project_id": (None, "p1", "p2", "p9", "projét"),
    "statuses": ([], ["ACTIVE"], ["ERROR", "BUILD"], ["DELETED"], ["NONSENSE"], *BY_TASK_STATE, ["SOFT_DELETED"]),
    "vm_states": ([], ["active"], ["error", "building"]),
    "task_states": ([], ["spawning"], ["deleting", "scheduling"]),
    "power_state": (None, 0, 1),
    "name_like": (None, *map(like_of, PATTERNS)),
    "host": (None, "h1", "h2", "höst"),
    "user_id": (None, "u1", "u2"),
    "flavorid": (None, "1", "2", "12", "9"),
    "image_ref": (None, "img", "other", ""),
    "reservation_id": (None, "r-1", "r-2"),
    "changes_since_us": (None, 3, 100),
    "changes_before_us": (None, 3, 100),
    "deleted": (False, True, None),
    "soft_deleted": (True, False),
    "uuids": ([], [new_uuid(3), new_uuid(4), "x", "ü"]),
}


def rows() -> list[Instance]:
    """Servers that have every value of every column in some mixture."""
    found = []
    mixture = zip(
        itertools.cycle(NAMES), itertools.cycle(["p1", "p2", "p1"]),
        itertools.cycle(["active", "building", "error", "deleted", "active", "soft-delete", "stopped"]),
        itertools.cycle([None, "h1", "h2", "h1", None, "h2", "h3"]), itertools.cycle([TINY, LARGE, NAMED_AS_TINY]),
        itertools.cycle([None, "spawning", "deleting", "scheduling", "rebooting", "rebuilding"]),
        range(90), strict=False,
    )  # fmt: skip
    for name, project, vm_state, host, flavor, task_state, number in mixture:
        spec = ServerSpec(
            image_ref=("img", "other", "")[number % 3],
            reservation_id=("r-1", "r-2", "")[number % 7 % 3],
            metadata={"image_ref": "other", "x": "r-1"} if number % 5 else {},
        )
        found.append(
            instance(
                uuid=new_uuid(number), name=name, project_id=project, vm_state=vm_state, host=host, flavor=flavor,
                task_state=task_state, spec=spec, created_at_us=number // 4, updated_at_us=number % 7,
                user_id=("u1", "u2")[number % 2], power_state=number % 2, progress=number % 3,
                launched_at_us=None if number % 3 else number, deleted_at_us=number if vm_state == "deleted" else None,
            )
        )  # fmt: skip
    return found


QUERIES = st.fixed_dictionaries(
    {},
    optional={field: st.sampled_from(values) for field, values in VALUES.items()},
)
SORTS = st.lists(
    st.builds(lambda key, down: SortBy(key=key, descending=down), st.sampled_from(sorted(SORT_KEYS)), st.booleans()),
    max_size=4,
)


def model(instances: list[Instance], query: InstanceQuery) -> list[str]:
    """What the list means, said again in the plainest way: stable sorts, the last key first, then a slice."""
    found = [each for each in instances if matches(query, each)]
    columns = order_of(query).columns
    for column, descending in reversed(columns):
        none = [each for each in found if getattr(each, column) is None]
        some = sorted(
            (each for each in found if getattr(each, column) is not None),
            key=lambda each: getattr(each, column),
            reverse=descending,
        )
        found = some + none if descending else none + some
    uuids = [each.uuid for each in found]
    if query.after is not None:
        assert query.after[-1] is not None
        at = [[getattr(each, column) for column, _ in columns] for each in found].index(query.after)
        uuids = uuids[at + 1 :]
    return uuids[: query.limit]


def query_of(**fields: Any) -> InstanceQuery:
    return InstanceQuery(**{"project_id": None, "limit": 1000, **fields})


def uuids_of(found: list[Any]) -> list[str]:
    return [each.uuid for each in found]


@pytest.mark.parametrize("field", sorted(VALUES))
def test_each_filter_by_itself_finds_what_the_model_finds(store: Store, writer: LaneWriter, field: str) -> None:
    stored = rows()
    writer.commit(insert(INSTANCES, *stored))
    for value in VALUES[field]:
        query = query_of(**{"deleted": None, field: value})
        assert uuids_of(store.list_instances(query)) == model(stored, query), value
        assert store.count_instances(query) == len(model(stored, query))


def brief_of(instance: Instance, query: InstanceQuery) -> InstanceBrief:
    """What a list without details reads of a row: what it shows, and what it is sorted by."""
    wanted = {*BRIEF_COLUMNS, *(column for column, _ in order_of(query).columns)}
    return InstanceBrief(**{column: getattr(instance, column) for column in wanted})


def test_filters_orders_and_markers_together_find_what_the_model_finds(store: Store, writer: LaneWriter) -> None:
    stored = rows()
    writer.commit(insert(INSTANCES, *stored))

    @settings(
        max_examples=60, deadline=timedelta(seconds=20), suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(fields=QUERIES, sort=SORTS, limit=st.integers(1, 30), marker=st.integers(0, 200))
    def holds(fields: dict[str, Any], sort: list[SortBy], limit: int, marker: int) -> None:
        query = query_of(**fields, sort=sort)
        everything = model(stored, query)
        assert uuids_of(store.list_instances(query)) == everything
        assert uuids_of(page_of(query, stored)) == everything
        by_uuid = {each.uuid: each for each in stored}
        query.limit = limit
        if marker < len(everything):
            query.after = order_of(query).values(by_uuid[everything[marker]])
        page = uuids_of(store.list_instances(query))
        assert page == model(stored, query)
        assert page == uuids_of(page_of(query, stored))
        assert [brief_of(each, query) for each in page_of(query, stored)] == store.list_briefs(query)
        assert store.count_instances(query, everything[:3]) == max(0, len(everything) - 3)

    holds()


def test_build_requests_are_listed_as_the_servers_that_they_will_be(root: Store, root_writer: LaneWriter) -> None:
    stored = []
    for number, each in enumerate(rows()):
        in_error = number % 4 == 0
        stored.append(
            build_request(
                uuid=each.uuid, name=each.name, project_id=each.project_id, user_id=each.user_id, flavor=each.flavor,
                spec=each.spec, created_at_us=each.created_at_us, state="error" if in_error else "pending",
                fault=Fault(message="m", created_at_us=number) if in_error else None, delete_requested=number % 9 == 0,
            )
        )  # fmt: skip
    root_writer.commit(insert(BUILD_REQUESTS, *stored))
    shown = [instance_of(each) for each in stored]

    @settings(
        max_examples=60, deadline=timedelta(seconds=20), suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(fields=QUERIES, sort=SORTS, limit=st.integers(1, 30), marker=st.integers(0, 200))
    def holds(fields: dict[str, Any], sort: list[SortBy], limit: int, marker: int) -> None:
        query = query_of(**fields, sort=sort)
        everything = model(shown, query)
        assert uuids_of(root.list_build_requests(query)) == everything
        query.limit = limit
        if marker < len(everything):
            query.after = order_of(query).values({each.uuid: each for each in shown}[everything[marker]])
        assert uuids_of(root.list_build_requests(query)) == model(shown, query)

    holds()


def test_too_many_build_requests_to_choose_from_are_refused_not_cut_off(
    root: Store, root_writer: LaneWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zcompute.db.lists.PENDING_PAGE", 10)
    monkeypatch.setattr("zcompute.db.lists.PENDING_ROWS_MAX", 20)
    root_writer.commit(insert(BUILD_REQUESTS, *[build_request(uuid=new_uuid(number)) for number in range(15)]))
    by_state = query_of(sort=[SortBy(key="vm_state", descending=False)])
    assert len(root.list_build_requests(by_state)) == 15
    root_writer.commit(insert(BUILD_REQUESTS, *[build_request(uuid=new_uuid(number)) for number in range(15, 25)]))
    with pytest.raises(DatabaseBusy, match="more than 20"):
        root.list_build_requests(by_state)
    assert PENDING_PAGE == 1000


def test_an_order_that_there_is_not_is_refused(store: Store) -> None:
    for sort in ([SortBy(key="flavor; DROP TABLE instances")], [SortBy(key="uuid")] * 5):
        with pytest.raises(ValueError, match="sort keys"):
            store.list_instances(query_of(sort=sort))
