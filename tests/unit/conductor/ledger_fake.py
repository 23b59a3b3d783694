"""A database in memory with the Store's semantics: fence, watermark, nonce, guards, take-over, hand-over, beats.

``pause`` is called at every round trip (a yield point); ``faults`` of a lane are consumed one a commit.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gevent
from gevent.event import Event

from zcompute.db.batch import Batch, Delete, Insert, Update
from zcompute.db.errors import (
    AlreadyApplied,
    BadRow,
    ConnectionLost,
    DatabaseBusy,
    Fenced,
    GuardFailed,
    ReceiverDead,
)
from zcompute.db.store import ConductorRow, LaneRow, MapRows, PartitionRow
from zcompute.db.tables import CODECS, GROUP_PLACEMENTS, PROJECT_USAGES, USAGES, TableCodec
from zcompute.objects.group import GroupStanding
from zcompute.objects.partition import PARTITIONS
from zcompute.objects.quota import ProjectUsage

LOST_BEFORE = "lost before the commit"
LOST_AFTER = "lost after the commit"
BUSY = "busy"

NAME_CHARS_MAX = 255


class FakeDatabase:
    """What all conductors share."""

    def __init__(self, cell: str = "c1") -> None:
        self.cell = cell
        self.term = 1
        self.map_version = 0
        self.tables: dict[str, dict[tuple[Any, ...], tuple[Any, ...]]] = {name: {} for name in CODECS}
        self.lanes: dict[int, LaneRow] = {}
        self.applied: dict[int, tuple[int, int]] = {}
        self.partitions: dict[int, tuple[int | None, int]] = dict.fromkeys(range(PARTITIONS), (None, 0))
        self.last_n: dict[int, int] = dict.fromkeys(range(PARTITIONS), 0)
        self.conductors: dict[str, ConductorRow] = {}
        self.beats: dict[str, int] = {}
        self.attending: set[str] = set()  # incarnations whose session lives
        self.commits: list[Batch] = []
        self.fetches: list[tuple[str, list[tuple[Any, ...]]]] = []
        self.down = False
        self.written_by: list[tuple[int, int, int]] = []  # lane, partition, epoch of each row written

    def row(self, table: TableCodec[Any], key: tuple[Any, ...]) -> Any:
        if table.derived:
            return self._total(key[0]) if table is PROJECT_USAGES else self._standing(key[0])
        row = self.tables[table.name].get(key)
        return None if row is None else table.from_row(row)

    def _total(self, project_id: str) -> ProjectUsage | None:
        rows = [USAGES.from_row(row) for row in self.tables[USAGES.name].values()]
        mine = [usage for usage in rows if usage.project_id == project_id]
        if not mine:
            return None
        cores, ram_mb = sum(usage.cores for usage in mine), sum(usage.ram_mb for usage in mine)
        return ProjectUsage(project_id=project_id, instances=len(mine), cores=cores, ram_mb=ram_mb)

    def _standing(self, group_uuid: str) -> GroupStanding | None:
        rows = [GROUP_PLACEMENTS.from_row(row) for row in self.tables[GROUP_PLACEMENTS.name].values()]
        mine = [placement for placement in rows if placement.group_uuid == group_uuid]
        return GroupStanding(group_uuid=group_uuid, placements=mine) if mine else None

    def seed(self, table: TableCodec[Any], *objects: Any) -> None:
        for stored in objects:
            row = table.to_row(stored, table.home_of(stored))
            self.tables[table.name][table.key_of(stored)] = row

    def apply(self, batch: Batch) -> None:
        """One transaction."""
        lane = self.lanes.get(batch.lane_id)
        applied = self.applied.get(batch.lane_id, (0, 0))
        if lane is None or not lane.alive or batch.term != self.term:
            raise Fenced(f"lane {batch.lane_id} is dead")
        if applied == (batch.number, batch.nonce):
            raise AlreadyApplied(f"batch {batch.number}")
        if applied[0] != batch.number - 1:
            raise Fenced(f"applied is {applied[0]}, the batch is {batch.number}")
        touched = {change.table.name for change in batch.changes} | ({"notifications"} if batch.purges else set())
        tables = {name: dict(self.tables[name]) if name in touched else self.tables[name] for name in self.tables}
        for change in batch.changes:
            self._change(tables[change.table.name], change, batch.lane_id)
        for purge in batch.purges:
            for key in [k for k in tables["notifications"] if k[0] == purge.partition_id]:
                if purge.first <= key[1] <= purge.last:
                    del tables["notifications"][key]
        last_n = self._numbered(batch)
        if batch.hand_over is not None:
            receiver = self.lanes.get(batch.hand_over.to_lane)
            if receiver is None or not receiver.alive:
                raise ReceiverDead(f"lane {batch.hand_over.to_lane}")
            for partition in batch.hand_over.partitions:
                if self.partitions[partition][0] != batch.lane_id:
                    raise GuardFailed("partitions")
            self.map_version += 1
            for partition in batch.hand_over.partitions:
                self.partitions[partition] = (batch.hand_over.to_lane, self.map_version)
        self.tables = tables
        self.last_n = last_n
        self.applied[batch.lane_id] = (batch.number, batch.nonce)
        self.commits.append(batch)

    def _numbered(self, batch: Batch) -> dict[int, int]:
        last_n = dict(self.last_n)
        for numbering in batch.numberings:
            partition = numbering.partition_id
            if self.partitions[partition][0] != batch.lane_id or last_n[partition] != numbering.before:
                raise GuardFailed("partitions", f"last_n of {partition} is {last_n[partition]}: {numbering}")
            last_n[partition] = numbering.after
        return last_n

    def _change(self, rows: dict[tuple[Any, ...], tuple[Any, ...]], change: Any, lane_id: int) -> None:
        table = change.table
        width = len(table.key_columns)
        if isinstance(change, Delete):
            for key in change.keys:
                if key not in rows:
                    raise GuardFailed(table.name)
                self._written(lane_id, rows[key][table.partition_at])
                del rows[key]
        elif isinstance(change, Insert):
            for row in change.rows:
                self._check_row(table, rows, row[:width], row)
                self._written(lane_id, row[table.partition_at])
                rows[row[:width]] = row
        elif isinstance(change, Update):
            for values in change.rows:
                key = values[:width]
                old = rows.get(key)
                if old is None:
                    raise GuardFailed(table.name)
                new = list(old)
                for column, value in zip(change.columns, values[width:], strict=True):
                    new[table.columns.index(column)] = value
                at = table.columns.index("revision")
                if new[at] <= old[at]:
                    raise GuardFailed(table.name, f"revision {new[at]} after {old[at]}")
                self._check_row(table, {}, key, tuple(new))
                self._written(lane_id, new[table.partition_at])
                rows[key] = tuple(new)

    def _written(self, lane_id: int, partition: int) -> None:
        owner, epoch = self.partitions[partition]
        if owner != lane_id:
            raise AssertionError(f"lane {lane_id} wrote partition {partition}, which is on lane {owner}")
        self.written_by.append((lane_id, partition, epoch))

    @staticmethod
    def _check_row(table: TableCodec[Any], rows: Mapping[Any, Any], key: tuple[Any, ...], row: tuple[Any, ...]) -> None:
        if key in rows:
            raise BadRow(table.name, key, "duplicate key")
        if table.name == "tasks":
            at = table.columns.index("instance_uuid")
            if any(other[at] == row[at] for other in rows.values()):
                raise BadRow(table.name, None, "duplicate instance_uuid")
        if any(isinstance(value, str) and len(value) > NAME_CHARS_MAX for value in row):
            raise BadRow(table.name, key, "data too long")

    def kill(self, incarnation: str, receivers: Sequence[int]) -> None:
        """As take_over does."""
        for lane_id, lane in list(self.lanes.items()):
            if lane.incarnation == incarnation:
                self.lanes[lane_id] = LaneRow(lane_id, lane.incarnation, lane.service_id, False)
        for service_id, row in list(self.conductors.items()):
            if row.incarnation == incarnation:
                self.conductors[service_id] = ConductorRow(
                    row.service_id, row.incarnation, row.address, row.public_key, 0, False
                )
        self.beats.pop(incarnation, None)
        free = [p for p, (lane, _) in self.partitions.items() if lane is None or not self.lanes[lane].alive]
        if free and receivers:
            self.map_version += 1
            for place, partition in enumerate(free):
                self.partitions[partition] = (receivers[place % len(receivers)], self.map_version)


class FakeLane:
    def __init__(self, store: "FakeStore", lane_id: int, term: int) -> None:
        self.store = store
        self.lane_id = lane_id
        self.faults: deque[str] = deque()
        self.gate = Event()
        self.gate.set()
        self.lost = False
        self.sent: list[tuple[int, int]] = []
        self.reconnects = 0

    def commit(self, batch: Batch) -> None:
        self.sent.append((batch.number, batch.nonce))
        self.store.pause()
        self.gate.wait()
        if self.lost or self.store.database.down:
            self.lost = True
            raise ConnectionLost("no connection")
        fault = self.faults.popleft() if self.faults else ""
        if fault == LOST_BEFORE:
            self.lost = True
            raise ConnectionLost(fault)
        if fault == BUSY:
            raise DatabaseBusy(fault)
        self.store.database.apply(batch)
        self.store.pause()
        if fault == LOST_AFTER:
            self.lost = True
            raise ConnectionLost(fault)

    def reconnect(self, deadline_ms: int) -> None:
        self.store.pause()
        if self.store.database.down:
            raise ConnectionLost("no server")
        self.reconnects += 1
        self.lost = False

    def close(self) -> None:
        self.lost = True


class FakeBeater:
    def __init__(self, database: FakeDatabase, incarnation: str) -> None:
        self._database = database
        self._incarnation = incarnation
        database.attending.add(incarnation)

    def beat(self) -> bool:
        if self._database.down or self._incarnation not in self._database.beats:
            return False
        self._database.beats[self._incarnation] += 1
        return True

    def close(self) -> None:
        return


class FakeStore:
    kind = "cell"
    url = "fake:"

    def __init__(self, database: FakeDatabase | None = None, pause: Callable[[], None] | None = None) -> None:
        self.database = database or FakeDatabase()
        self.pause = pause or (lambda: gevent.sleep(0))
        self.lane_connections: dict[int, FakeLane] = {}
        self.fetch_gate = Event()
        self.fetch_gate.set()
        self.frozen = False
        self.fetch_errors: deque[Exception] = deque()

    def _trip(self) -> None:
        self.pause()
        if self.database.down:
            raise ConnectionLost("no server")

    def read_until(self, ends_at_s: float, work: Any) -> Any:
        return work(self)

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def register(self, conductor: ConductorRow, lanes: int) -> list[int]:
        self._trip()
        database = self.database
        former = database.conductors.get(conductor.service_id)
        if former is not None:
            database.kill(former.incarnation, [])
        database.conductors[conductor.service_id] = conductor
        database.beats[conductor.incarnation] = 0
        first = len(database.lanes) + 1
        ids = list(range(first, first + lanes))
        for lane_id in ids:
            database.lanes[lane_id] = LaneRow(lane_id, conductor.incarnation, conductor.service_id, True)
        return ids

    def open_lane(self, lane_id: int, term: int) -> FakeLane:
        lane = self.lane_connections[lane_id] = FakeLane(self, lane_id, term)
        return lane

    def open_beater(self, incarnation: str) -> FakeBeater:
        return FakeBeater(self.database, incarnation)

    def read_beats(self) -> dict[str, int]:
        self._trip()
        return dict(self.database.beats)

    def attended(self, incarnations: Sequence[str]) -> set[str]:
        self._trip()
        return self.database.attending.intersection(incarnations)

    def read_map(self) -> MapRows:
        self._trip()
        database = self.database
        rows = MapRows(
            database.cell,
            database.map_version,
            database.term,
            [PartitionRow(p, lane, e, database.last_n[p]) for p, (lane, e) in sorted(database.partitions.items())],
            dict(database.lanes),
            dict(database.conductors),
        )
        self.pause()
        return rows

    def take_over(
        self, dead: Sequence[str], lanes: Sequence[int], term: int, partitions: Sequence[int] | None = None
    ) -> int:
        self._trip()
        database = self.database
        if any(not database.lanes[lane].alive for lane in lanes) or term != database.term:
            raise Fenced("a receiving lane is dead")
        for incarnation in dead:
            database.kill(incarnation, [])
        database.kill("", lanes)
        version = database.map_version
        self.pause()
        return version

    def release(self, incarnation: str) -> None:
        self._trip()
        self.database.kill(incarnation, [])

    def fetch(self, table: TableCodec[Any], keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], Any]:
        self._trip()
        if self.fetch_errors:
            raise self.fetch_errors.popleft()
        self.database.fetches.append((table.name, list(keys)))
        found = {key: row for key in keys if (row := self.database.row(table, key)) is not None}
        self.pause()
        self.fetch_gate.wait()
        return found

    def project_usages(self, after: str, limit: int, partition: int | None = None) -> list[ProjectUsage]:
        self._trip()
        rows = [USAGES.from_row(row) for row in self.database.tables[USAGES.name].values()]
        names = sorted({u.project_id for u in rows if partition in (None, USAGES.home_of(u)) and u.project_id > after})
        return [self.database.row(PROJECT_USAGES, (name,)) for name in names[:limit]]

    def scan(
        self,
        table: TableCodec[Any],
        *,
        partitions: Sequence[int] | None = None,
        where: Mapping[str, Any] | None = None,
        limit: int = 1 << 30,
        after: tuple[Any, ...] | None = None,
    ) -> list[Any]:
        self._trip()
        at = {column: table.columns.index(column) for column in where or {}}
        found = [
            table.from_row(row)
            for key, row in sorted(self.database.tables[table.name].items())
            if (partitions is None or row[table.partition_at] in partitions)
            and (after is None or key > after)
            and all(
                row[at[column]] in value if isinstance(value, list) else row[at[column]] == value
                for column, value in (where or {}).items()
            )
        ]
        return found[:limit]

    def expired(self, table: TableCodec[Any], partition: int, column: str, before_us: int, limit: int) -> list[Any]:
        rows = self.scan(table, partitions=[partition])
        rows = [row for row in rows if (getattr(row, column) or before_us) < before_us]
        return sorted(rows, key=lambda row: getattr(row, column))[:limit]

    def list_instances(self, query: Any) -> list[Any]:
        raise NotImplementedError

    def list_briefs(self, query: Any) -> list[Any]:
        raise NotImplementedError

    def list_build_requests(self, query: Any) -> list[Any]:
        raise NotImplementedError

    def ping(self) -> None:
        self._trip()

    def close(self) -> None:
        return
