"""Keeps what is owned in step with the map: takes over from the dead, gains, hands over, leaves.

One greenlet, the only reader of the map and the only one that changes ownership, so each step acts on the state that
the step before left.
"""

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import gevent
from gevent.event import Event

from zcompute.bus.errors import BusError
from zcompute.conductor.change import Ticket
from zcompute.conductor.errors import IncarnationEnded
from zcompute.conductor.lane import Lane
from zcompute.conductor.lease import LeaseWatch
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.outage import Outage
from zcompute.conductor.ownership import Gain, Leaving, Move, dead_lanes, gains, plan_moves, strayed
from zcompute.conductor.settings import LifeSettings
from zcompute.db.batch import HandOver
from zcompute.db.errors import ConnectionLost, DatabaseBusy, Fenced, ReceiverDead
from zcompute.db.store import MapRows, Store
from zcompute.failpoints import failpoint

log = logging.getLogger(__name__)


class Keeper:
    """``ready()`` is called after the first step that went through."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        lanes: Mapping[int, Lane],
        watch: LeaseWatch,
        me: str,
        term: int,
        settings: LifeSettings,
        ready: Callable[[], None],
        outage: Outage | None = None,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._lanes = lanes
        self._watch = watch
        self._me = me
        self._term = term
        self._settings = settings
        self._ready = ready
        self._outage = outage or Outage()
        self._wake = Event()
        self._stopping = False
        self._leaving = Leaving()
        self._held_epochs: dict[int, int] = {}
        self._lane_wait_ms = int((settings.ledger.lane_retry_s_max + 10) * 1000)

    def wake(self) -> None:
        """Look at the map now."""
        self._wake.set()

    def stop(self) -> None:
        """Leave everything, then end."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """The greenlet. Raises IncarnationEnded when the life is over."""
        self._barriers(self._lanes.values())
        retry_ms = self._settings.ledger.retry_ms_min
        while True:
            self._wake.clear()
            try:
                if self._stopping:
                    self._leave_all()
                    raise IncarnationEnded("stopped")
                self._step()
            except (ConnectionLost, DatabaseBusy) as error:
                self._outage.lost("map", error)
                if self._stopping:
                    raise IncarnationEnded("stopped") from error
                gevent.sleep(retry_ms / 1000 * random.uniform(0.5, 1.0))
                retry_ms = min(retry_ms * 2, self._settings.ledger.retry_ms_max)
                continue
            except Fenced as error:
                raise IncarnationEnded(f"fenced at a take-over: {error}") from error
            retry_ms = self._settings.ledger.retry_ms_min
            self._outage.back("map")
            self._ready()
            self._wake.wait(self._settings.map_poll_ms / 1000)

    # -- one step -----------------------------------------------------------------------------------------------

    def _step(self) -> None:
        dead = self._watch.dead()
        if dead:
            log.info("peers dead %s", " ".join(f"incarnation={name} reason={why!r}" for name, why in dead.items()))
            self._take_over(list(dead))
            self._watch.forget(dead)
        rows = self._store.read_map()
        if self._check(rows) and rows.ownerless():
            self._take_over([])
            rows = self._store.read_map()
        if not self._check(rows):
            return
        self._ledger.write_at(rows.release)
        self._gain(gains(rows, self._lanes, self._held_epochs))
        self._ledger.publish(rows.partition_map())
        able = [self._me, *self._leaving.staying(self._watch.settled())]
        moves = [move for move in plan_moves(rows, able) if move.from_lane in self._lanes]
        if moves and self._hand_over(moves):
            self._refresh()

    def _take_over(self, dead: Sequence[str]) -> None:
        failpoint("keeper.before_take_over")
        version = self._store.take_over(dead, sorted(self._lanes), self._term)
        failpoint("keeper.after_take_over")
        log.info("taken over from=%s map_version=%s", ",".join(dead) or "nobody", version)

    def _check(self, rows: MapRows) -> bool:
        """Whether these rows are to be acted upon. Raises IncarnationEnded when they show that we are over."""
        if rows.term != self._term:
            raise IncarnationEnded(f"the cell's term is {rows.term}, ours was {self._term}")
        dead = dead_lanes(rows, self._lanes)
        if dead:
            raise IncarnationEnded(f"our lanes {dead} are dead: others have taken over")
        if rows.map_version < self._ledger.map.version:
            return False
        self._leaving.learn(rows)
        lost = strayed(rows, self._lanes, self._ledger.owned())
        if lost:
            raise IncarnationEnded(f"partitions {lost[:8]} are on others' lanes without a hand-over of ours")
        return True

    def _refresh(self) -> None:
        """Tell everyone the map that our own change has made."""
        rows = self._store.read_map()
        if self._check(rows):
            self._gain(gains(rows, self._lanes, self._held_epochs))
            self._ledger.publish(rows.partition_map())

    def _gain(self, gained: Sequence[Gain]) -> None:
        """Decide upon these once their lanes have committed a barrier: whatever is read then is committed for good."""
        if not gained:
            return
        failpoint("keeper.before_gain")
        self._barriers({gain.lane_id: self._lanes[gain.lane_id] for gain in gained}.values())
        failpoint("keeper.after_gain_barrier")
        for gain in gained:
            self._held_epochs[gain.partition] = gain.owner_epoch
        log.info("partitions gained count=%s", len(gained))
        self._ledger.gain((g.partition, g.owner_epoch, self._lanes[g.lane_id], g.last_n) for g in gained)
        failpoint("keeper.after_gain")

    def _barriers(self, lanes: Iterable[Lane]) -> None:
        self._wait([lane.barrier() for lane in lanes])

    def _wait(self, tickets: Sequence[Ticket]) -> None:
        """A lane settles its tickets or ends the life, so this is bounded by lane_retry_s_max."""
        try:
            for ticket in tickets:
                ticket.wait(self._lane_wait_ms)
        except BusError as error:
            raise IncarnationEnded(f"a lane gave no answer: {error}") from error

    # -- hand over ----------------------------------------------------------------------------------------------

    def _hand_over(self, moves: Sequence[Move]) -> bool:
        """Give partitions to living lanes, each by the last batch of its own lane; whether any went."""
        failpoint("keeper.before_hand_over")
        owned = set(self._ledger.owned())
        tickets: list[tuple[list[int], Ticket]] = []
        for move in moves:
            partitions = [partition for partition in move.partitions if partition in owned]
            if partitions:
                self._ledger.leave(partitions)
                hand_over = HandOver(partitions, move.to_lane)
                tickets.append((partitions, self._lanes[move.from_lane].hand_over(hand_over)))
        went = False
        for partitions, ticket in tickets:
            try:
                self._wait([ticket])
            except ReceiverDead as error:
                log.warning("hand-over refused partitions=%s error=%s", len(partitions), error)
                self._ledger.stay(partitions)
                continue
            log.info("partitions handed over count=%s", len(partitions))
            self._ledger.lose(partitions)
            failpoint("keeper.after_hand_over")
            went = True
        return went

    def _leave_all(self) -> None:
        """The planned end: hand over what the living can take, let the lanes finish the rest."""
        rows = self._store.read_map()
        if self._check(rows):
            able = [self._me, *self._leaving.staying(self._watch.fresh())]
            moves = [move for move in plan_moves(rows, able, leaving=self._me) if move.from_lane in self._lanes]
            if self._hand_over(moves):
                self._ledger.publish(self._store.read_map().partition_map())
        failpoint("keeper.before_last_barrier")
        self._ledger.leave(self._ledger.owned())
        self._barriers(self._lanes.values())
        failpoint("keeper.after_last_barrier")
