"""Where a read goes: a replica that has what it must see, another one once, the primary when no replica can."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from random import Random
from typing import Any, TypeVar

import gevent

from zcompute.db.errors import ConnectionLost, DatabaseBusy
from zcompute.db.replicas.choice import choose
from zcompute.db.replicas.lag import Samples
from zcompute.db.replicas.need import PRIMARY, Kind, Need
from zcompute.db.replicas.position import Position
from zcompute.db.replicas.primary import PrimaryPositions
from zcompute.db.replicas.replica import KEYS_MAX, Replica
from zcompute.db.replicas.shared import Gathering
from zcompute.db.store import Store
from zcompute.db.url import MariaDbTarget
from zcompute.db.view import Joined, View

log = logging.getLogger(__name__)

R = TypeVar("R")
K = TypeVar("K", bound=Hashable)
A = TypeVar("A")

TRIES_MAX = 2  # replicas a read is tried at
TRY_SHARE = 0.5  # of the time that is left, for each
PRIMARY_FLIGHTS_MAX = 2  # questions by key at once

Attempt = Callable[[Replica, float], R]


class Reading:
    """The reads of one process. Without replicas all go to the primary, those by key joined all the same."""

    def __init__(self, store: Store, positions: PrimaryPositions | None = None, replicas: Sequence[Replica] = ()):
        self._store = store
        self._positions = positions
        self.replicas = list(replicas)
        self._draw = Random()
        self._at_primary: dict[str, Gathering[Any, Any]] = {}
        self.by_kind: Counter[Kind] = Counter()  # reads asked for
        self.at_primary: Counter[Kind] = Counter()  # of them, those that read rows at the primary
        self.confirmed = 0  # misses of STALE reads that were looked up at the primary
        self.second_tries = 0

    def start(self) -> None:
        """Begin to look at the replicas."""
        if self._positions is not None:
            self._positions.start()
        for replica in self.replicas:
            replica.start()

    def stop(self) -> None:
        """End every greenlet and connection of ours; what is under way fails."""
        for replica in self.replicas:
            replica.stop()
        if self._positions is not None:
            self._positions.stop()
        for gathering in self._at_primary.values():
            gathering.fail(ConnectionLost("the store is closed"))

    @property
    def positions_asked(self) -> tuple[int, int]:
        """Questions for the primary's position, and the reads that they served."""
        return (0, 0) if self._positions is None else (self._positions.asked, self._positions.shared)

    # -- reads --------------------------------------------------------------------------------------------------------

    def read(self, need: Need, ends_at_s: float, work: Callable[[View], R]) -> R:
        """Run ``work`` where ``need`` is met. ``ends_at_s`` is of time.monotonic().

        Raises ConnectionLost, DatabaseBusy, StatementFailed; StoreError of any kind means: not answered.
        """
        return self._read(
            need, ends_at_s,
            lambda replica, left_s: _timed(left_s, lambda: replica.read(work, time.monotonic() + left_s)),
            lambda _: self._store.read_until(ends_at_s, work),
        )  # fmt: skip

    def get(self, need: Need, ends_at_s: float, joined: Joined[K, A], key: K) -> A | None:
        """One answer by its key; those asked for at the same time are read by one statement. Raises as ``read``."""
        found = self._read(
            need, ends_at_s, lambda replica, left_s: replica.get(joined, key, left_s),
            lambda left_s: self._get_at_primary(joined, key, left_s),
        )  # fmt: skip
        if found is None and need.kind is Kind.STALE:
            self.confirmed += 1
            found = self.get(PRIMARY, ends_at_s, joined, key)
        return found

    def _read(self, need: Need, ends_at_s: float, attempt: Attempt[R], at_primary: Callable[[float], R]) -> R:
        self.by_kind[need.kind] += 1
        if time.monotonic() >= ends_at_s:
            raise DatabaseBusy("the caller's deadline has passed: the read was not begun")
        try:
            found = self._try_replicas(need, ends_at_s, attempt)
            if found is not None:
                return found[0]
            self.at_primary[need.kind] += 1
            return at_primary(max(0.0, ends_at_s - time.monotonic()))
        except gevent.Timeout as error:
            raise DatabaseBusy(f"the database has not answered in time: {error}") from error

    def _try_replicas(self, need: Need, ends_at_s: float, attempt: Attempt[R]) -> tuple[R] | None:
        """The answer of a replica, None when no replica takes reads. Raises DatabaseBusy where they do, but have no
        room: the primary is not to be flooded with what was too much for them."""
        tried: list[Replica] = []
        busy: DatabaseBusy | None = None
        position: Position | None = None
        while len(tried) < TRIES_MAX:
            replica = self._fresh(need, time.monotonic(), tried)
            if replica is None:
                position = position or self._position(need, ends_at_s, tried)
                replica = None if position is None else self._chosen(self._candidates(tried))
            if replica is None:
                break
            tried.append(replica)
            self.second_tries += len(tried) > 1
            try:
                answer = self._attempt(replica, position, TRY_SHARE * (ends_at_s - time.monotonic()), attempt)
            except DatabaseBusy as error:
                busy = error
                continue
            if answer is not None:
                return answer
        if busy is not None:
            raise busy
        return None

    def _position(self, need: Need, ends_at_s: float, tried: Sequence[Replica]) -> Position | None:
        """Where the primary's log is; None where no replica can use it, or it writes none."""
        if self._positions is None or need.kind is Kind.PRIMARY or not self._candidates(tried):
            return None
        position = self._positions.position(max(0.0, ends_at_s - time.monotonic()))
        return position if position.domains else None

    def _attempt(
        self, replica: Replica, position: Position | None, left_s: float, attempt: Attempt[R]
    ) -> tuple[R] | None:
        """The answer of this replica, None when it has none in time. Raises DatabaseBusy.

        One that is only late stays: its lag, and whether it answers at all, is for its watch to judge. A single heavy
        read must not cost the others their replica.
        """
        ends_at_s = time.monotonic() + left_s
        try:
            if position is not None:
                replica.wait(position, left_s)
        except (gevent.Timeout, ConnectionLost):
            return None
        try:
            answer = attempt(replica, max(0.0, ends_at_s - time.monotonic()))
        except ConnectionLost as error:
            replica.fell_short(str(error))
            return None
        except gevent.Timeout:
            replica.failures += 1
            return None
        replica.reads += 1
        return (answer,)

    def _fresh(self, need: Need, now_s: float, tried: Sequence[Replica]) -> Replica | None:
        """For a STALE read: one that is known to be near enough without a question."""
        if need.kind is not Kind.STALE:
            return None
        near = []
        for replica in self._candidates(tried):
            age_s = replica.age_s(now_s)
            if age_s is not None and age_s * 1000 <= need.lag_ms_max:
                near.append(replica)
        return self._chosen(near)

    def _candidates(self, tried: Sequence[Replica]) -> list[Replica]:
        return [replica for replica in self.replicas if replica.takes_reads and replica not in tried]

    def _chosen(self, candidates: Sequence[Replica]) -> Replica | None:
        at = choose(candidates, self._draw)
        return None if at is None else candidates[at]

    def _get_at_primary(self, joined: Joined[K, A], key: K, left_s: float) -> A | None:
        gathering: Gathering[K, A] | None = self._at_primary.get(joined.name)
        if gathering is None:
            gathering = self._at_primary[joined.name] = Gathering(
                lambda keys, ends_at_s: self._store.read_until(ends_at_s, lambda view: joined.ask(view, keys)),
                keys_max=KEYS_MAX,
                flights_max=PRIMARY_FLIGHTS_MAX,
            )
        return gathering.get(key, left_s)


def _timed(left_s: float, work: Callable[[], R]) -> R:
    with gevent.Timeout(left_s):
        return work()


def over_replicas(
    store: Store, primary: MariaDbTarget, replicas: Mapping[str, MariaDbTarget], lag_ms_max: int
) -> Reading:
    """Reads over these replicas, by name; nothing is connected before ``start``."""
    samples = Samples()
    positions = PrimaryPositions(primary, samples)
    made = [Replica(name, target, samples, positions, lag_ms_max / 1000) for name, target in replicas.items()]
    return Reading(store, positions, made)
