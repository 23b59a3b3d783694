"""Reads of objects: by key, by page, and the lists that clients see."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from zcompute.db.columns import is_ascii
from zcompute.db.schema import TABLES
from zcompute.db.session import Session
from zcompute.db.store import SCAN_ROWS_MAX, ToldRow
from zcompute.db.tables import BUILD_REQUESTS, INSTANCES, PARTITION_COLUMN, Key, TableCodec
from zcompute.objects.base import VersionedObject
from zcompute.objects.build_request import BUILD_ERROR, BUILD_PENDING, BuildRequest
from zcompute.objects.instance import VM_ACTIVE, VM_BUILDING, VM_DELETED, VM_ERROR, Instance
from zcompute.objects.messages.instances import InstanceQuery

T = TypeVar("T", bound=VersionedObject)

FETCH_KEYS_MAX = 500  # a statement; more keys are fetched by several


@dataclass(frozen=True)
class StatusPair:
    """A state that a client sees as one status: a vm_state, and the task_states it takes (None: any)."""

    vm_state: str
    task_states: tuple[str | None, ...] | None = None


STATUS_DELETED = "DELETED"

# Nova's statuses, as far as there are states for them.
STATUSES: dict[str, tuple[StatusPair, ...]] = {
    "ACTIVE": (StatusPair(VM_ACTIVE),),
    "BUILD": (StatusPair(VM_BUILDING),),
    "ERROR": (StatusPair(VM_ERROR),),
    STATUS_DELETED: (StatusPair(VM_DELETED),),
}
_BUILD_STATES = {"BUILD": BUILD_PENDING, "ERROR": BUILD_ERROR}


class _Where:
    """Conditions that are all to hold, with their values. Names come from the codecs, values are always bound."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self.values: dict[str, Any] = {}

    def add(self, condition: str, **values: Any) -> None:
        self._conditions.append(condition)
        self.values.update(values)

    def equals(self, column: str, value: Any) -> None:
        name = f"v{len(self.values)}"
        if value is None:
            self.add(f"{column} IS NULL")
        elif isinstance(value, (list, tuple, set, frozenset)):
            self.add(f"{column} IN :{name}" if value else "1 = 0", **({name: list(value)} if value else {}))
        else:
            self.add(f"{column} = :{name}", **{name: value})

    def select(self, table: TableCodec[Any], order: str = "", limit: int | None = None) -> str:
        parts = ["SELECT", ", ".join(table.columns), "FROM", table.name]
        if self._conditions:
            parts += ["WHERE", " AND ".join(self._conditions)]
        if order:
            parts += ["ORDER BY", order]
        if limit is not None:
            parts += ["LIMIT", str(int(limit))]
        return " ".join(parts)


def fetch(session: Session, table: TableCodec[T], keys: Sequence[Key]) -> dict[Key, T]:
    """Store.fetch."""
    found: dict[Key, T] = {}
    wanted = [key for key in dict.fromkeys(keys) if _possible(table, key)]
    for start in range(0, len(wanted), FETCH_KEYS_MAX):
        where = _Where()
        _add_keys(where, table, wanted[start : start + FETCH_KEYS_MAX])
        for stored in session.objects(table, where.select(table), **where.values):
            found[table.key_of(stored)] = stored
    return found


def _possible(table: TableCodec[Any], key: Key) -> bool:
    """Can there be such a row? Comparing an ASCII column with another text would read the whole table."""
    if len(key) != len(table.key_columns):
        raise ValueError(f"expected a key {table.key_columns} of {table.name}, found {key!r}")
    columns = TABLES[table.name].c
    return all(
        not (isinstance(value, str) and is_ascii(columns[name].type)) or value.isascii()
        for name, value in zip(table.key_columns, key, strict=True)
    )


def _add_keys(where: _Where, table: TableCodec[Any], keys: Sequence[Key]) -> None:
    if len(table.key_columns) == 1:
        where.equals(table.key_columns[0], [key[0] for key in keys])
        return
    # (a = .. AND b = ..) OR ...: both databases use the primary key for this, and not for (a, b) IN (...).
    either = []
    for at, key in enumerate(keys):
        names = [f"k{at}_{part}" for part in range(len(key))]
        either.append(" AND ".join(f"{c} = :{n}" for c, n in zip(table.key_columns, names, strict=True)))
        where.values.update(zip(names, key, strict=True))
    where.add("(" + " OR ".join(f"({one})" for one in either) + ")")


def scan(
    session: Session,
    table: TableCodec[T],
    *,
    partitions: Sequence[int] | None,
    where: Mapping[str, Any] | None,
    limit: int,
    after: Key | None,
) -> list[T]:
    """Store.scan."""
    conditions = _Where()
    if partitions is not None:
        conditions.equals(PARTITION_COLUMN, list(partitions))
    for column, value in (where or {}).items():
        if column not in table.columns:
            raise ValueError(f"{table.name} has no column {column!r}, but {table.columns}")
        conditions.equals(column, value)
    if after is not None and partitions == [after[0]] and table.key_columns[0] == PARTITION_COLUMN:
        # The partition is given: a plain bound on the rest of the key is what the index is used for.
        conditions.add(f"{table.key_columns[1]} > :after", after=after[1])
    elif after is not None:
        _add_after(conditions, table, after)
    sql = conditions.select(table, ", ".join(table.key_columns), max(0, min(limit, SCAN_ROWS_MAX)))
    return session.objects(table, sql, **conditions.values)


