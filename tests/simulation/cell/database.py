"""The database of a cell, simulated: what is committed, the row locks of transactions under way, and its faults.

The rows and rules are those of the conductors' unit tests (FakeDatabase); here every statement travels, takes its
time, may be lost on its way there or back, may wait for the lane's row lock, and may hold it for long.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gevent.hub import Waiter

from tests.simulation.cell.loop import Process, VirtualLoop
from tests.unit.conductor.ledger_fake import FakeDatabase
from zcompute.db.batch import Batch
from zcompute.db.errors import ConnectionLost, DatabaseBusy, Fenced
from zcompute.db.store import ConductorRow, LaneRow, MapRows, PartitionRow
from zcompute.db.tables import CODECS, TableCodec

KILL_AFTER_S = 0.2  # a take-over waits so long for a batch in flight
STUCK_S = (0.5, 3.0)
LATE_S = (0.05, 1.2)
LATER_S = (0.5, 1.4)  # than it takes to be taken for dead
REFUSED_S = 0.002

Reply = Callable[[Any], None]


class Rows(FakeDatabase):
    """What is committed. ``watch`` hears of each batch, with the tables that it changed as they were."""

    def __init__(self, cell: str = "c1") -> None:
        super().__init__(cell)
        self.watch: Callable[[Batch, dict[str, dict[Any, Any]]], None] = lambda *_: None
        self.strayed: Callable[[str], None] = lambda _: None
        self._map: tuple[Any, list[PartitionRow]] = (None, [])
        self._numbered_as: dict[int, int] | None = None

    def apply(self, batch: Batch) -> None:
        former = {change.table.name: self.tables[change.table.name] for change in batch.changes}
        super().apply(batch)
        self.commits.clear()
        self.written_by.clear()
        self.watch(batch, former)

    def _written(self, lane_id: int, partition: int) -> None:
        owner, _ = self.partitions[partition]
        if owner != lane_id:
            self.strayed(f"lane {lane_id} wrote partition {partition}, which is on lane {owner}")

    def partition_rows(self) -> list[PartitionRow]:
        """The partitions, listed anew only when something about them has changed."""
        known, rows = self._map
        if known != (self.map_version, len(self.lanes)) or self._numbered_as is not self.last_n:
            last_n = self.last_n
            rows = [PartitionRow(p, lane, epoch, last_n[p]) for p, (lane, epoch) in sorted(self.partitions.items())]
            self._map, self._numbered_as = ((self.map_version, len(self.lanes)), rows), last_n
        return rows

    def end(self, incarnation: str) -> None:
        """Its lanes die, and the map that named it has a newer version."""
        if incarnation in self.beats:
            self.map_version += 1
        self.kill(incarnation, [])


class Session:
    """One connection at the server: killed, it does nothing more, and its client hears of it."""

    __slots__ = ("answer", "killed")

    def __init__(self) -> None:
        self.killed = False
        self.answer: Reply | None = None


class _Wanting:
    """A transaction that waits for row locks of lanes, one after the other."""

    __slots__ = ("granted", "impatient", "lanes", "session")

    def __init__(self, session: Session, lanes: Sequence[int], granted: Callable[[], None], impatient: bool) -> None:
        self.session = session
        self.lanes = sorted(set(lanes))
        self.granted = granted
        self.impatient = impatient


class Server:
    """The primary."""

    def __init__(self, loop: VirtualLoop, rows: Rows, seed: int) -> None:
        self.loop = loop
        self.rows = rows
        self.dice = random.Random(f"{seed} database")
        self.trip_s = (0.00005, 0.0004)
        self.commit_s = (0.0003, 0.002)
        self.lose_before = self.lose_after = self.overtake = self.stick = self.busy = self.delay = 0.0
        self.late_s = LATE_S
        self.down = False
        self.ahead_s = 0.0  # of its clock, behind jumps
        self.stalled_until_s = 0.0
        self.sessions: list[Session] = []
        self.beating: dict[str, Process] = {}
        self._holders: dict[int, _Wanting] = {}
        self._waiting: list[_Wanting] = []

    # -- faults -------------------------------------------------------------------------------------------------

    def crash(self, seconds: float) -> None:
        """kill -9 of the server: what was not committed is rolled back, every connection is gone."""
        self.down = True
        for session in self.sessions:
            self.kill(session)
        self.sessions.clear()
        self.loop.later(seconds, None, self._rise)

    def _rise(self) -> None:
        self.down = False

    def stall(self, seconds: float) -> None:
        """Nothing is begun for so long; nobody is told."""
        self.stalled_until_s = max(self.stalled_until_s, self.loop.now_s + seconds)

    def kill(self, session: Session) -> None:
        """KILL: rolled back, its locks are free."""
        session.killed = True
        if session.answer is not None:
            session.answer(ConnectionLost("the connection was killed"))
        self._waiting = [wanting for wanting in self._waiting if wanting.session is not session]
        for lane in [lane for lane, holder in self._holders.items() if holder.session is session]:
            del self._holders[lane]
        self._grant()

    # -- requests -----------------------------------------------------------------------------------------------

    def ask(self, work: Callable[[Reply], None], *, refusal: bool = True) -> Any:
        """One round trip of the process that runs now: ``work`` is done at the server and replies."""
        loop, dice = self.loop, self.dice
        process = loop.process
        waiter: Waiter[Any] = Waiter()
        answered = False

        def answer(outcome: Any) -> None:
            nonlocal answered
            if not answered:
                answered = True
                loop.later(dice.uniform(*self.trip_s), process, waiter.switch, outcome)

        def arrive() -> None:
            if self.down:
                if refusal:
                    loop.later(REFUSED_S, None, answer, ConnectionLost("no server"))
            elif loop.now_s < self.stalled_until_s:
                loop.later(self.stalled_until_s - loop.now_s, None, arrive)
            else:
                work(answer)

        loop.later(dice.uniform(*self.trip_s), None, arrive)
        outcome = waiter.get()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def read(self, look: Callable[[], Any]) -> Any:
        """A statement that takes no lock."""

        def work(answer: Reply) -> None:
            try:
                answer(look())
            except Exception as error:  # noqa: BLE001  # whatever it is, it is the client's to see
                answer(error)

        return self.ask(work)

    def change(self, lanes: Callable[[], Sequence[int]], act: Callable[[], Any]) -> Any:
        """A transaction that locks these lanes' rows, killing whoever keeps them for too long."""
        session = Session()
        self.sessions.append(session)

        def work(answer: Reply) -> None:
            session.answer = answer

            def locked() -> None:
                try:
                    answer(act())
                except Exception as error:  # noqa: BLE001  # rolled back; the client sees why
                    answer(error)
                self.kill(session)
                if session in self.sessions:
                    self.sessions.remove(session)

            self.lock(_Wanting(session, lanes(), locked, True))

        return self.ask(work)

    # -- locks --------------------------------------------------------------------------------------------------

    def lock(self, wanting: _Wanting) -> None:
        """Call ``granted`` once all its lanes are its own."""
        self._waiting.append(wanting)
        self._grant()
        if wanting.impatient and wanting in self._waiting:
            self.loop.later(KILL_AFTER_S, None, self._end_holders, wanting)

    def unlock(self, wanting: _Wanting) -> None:
        for lane in wanting.lanes:
            if self._holders.get(lane) is wanting:
                del self._holders[lane]
        self._grant()

    def _grant(self) -> None:
        for wanting in list(self._waiting):
            if wanting in self._waiting and not any(lane in self._holders for lane in wanting.lanes):
                self._waiting.remove(wanting)
                for lane in wanting.lanes:
                    self._holders[lane] = wanting
                wanting.granted()

    def _end_holders(self, wanting: _Wanting) -> None:
        if wanting in self._waiting:
            for lane in wanting.lanes:
                holder = self._holders.get(lane)
                if holder is not None:
                    self.kill(holder.session)
            self.loop.later(KILL_AFTER_S, None, self._end_holders, wanting)

    def batch(self, session: Session, batch: Batch) -> Any:
        """One packet with a whole transaction, from the lane's connection."""
        dice = self.dice
        chance = dice.random()
        lost_before = chance < self.lose_before
        lost_after = not lost_before and chance < self.lose_before + self.lose_after
        stuck = dice.random() < self.stick
        overtaken = dice.random() < self.overtake
        late_s = dice.uniform(*self.late_s) if dice.random() < self.delay else 0.0
        lanes = [batch.lane_id] if batch.hand_over is None else [batch.lane_id, batch.hand_over.to_lane]

        def commit(answer: Reply, wanting: _Wanting) -> None:
            if session.killed:
                return
            try:
                self.rows.apply(batch)
                outcome: Any = None
            except Exception as error:  # noqa: BLE001  # rolled back; the client sees why
                outcome = error
            self.unlock(wanting)
            answer(ConnectionLost("lost behind the commit") if lost_after else outcome)

        def work(answer: Reply) -> None:
            if session.killed:
                answer(ConnectionLost("the connection was killed"))
            elif lost_before:
                answer(ConnectionLost("lost before the commit"))
            elif dice.random() < self.busy:
                answer(DatabaseBusy("deadlock"))
            else:
                session.answer = answer
                wanting = _Wanting(session, lanes, lambda: begin(answer), False)
                begun.append(wanting)
                self.lock(wanting)

        def begin(answer: Reply) -> None:
            if stuck:
                self.loop.later(dice.uniform(*STUCK_S), None, give_up, answer)
            else:
                self.loop.later(dice.uniform(*self.commit_s), None, commit, answer, begun[0])

        def give_up(answer: Reply) -> None:
            self.kill(session)
            answer(ConnectionLost("the rest of the packet never came"))

        def arrive_late(answer: Reply) -> None:
            if overtaken:  # the client hears that the connection is gone before its packet is there
                answer(ConnectionLost("lost under way"))
                self.loop.later(dice.uniform(0.0, 0.05), None, work, answer)
            elif late_s:
                self.loop.later(late_s, None, work, answer)
            else:
                work(answer)

        begun: list[_Wanting] = []
        return self.ask(arrive_late)


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
