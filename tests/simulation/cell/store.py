"""What a process sees of the simulated database: zcompute.db.store's Store, a lane's connection, the beats."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.simulation.cell.database import Server, Session
from tests.simulation.cell.loop import Process
from zcompute.db.batch import Batch
from zcompute.db.errors import ConnectionLost, Fenced
from zcompute.db.store import ConductorRow, LaneRow, MapRows
from zcompute.db.tables import CODECS, TableCodec


class SimLane:
    """A lane's connection (zcompute.db.store.LaneConnection)."""

    def __init__(self, server: Server, lane_id: int) -> None:
        self._server = server
        self.lane_id = lane_id
        self._session: Session | None = None
        self._closed = False

    def commit(self, batch: Batch) -> None:
        if self._closed:
            raise ConnectionLost("the lane is closed")
        if self._session is None:
            self._session = self._open()
        self._server.batch(self._session, batch)

    def _open(self) -> Session:
        session = Session()
        self._server.sessions.append(session)
        return session

    def reconnect(self, deadline_ms: int) -> None:
        former = self._session

        def renew() -> Session:
            if former is not None:
                self._server.kill(former)
            return self._open()

        self._session = self._server.read(renew)

    def close(self) -> None:
        self._closed = True
        session = self._session
        if session is not None:
            self._server.loop.later(0.001, None, self._server.kill, session)


class SimBeater:
    """zcompute.db.store.Beater."""

    def __init__(self, server: Server, incarnation: str) -> None:
        self._server = server
        self._incarnation = incarnation

    def beat(self) -> bool:
        beats = self._server.rows.beats

        def raise_it() -> bool:
            if self._incarnation not in beats:
                return False
            beats[self._incarnation] += 1
            return True

        try:
            return bool(self._server.read(raise_it))
        except ConnectionLost:
            return False

    def close(self) -> None:
        """A connection less."""


