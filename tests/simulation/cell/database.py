"""The database of a cell, simulated: what is committed, the row locks of transactions under way, and its faults.

The rows and rules are those of the conductors' unit tests (FakeDatabase); here every statement travels, takes its
time, may be lost on its way there or back, may wait for the lane's row lock, and may hold it for long.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from gevent.hub import Waiter

from tests.simulation.cell.loop import Process, VirtualLoop
from tests.unit.conductor.ledger_fake import FakeDatabase
from zcompute.db.batch import Batch
from zcompute.db.errors import ConnectionLost, DatabaseBusy
from zcompute.db.store import PartitionRow

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
