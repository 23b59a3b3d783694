"""What a list of servers means: its order, its filters, and how a build request takes part in it. Pure.

The databases of cells and root answer the same in SQL (zcompute.db.lists); here it is for what is decided in memory.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from zcompute.objects.build_request import BUILD_ERROR, BuildRequest
from zcompute.objects.instance import (
    POWER_NOSTATE,
    TASK_DELETING,
    TASK_SCHEDULING,
    VM_BUILDING,
    VM_DELETED,
    VM_ERROR,
    VM_SOFT_DELETED,
    Instance,
)
from zcompute.objects.messages.instances import InstanceBrief, InstanceQuery, SortBy
from zcompute.objects.name_pattern import matches as name_matches
from zcompute.objects.server_status import states_of

# Nova's sort keys that are columns, and the attribute of each.
SORT_KEYS: dict[str, str] = {
    "created_at": "created_at_us",
    "display_name": "name",
    "host": "host",
    "launched_at": "launched_at_us",
    "node": "host",
    "power_state": "power_state",
    "progress": "progress",
    "project_id": "project_id",
    "task_state": "task_state",
    "terminated_at": "deleted_at_us",
    "updated_at": "updated_at_us",
    "user_id": "user_id",
    "uuid": "uuid",
    "vm_state": "vm_state",
}
NULLABLE = frozenset({"host", "launched_at_us", "task_state", "deleted_at_us"})  # none comes before all values
SORT_KEYS_MAX = 4
UUID = "uuid"

Key = tuple[Any, ...]
Shown = TypeVar("Shown", bound=Instance | InstanceBrief)
NEWEST_FIRST = SortBy(key="created_at", descending=True)


@dataclass(frozen=True)
class Order:
    """``columns``: attributes with their direction (True: descending), the last one the uuid."""

    columns: tuple[tuple[str, bool], ...]

    def values(self, instance: Any) -> list[int | str | None]:
        """Where an instance is in this order, as InstanceQuery.after has it."""
        return [getattr(instance, column) for column, _ in self.columns]

    def sorted(self, instances: Iterable[Instance]) -> list[Instance]:
        """In this order."""
        key, descending = sort_key(self)
        return sorted(instances, key=key, reverse=descending)


@lru_cache(64)
def _order(keys: tuple[tuple[str, bool], ...]) -> Order:
    columns: list[tuple[str, bool]] = []
    for key, descending in keys:
        column = SORT_KEYS[key]
        if column not in [known for known, _ in columns]:
            columns.append((column, descending))
        if column == UUID:
            return Order(tuple(columns))
    return Order((*columns, (UUID, columns[0][1])))


def order_of(query: InstanceQuery) -> Order:
    """The query's order. Raises ValueError for a key that there is not, or too many."""
    sort = query.sort or [NEWEST_FIRST]
    unknown = [by.key for by in sort if by.key not in SORT_KEYS]
    if unknown or len(sort) > SORT_KEYS_MAX:
        raise ValueError(f"expected at most {SORT_KEYS_MAX} sort keys of {sorted(SORT_KEYS)}, found {unknown or sort}")
    return _order(tuple([(by.key, by.descending) for by in sort]))


def check(query: InstanceQuery) -> None:
    """Raises ValueError for a query that cannot be meant: from outside, it may be anything."""
    order = order_of(query)
    if query.limit < 0:
        raise ValueError(f"expected a limit of 0 or more, found {query.limit}")
    if query.after is not None and len(query.after) != len(order.columns):
        raise ValueError(f"expected values of {order.columns} to go on from, found {len(query.after)}")