class SimStore:
    """One process' Store (zcompute.db.store.Store)."""

    kind = "mariadb"
    url = "sim:"

    def __init__(self, server: Server, process: Process) -> None:
        self.server = server
        self.rows = server.rows
        self.process = process

    def read_until(self, ends_at_s: float, work: Any) -> Any:
        return work(self)

    def now_us(self) -> int:
        return int(self.server.read(lambda: int((self.server.loop.now_s + self.server.ahead_s) * 1e6)))

    def _lanes_of(self, incarnations: Sequence[str]) -> list[int]:
        return [lane.lane_id for lane in self.rows.lanes.values() if lane.alive and lane.incarnation in incarnations]

    def register(self, conductor: ConductorRow, lanes: int) -> list[int]:
        rows = self.rows

        def former() -> list[int]:
            known = rows.conductors.get(conductor.service_id)
            again = known is None or known.incarnation == conductor.incarnation
            return [] if again or known is None else self._lanes_of([known.incarnation])

        def act() -> list[int]:
            known = rows.conductors.get(conductor.service_id)
            if known is not None and known.incarnation == conductor.incarnation:
                return [lane.lane_id for lane in rows.lanes.values() if lane.incarnation == conductor.incarnation]
            if known is not None:
                rows.kill(known.incarnation, [])
            rows.map_version += 1
            rows.conductors[conductor.service_id] = conductor
            rows.beats[conductor.incarnation] = 0
            first = len(rows.lanes) + 1
            for lane_id in range(first, first + lanes):
                rows.lanes[lane_id] = LaneRow(lane_id, conductor.incarnation, conductor.service_id, True)
            return list(range(first, first + lanes))

        ids: list[int] = self.server.change(former, act)
        return ids

    def open_lane(self, lane_id: int, term: int) -> SimLane:
        return SimLane(self.server, lane_id)

    def open_beater(self, incarnation: str) -> SimBeater:
        self.server.beating[incarnation] = self.process
        return SimBeater(self.server, incarnation)

    def read_beats(self) -> dict[str, int]:
        found: dict[str, int] = self.server.read(lambda: dict(self.rows.beats))
        return found

    def attended(self, incarnations: Sequence[str]) -> set[str]:
        """A session ends with its process; one that is frozen keeps its own."""

        def look() -> set[str]:
            return {name for name in incarnations if name in self.server.beating and not self.server.beating[name].dead}

        found: set[str] = self.server.read(look)
        return found

    def read_map(self) -> MapRows:
        rows = self.rows

        def look() -> MapRows:
            partitions = rows.partition_rows()
            return MapRows(rows.cell, rows.map_version, rows.term, partitions, dict(rows.lanes), dict(rows.conductors))

        found: MapRows = self.server.read(look)
        return found

    def take_over(
        self, dead: Sequence[str], lanes: Sequence[int], term: int, partitions: Sequence[int] | None = None
    ) -> int:
        rows = self.rows

        def act() -> int:
            if any(not rows.lanes[lane].alive for lane in lanes) or term != rows.term:
                raise Fenced("a receiving lane is dead")
            for incarnation in dead:
                rows.end(incarnation)
            rows.kill("", lanes)
            return rows.map_version

        version: int = self.server.change(lambda: self._lanes_of(dead), act)
        return version

    def readdress(self, service_id: str, incarnation: str, address: str, public_key: str) -> int:
        rows = self.rows

        def act() -> int:
            row = rows.conductors.get(service_id)
            if row is None or row.incarnation != incarnation or not row.alive:
                raise Fenced("the incarnation is not alive any more")
            rows.conductors[service_id] = ConductorRow(service_id, incarnation, address, public_key)
            rows.map_version += 1
            return rows.map_version

        version: int = self.server.change(list, act)
        return version

    def release(self, incarnation: str) -> None:
        self.server.change(lambda: self._lanes_of([incarnation]), lambda: self.rows.end(incarnation))

    def fetch(self, table: TableCodec[Any], keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], Any]:
        def look() -> dict[tuple[Any, ...], Any]:
            if table.derived:
                return {key: row for key in keys if (row := self.rows.row(table, key)) is not None}
            stored = self.rows.tables[table.name]
            return {key: table.from_row(stored[key]) for key in keys if key in stored}

        found: dict[tuple[Any, ...], Any] = self.server.read(look)
        return found

    def scan(
        self,
        table: TableCodec[Any],
        *,
        partitions: Sequence[int] | None = None,
        where: Mapping[str, Any] | None = None,
        limit: int,
        after: tuple[Any, ...] | None = None,
    ) -> list[Any]:
        at = table.partition_at
        tests = [(table.columns.index(name), value) for name, value in (where or {}).items()]
        wanted = None if partitions is None else set(partitions)

        def matches(row: tuple[Any, ...]) -> bool:
            return (wanted is None or row[at] in wanted) and all(
                row[place] in value if isinstance(value, list) else row[place] == value for place, value in tests
            )

        def look() -> list[Any]:
            stored = self.rows.tables[table.name]
            keys = sorted(key for key in stored if (after is None or key > after) and matches(stored[key]))
            return [table.from_row(stored[key]) for key in keys[:limit]]

        found: list[Any] = self.server.read(look)
        return found

    def expired(self, table: TableCodec[Any], partition: int, column: str, before_us: int, limit: int) -> list[Any]:
        rows = self.scan(table, partitions=[partition], limit=1 << 30)
        rows = [row for row in rows if (getattr(row, column) or before_us) < before_us]
        return sorted(rows, key=lambda row: getattr(row, column))[:limit]

    def list_instances(self, query: Any) -> list[Any]:
        return self.scan(CODECS["instances"], limit=query.limit)

    def list_briefs(self, query: Any) -> list[Any]:
        raise NotImplementedError

    def list_build_requests(self, query: Any) -> list[Any]:
        return []

    def ping(self) -> None:
        self.server.read(lambda: None)

    def close(self) -> None:
        """Its processes' connections end with it."""
