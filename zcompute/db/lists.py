"""The lists of clients: filters, order, marker, in SQL that both databases answer the same.

Every list follows an index where its order has one: newest first, by name, by uuid, and by host over all projects.
What each change of state would move in an index (updated_at, vm_state, ...) has none: such an order is sorted by the
database, of a project's rows or the cell's (docs/decisions/0019).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import msgspec

from zcompute.db.errors import DatabaseBusy
from zcompute.db.session import Session
from zcompute.db.store import SCAN_ROWS_MAX
from zcompute.db.tables import BUILD_REQUESTS, INSTANCES, Projection, RowForm
from zcompute.db.where import Where
from zcompute.objects.build_request import BUILD_ERROR, BUILD_PENDING, BuildRequest
from zcompute.objects.instance import ARRIVING, LEFT, VM_BUILDING, VM_DELETED, VM_ERROR, VM_SOFT_DELETED, Instance
from zcompute.objects.messages.instances import InstanceBrief, InstanceQuery
from zcompute.objects.name_pattern import ESCAPE, plain_part
from zcompute.objects.server_list import NULLABLE, Order, instance_of, order_of, page_of
from zcompute.objects.server_status import states_of

PENDING_PAGE = 1_000
PENDING_ROWS_MAX = 20_000  # read for a list whose order or filters are of no column of theirs
# Of a packed object, where its first field may begin: behind the array, the name, the version, the map.
_FIRST_FIELD_AT_MAX = 24

BRIEF_COLUMNS = ("uuid", "name", "mapping_generation", "crossing")

# By the columns of an order: the index over all projects, and the one of a project's servers.
_INDEXES: dict[tuple[str, ...], tuple[str, str]] = {
    ("created_at_us", "uuid"): ("ix_instances_created", "ix_instances_project"),
    ("name", "uuid"): ("ix_instances_name", "ix_instances_project_name"),
}

P = TypeVar("P")

_BUILD_STATES = {VM_BUILDING: BUILD_PENDING, VM_ERROR: BUILD_ERROR}
_BUILD_COLUMNS = frozenset({"created_at_us", "name", "project_id", "user_id", "uuid"})

_encode = msgspec.msgpack.Encoder().encode


def list_instances(session: Session, query: InstanceQuery) -> list[Instance]:
    """Store.list_instances."""
    return _page(session, INSTANCES, query)


def list_briefs(session: Session, query: InstanceQuery) -> list[InstanceBrief]:
    """Store.list_briefs."""
    form = _brief_of(tuple(column for column, _ in order_of(query).columns))
    return _page(session, form, query)


@lru_cache(64)
def _brief_of(sorted_by: tuple[str, ...]) -> Projection[InstanceBrief]:
    return Projection(INSTANCES.name, InstanceBrief, tuple(dict.fromkeys((*BRIEF_COLUMNS, *sorted_by))))


def _page(session: Session, form: RowForm[P], query: InstanceQuery) -> list[P]:
    where = _instances(query)
    order = order_of(query)
    if query.after is not None:
        where.add(_after(where, order, query.after))
    sql = where.select(form, _order_by(order), _rows(query), index=_index(query, order))
    return session.objects(form, sql, **where.values)


def _index(query: InstanceQuery, order: Order) -> str:
    """The index that a list without filters follows; "" where the database is to choose.

    Left alone MariaDB 10.11 reads and sorts all of a table for a page of a twentieth of it, five times as dear. With
    filters it may be right: an index is of no use where few of the rows that it leads to are wanted.
    """
    directions = {descending for _, descending in order.columns}
    indexes = _INDEXES.get(tuple([column for column, _ in order.columns]))
    if indexes is None or len(directions) > 1:
        return ""
    plain = InstanceQuery(
        project_id=query.project_id, limit=query.limit, sort=query.sort, after=query.after, deleted=query.deleted,
        soft_deleted=query.soft_deleted,
    )  # fmt: skip
    if query.deleted or query != plain:
        return ""
    return indexes[query.project_id is not None]


def count_instances(session: Session, query: InstanceQuery, without: Sequence[str]) -> int:
    """Store.count_instances."""
    where = _instances(query)
    where.add("crossing <> :arriving", arriving=ARRIVING)  # counted where it comes from
    if without:
        where.add(f"uuid NOT IN :{where.name(list(without))}")
    ((count,),) = session.select(where.count(INSTANCES), **where.values)
    return int(count)


def list_build_requests(session: Session, query: InstanceQuery) -> list[BuildRequest]:
    """Store.list_build_requests."""
    if query.host is not None or query.deleted is True:
        return []
    order = order_of(query)
    if _needs_all(query, order):
        return _of_all(session, query)
    where = _build_requests(query)
    if query.after is not None:
        where.add(_after(where, order, query.after))
    sql = where.select(BUILD_REQUESTS, _order_by(order), _rows(query))
    return session.objects(BUILD_REQUESTS, sql, **where.values)


def _needs_all(query: InstanceQuery, order: Order) -> bool:
    """Whether it asks for what only the server shown has, and no column."""
    return (
        bool(query.task_states)
        or query.power_state is not None
        or query.changes_since_us is not None
        or query.changes_before_us is not None
        or not _BUILD_COLUMNS.issuperset([column for column, _ in order.columns])
    )


def _of_all(session: Session, query: InstanceQuery) -> list[BuildRequest]:
    """The page, decided in memory. Raises DatabaseBusy where there are more than PENDING_ROWS_MAX to look at."""
    found: dict[str, BuildRequest] = {}
    after = ""
    while True:
        where = _build_requests(query)
        if after:
            where.add(f"uuid > :{where.name(after)}")
        page = session.objects(BUILD_REQUESTS, where.select(BUILD_REQUESTS, "uuid", PENDING_PAGE), **where.values)
        found.update((each.uuid, each) for each in page)
        if len(page) < PENDING_PAGE:
            break
        if len(found) >= PENDING_ROWS_MAX:
            raise DatabaseBusy(f"more than {PENDING_ROWS_MAX} build requests to choose from: filter them by more")
        after = page[-1].uuid
    return [found[each.uuid] for each in page_of(query, map(instance_of, found.values()))][: _rows(query)]


def _rows(query: InstanceQuery) -> int:
    return max(0, min(query.limit, SCAN_ROWS_MAX))


# -- filters ----------------------------------------------------------------------------------------------------------


def _instances(query: InstanceQuery) -> Where:
    where = Where()
    where.add("crossing <> :left", left=LEFT)
    _add_common(where, query)
    _add_ident(where, "host", query.host)
    if query.statuses:
        states = states_of(query.statuses)
        where.equals("vm_state", sorted(states.vm_states))
        if states.task_states is not None:
            where.equals("task_state", sorted(states.task_states))
    if query.vm_states:
        where.equals("vm_state", query.vm_states)
    if query.task_states:
        where.equals("task_state", query.task_states)
    if query.power_state is not None:
        where.equals("power_state", query.power_state)
    if query.changes_since_us is not None:
        where.add(f"updated_at_us >= :{where.name(query.changes_since_us)}")
    if query.changes_before_us is not None:
        where.add(f"updated_at_us <= :{where.name(query.changes_before_us)}")
    _add_deleted(where, query)
    return where


def _add_deleted(where: Where, query: InstanceQuery) -> None:
    if query.deleted:
        where.equals("vm_state", [VM_DELETED, VM_SOFT_DELETED] if query.soft_deleted else VM_DELETED)
        return
    left_out = [] if query.deleted is None else [VM_DELETED]
    left_out += [] if query.soft_deleted else [VM_SOFT_DELETED]
    for vm_state in left_out:
        where.add(f"vm_state <> :{where.name(vm_state)}")


def _build_requests(query: InstanceQuery) -> Where:
    where = Where()
    _add_common(where, query)
    wanted = []
    if query.statuses:
        wanted.append(set(_at_rest(query)))
    if query.vm_states:
        wanted.append(set(query.vm_states))
    for states in wanted:
        where.equals("state", sorted(_BUILD_STATES[state] for state in states if state in _BUILD_STATES))
    return where


def _at_rest(query: InstanceQuery) -> frozenset[str]:
    """The vm_states that the statuses ask for where no task is under way: a build request has none but scheduling."""
    states = states_of(query.statuses)
    return states.vm_states if states.task_states is None else frozenset()


def _add_common(where: Where, query: InstanceQuery) -> None:
    _add_ident(where, "project_id", query.project_id)
    _add_ident(where, "user_id", query.user_id)
    if query.uuids:
        where.equals("uuid", [uuid for uuid in query.uuids if uuid.isascii()])
    if query.name_like is not None:
        _add_name(where, query.name_like)
    if query.flavorid is not None:
        _add_first_field(where, "flavor", "flavorid", query.flavorid)
    if query.image_ref is not None:
        _add_first_field(where, "spec", "image_ref", query.image_ref)
    if query.reservation_id is not None:
        needle = _encode("reservation_id") + _encode(query.reservation_id)
        where.add(f"INSTR(spec, :{where.name(needle)}) > 0")


def _add_ident(where: Where, column: str, value: str | None) -> None:
    """An ASCII column: comparing it with another text would read the whole table."""
    if value is not None:
        where.equals(column, value if value.isascii() else [])


def _add_name(where: Where, like: str) -> None:
    part = plain_part(like)
    if part is not None:
        where.add(f"INSTR(name, :{where.name(part)}) > 0")
    elif like != "%":
        where.add(f"name LIKE :{where.name(like)} ESCAPE '{ESCAPE}'")


def _add_first_field(where: Where, column: str, field: str, value: str) -> None:
    """The object packed in a column has this value in its first field. It is found by its bytes, where that field must
    be: what clients may write stands further behind."""
    if not value:  # it is left out where it is ""
        where.add(f"INSTR({column}, :{where.name(_encode(field))}) NOT BETWEEN 1 AND {_FIRST_FIELD_AT_MAX}")
        return
    needle = where.name(_encode(field) + _encode(value))
    where.add(f"INSTR({column}, :{needle}) BETWEEN 1 AND {_FIRST_FIELD_AT_MAX}")


# -- order ------------------------------------------------------------------------------------------------------------


def _order_by(order: Order) -> str:
    return ", ".join(f"{column} {'DESC' if descending else 'ASC'}" for column, descending in order.columns)


def _after(where: Where, order: Order, values: Sequence[int | str | None]) -> str:
    """Rows strictly behind these values.

    Of each column first the bound that says nothing new, but is the one for which an index is used; then: beyond it, or
    (it being equal) the columns that follow.
    """
    condition = ""
    for (column, descending), value in reversed(list(zip(order.columns, values, strict=True))):
        bound, beyond = _bounds(where, column, value, descending=descending)
        if not condition:
            condition = beyond
            continue
        condition = f"{bound} AND ({beyond} OR ({condition}))" if bound else f"({beyond} OR ({condition}))"
    return condition


def _bounds(where: Where, column: str, value: int | str | None, *, descending: bool) -> tuple[str, str]:
    """At or behind a value, and behind it. None comes before all values, as both databases have it."""
    nullable = column in NULLABLE
    if value is None:
        if descending:
            return f"{column} IS NULL", "1 = 0"
        return "", f"{column} IS NOT NULL"
    name = where.name(value)
    if not descending:
        return f"{column} >= :{name}", f"{column} > :{name}"
    if nullable:
        return f"({column} <= :{name} OR {column} IS NULL)", f"({column} < :{name} OR {column} IS NULL)"
    return f"{column} <= :{name}", f"{column} < :{name}"