class _Descending:
    """A value that sorts the other way round."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: "_Descending") -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Descending) and bool(other.value == self.value)

    def __hash__(self) -> int:
        return hash(self.value)


@lru_cache(64)
def sort_key(order: Order) -> tuple[Callable[[Any], Any], bool]:
    """A key for sorting, and whether to sort in reverse. As fast as the order allows: it is taken of every row."""
    directions = {descending for _, descending in order.columns}
    names = [column for column, _ in order.columns]
    if len(directions) == 1 and NULLABLE.isdisjoint(names):
        return (attrgetter(*names) if len(names) > 1 else attrgetter(names[0])), directions.pop()
    mixed = len(directions) > 1
    reverse = not mixed and directions.pop()

    def key(instance: Any) -> Key:
        return key_of_values(order, [getattr(instance, name) for name in names], mixed=mixed)

    return key, reverse


def key_of_values(order: Order, values: list[Any], *, mixed: bool) -> Key:
    """A sortable key of values, none before all others."""
    parts = []
    for (_, descending), value in zip(order.columns, values, strict=True):
        part = (0,) if value is None else (1, value)
        parts.append(_Descending(part) if mixed and descending else part)
    return tuple(parts)


def is_after(order: Order, values: list[int | str | None], instance: Instance) -> bool:
    """Whether an instance comes behind these values, and not at them."""
    mine = key_of_values(order, order.values(instance), mixed=True)
    return key_of_values(order, list(values), mixed=True) < mine


def matches(query: InstanceQuery, instance: Instance) -> bool:
    """Whether the filters let an instance through; order, marker and limit aside."""
    if not _of_deleted(query, instance.vm_state):
        return False
    if query.statuses and not states_of(query.statuses).hold(instance.vm_state, instance.task_state):
        return False
    for wanted, found in (
        (query.project_id, instance.project_id),
        (query.user_id, instance.user_id),
        (query.host, instance.host),
        (query.flavorid, instance.flavor.flavorid),
        (query.image_ref, instance.spec.image_ref),
        (query.reservation_id, instance.spec.reservation_id),
        (query.power_state, instance.power_state),
    ):
        if wanted is not None and wanted != found:
            return False
    for many, found in (
        (query.vm_states, instance.vm_state),
        (query.task_states, instance.task_state),
        (query.uuids, instance.uuid),
    ):
        if many and found not in many:
            return False
    if query.name_like is not None and not name_matches(query.name_like, instance.name):
        return False
    since_us, before_us = query.changes_since_us, query.changes_before_us
    return (since_us is None or instance.updated_at_us >= since_us) and (
        before_us is None or instance.updated_at_us <= before_us
    )


def _of_deleted(query: InstanceQuery, vm_state: str) -> bool:
    if vm_state == VM_SOFT_DELETED:
        return query.soft_deleted
    return query.deleted is None or query.deleted == (vm_state == VM_DELETED)


def page_of(query: InstanceQuery, instances: Iterable[Instance]) -> list[Instance]:
    """The page that the query asks for, of all of these."""
    order = order_of(query)
    found = [each for each in instances if matches(query, each)]
    if query.after is not None:
        after = query.after
        found = [each for each in found if is_after(order, after, each)]
    return order.sorted(found)[: query.limit]


# -- build requests ---------------------------------------------------------------------------------------------------


def instance_of(build_request: BuildRequest) -> Instance:
    """A build request as the instance that it will be: scheduling, or in error where no cell was left."""
    in_error = build_request.state == BUILD_ERROR
    instance = Instance(
        uuid=build_request.uuid,
        project_id=build_request.project_id,
        user_id=build_request.user_id,
        name=build_request.name,
        flavor=build_request.flavor,
        spec=build_request.spec,
        mapping_generation=build_request.generation,
        created_at_us=build_request.created_at_us,
        updated_at_us=build_request.fault.created_at_us if build_request.fault else build_request.created_at_us,
        vm_state=VM_ERROR if in_error else VM_BUILDING,
        task_state=None if in_error else TASK_SCHEDULING,
        power_state=POWER_NOSTATE,
        fault=build_request.fault,
    )
    return as_asked_of_root(instance, build_request)


def as_asked_of_root(instance: Shown, build_request: BuildRequest) -> Shown:
    """A server whose deletion the root has accepted and not yet passed on to its cell is being deleted already."""
    if not build_request.delete_requested:
        return instance
    return msgspec.structs.replace(instance, task_state=TASK_DELETING)