def expired(session: Session, table: TableCodec[T], partition: int, column: str, before_us: int, limit: int) -> list[T]:
    """Store.expired."""
    if column not in table.columns:
        raise ValueError(f"{table.name} has no column {column!r}, but {table.columns}")
    where = _Where()
    where.equals(PARTITION_COLUMN, partition)
    where.add(f"{column} < :before_us", before_us=before_us)
    sql = where.select(table, column, max(0, min(limit, SCAN_ROWS_MAX)))
    return session.objects(table, sql, **where.values)


def _add_after(where: _Where, table: TableCodec[Any], after: Key) -> None:
    if len(after) != len(table.key_columns):
        raise ValueError(f"expected a key {table.key_columns} of {table.name} to go on from, found {after!r}")
    names = [f"after{part}" for part in range(len(after))]
    values = dict(zip(names, after, strict=True))
    columns = table.key_columns
    if len(columns) == 1:
        where.add(f"{columns[0]} > :{names[0]}", **values)
        return
    # The first condition says nothing new, but is the one for which the index is used.
    tuples = f"({', '.join(columns)}) > ({', '.join(f':{name}' for name in names)})"
    where.add(f"{columns[0]} >= :{names[0]} AND {tuples}", **values)


def list_instances(session: Session, query: InstanceQuery) -> list[Instance]:
    """Store.list_instances."""
    where = _Where()
    _add_page(where, query)
    if query.host is not None:
        where.equals("host", query.host)
    if query.statuses:
        _add_statuses(where, query.statuses)
    if STATUS_DELETED not in query.statuses:
        where.add("vm_state <> :deleted", deleted=VM_DELETED)
    return _newest_first(session, INSTANCES, where, query.limit)


def list_build_requests(session: Session, query: InstanceQuery) -> list[BuildRequest]:
    """Store.list_build_requests."""
    if query.host is not None:
        return []
    where = _Where()
    _add_page(where, query)
    if query.statuses:
        where.equals("state", [_BUILD_STATES[status] for status in query.statuses if status in _BUILD_STATES])
    return _newest_first(session, BUILD_REQUESTS, where, query.limit)


def told(session: Session) -> list[ToldRow]:
    """Store.read_told: one statement, so last_n and the rows are of one moment."""
    rows = session.select(
        "SELECT p.partition_id, p.last_n, MIN(t.n), MAX(t.n), COUNT(t.n) FROM partitions p "
        "LEFT JOIN notifications t ON t.partition_id = p.partition_id "
        "GROUP BY p.partition_id, p.last_n ORDER BY p.partition_id"
    )
    return [ToldRow(*(value or 0 for value in row)) for row in rows]


def _newest_first(session: Session, table: TableCodec[T], where: _Where, limit: int) -> list[T]:
    sql = where.select(table, "created_at_us DESC, uuid DESC", max(0, min(limit, SCAN_ROWS_MAX)))
    return session.objects(table, sql, **where.values)


def _add_page(where: _Where, query: InstanceQuery) -> None:
    if query.project_id is not None:
        where.equals("project_id", query.project_id)
    if query.name is not None:
        # Not LIKE: its wildcards and its idea of upper case differ between databases.
        where.add("INSTR(name, :part) > 0", part=query.name)
    if query.marker_created_at_us is not None:
        where.add(
            "created_at_us <= :marker_us AND (created_at_us < :marker_us OR uuid < :marker_uuid)",
            marker_us=query.marker_created_at_us,
            marker_uuid=query.marker_uuid or "",
        )


def _add_statuses(where: _Where, statuses: Sequence[str]) -> None:
    """One of the pairs behind these statuses; a status that nobody knows matches nothing, as in Nova."""
    either = []
    for pair in (pair for status in statuses for pair in STATUSES.get(status, ())):
        name = f"s{len(where.values)}"
        where.values[name] = pair.vm_state
        condition = f"vm_state = :{name}"
        if pair.task_states is not None:
            condition += f" AND {_one_of(where, name, pair.task_states)}"
        either.append(f"({condition})")
    where.add("(" + " OR ".join(either) + ")" if either else "1 = 0")


def _one_of(where: _Where, prefix: str, states: Sequence[str | None]) -> str:
    named = [state for state in states if state is not None]
    conditions = []
    if named:
        where.values[f"{prefix}t"] = named
        conditions.append(f"task_state IN :{prefix}t")
    if None in states:
        conditions.append("task_state IS NULL")
    return "(" + " OR ".join(conditions) + ")"
