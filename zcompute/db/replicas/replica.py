"""One replica: its reads, its one waiter, and the watch that says whether it may be read."""

import logging
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import gevent
from gevent.event import AsyncResult, Event

from zcompute.db.errors import ConnectionLost, DatabaseBusy, StoreError
from zcompute.db.native.connection import Connection, ServerError, describe, store_error
from zcompute.db.native.literal import text_literal
from zcompute.db.native.rows import cells
from zcompute.db.native.session import NativeSession
from zcompute.db.replicas.identity import identity_of, refusal, trouble
from zcompute.db.replicas.lag import Samples
from zcompute.db.replicas.position import NOWHERE, Position, later, parse_position
from zcompute.db.replicas.primary import PrimaryPositions
from zcompute.db.replicas.shared import Gathering
from zcompute.db.replicas.standing import Standing, State
from zcompute.db.session import Pool
from zcompute.db.url import MariaDbTarget
from zcompute.db.view import Joined, SessionView, View
from zcompute.log import REPEATED

log = logging.getLogger(__name__)

R = TypeVar("R")
K = TypeVar("K", bound=Hashable)
A = TypeVar("A")

READERS_MAX = 8  # connections for pages; each question by key has one more
READERS_WAIT_S = 2.0
READ_S_MAX = 20.0
CONNECT_S_MAX = 1.0
LOOK_S = 0.1  # between two looks at what it has applied, and the longest that a wait keeps the watch busy
LOOK_S_MAX = 1.0  # a look that takes longer means that it does not answer
IDENTITY_S = 2.0
WAITERS_MAX = 10_000
KEYS_MAX = 100  # of one question

_APPLIED = b"SELECT 0, @@gtid_slave_pos"


class Replica:
    """Begun by ``start``. All its greenlets and connections end with ``stop``."""

    def __init__(
        self, name: str, target: MariaDbTarget, samples: Samples, primary: PrimaryPositions, behind_s_max: float
    ) -> None:  # fmt: skip
        self.name = name
        self.place = describe(target)
        self.standing = Standing(behind_s_max)
        self.trouble = ""
        self.reads = 0  # answered here
        self.waits = 0  # of them, those that had to wait for their position
        self.failures = 0
        self._target = target
        self._samples = samples
        self._primary = primary
        self._applied = NOWHERE
        self._applied_at_s = 0.0
        self._behind_s = 0.0
        self._looking_since_s = 0.0
        self._in_flight = 0
        self._waiting: list[tuple[Position, AsyncResult]] = []
        self._wanted = Event()
        self._in_use: set[Connection] = set()
        self._pool: Pool[Connection] = Pool(self._connect, READERS_MAX, READERS_WAIT_S)
        self._gatherings: dict[str, Gathering[Any, Any]] = {}
        self._keyed: dict[str, Connection] = {}  # by the question's name
        self._watching: gevent.Greenlet | None = None
        self._identity_at_s = 0.0
        self._follows = 0

    # -- what is known of it ------------------------------------------------------------------------------------------

    @property
    def takes_reads(self) -> bool:
        """It answers, keeps up, and was seen to follow the server that is the primary now."""
        return self.standing.takes_reads and self._follows == self._primary.server_id

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def behind_s(self) -> float:
        """As of the last look; a look that takes long counts from its begin."""
        if self._looking_since_s:
            return max(self._behind_s, time.monotonic() - self._looking_since_s - LOOK_S)
        return self._behind_s

    def age_s(self, now_s: float) -> float | None:
        """At most so old is what it shows; None when that is not known."""
        return self._samples.age_s(self._applied, now_s)

    # -- reads --------------------------------------------------------------------------------------------------------

    def wait(self, position: Position, timeout_s: float) -> None:
        """Until it has applied the position. Raises gevent.Timeout, ConnectionLost when it falls out meanwhile,
        DatabaseBusy at the limit."""
        if self._applied.covers(position):
            return
        if len(self._waiting) >= WAITERS_MAX:
            raise DatabaseBusy(f"{WAITERS_MAX} reads wait for replica {self.name} already")
        waiter = (position, AsyncResult())
        self._waiting.append(waiter)
        self._wanted.set()
        self.waits += 1
        self._in_flight += 1
        try:
            waiter[1].get(timeout=timeout_s)
        finally:
            self._in_flight -= 1
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def read(self, work: Callable[[View], R], ends_at_s: float) -> R:
        """Run ``work`` on one of its connections; the server ends what it reads by then.

        Raises ConnectionLost, DatabaseBusy, StatementFailed.
        """
        self._in_flight += 1
        try:
            with self._pool.borrow() as (connection, used):
                try:
                    return self._run(connection, work, ends_at_s)
                except ConnectionLost:
                    if not used or not self.takes_reads:
                        raise
            with self._pool.borrow(fresh=True) as (connection, _):
                return self._run(connection, work, ends_at_s)
        finally:
            self._in_flight -= 1

    def get(self, joined: Joined[K, A], key: K, timeout_s: float) -> A | None:
        """One answer by its key, read together with those that others ask for now. Raises as read does, and
        gevent.Timeout."""
        gathering: Gathering[K, A] | None = self._gatherings.get(joined.name)
        if gathering is None:
            gathering = self._gatherings[joined.name] = Gathering(
                lambda keys, ends_at_s: self._ask(joined, keys, ends_at_s), keys_max=KEYS_MAX
            )
        self._in_flight += 1
        try:
            return gathering.get(key, timeout_s)
        finally:
            self._in_flight -= 1

    def fell_short(self, reason: str) -> None:
        """A read did not end there: take it out until a look shows that it answers."""
        self.failures += 1
        if self.standing.takes_reads:
            self._lost(reason)

    def _run(self, connection: Connection, work: Callable[[View], R], ends_at_s: float) -> R:
        self._in_use.add(connection)
        try:
            return work(SessionView(NativeSession(connection, ends_at_s)))
        finally:
            self._in_use.discard(connection)

    def _ask(self, joined: Joined[K, A], keys: list[K], ends_at_s: float) -> Mapping[K, A]:
        """One at a time for each name, each on a connection of its own, so that a greenlet ended in the middle of a
        question has no other's connection."""
        connection = self._keyed.get(joined.name)
        if connection is not None and connection.is_open:
            try:
                return joined.ask(SessionView(NativeSession(connection, ends_at_s)), keys)
            except ConnectionLost:
                log.debug("connection had been dropped replica=%s", self.name)
        connection = self._keyed[joined.name] = self._connect()
        return joined.ask(SessionView(NativeSession(connection, ends_at_s)), keys)

    def _connect(self) -> Connection:
        return Connection(self._target, timeout_s=READ_S_MAX, connect_timeout_s=CONNECT_S_MAX)

    # -- the watch ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Look at it, and go on doing so."""
        self._watching = gevent.spawn(self._watch)

    def stop(self) -> None:
        if self._watching is not None:
            self._watching.kill(block=False)
        self._let_go("the store is closed")
        self._pool.close()
        for connection in self._keyed.values():
            connection.interrupt()
        self._keyed.clear()

    def _watch(self) -> None:
        while True:
            connection: Connection | None = None
            try:
                connection = Connection(self._target, timeout_s=LOOK_S_MAX, connect_timeout_s=CONNECT_S_MAX)
                self._identity_at_s = 0.0
                while True:
                    self._look(connection)
            except (StoreError, ServerError) as error:
                self._lost(str(error))
            except Exception as error:  # the watch must go on
                log.exception("replica not looked at name=%s", self.name)
                self._lost(repr(error))
            finally:
                self._looking_since_s = 0.0
                if connection is not None:
                    connection.cut()
            gevent.sleep(max(LOOK_S, self.standing.look_at_s - time.monotonic()))

    def _look(self, connection: Connection) -> None:
        """Once: who it is, every IDENTITY_S; where it is; who waits for that. Then a pause, unless somebody waits."""
        now_s = time.monotonic()
        if now_s - self._identity_at_s >= IDENTITY_S or self.standing.state is State.AWAY:
            self._identify(connection)
        self._see_applied(connection)
        if self.standing.state is State.REFUSED or self.standing.state is State.NEW:
            gevent.sleep(max(LOOK_S, self.standing.look_at_s - time.monotonic()))
            self._identity_at_s = 0.0
        elif not self._waiting:
            self._wanted.clear()
            self._wanted.wait(LOOK_S)

    def _identify(self, connection: Connection) -> None:
        primary = self._primary.identity
        if primary is None:
            return  # nobody knows yet what it should be
        self._looking_since_s = time.monotonic()
        found = identity_of(connection, replica=True)
        now_s = time.monotonic()
        self._looking_since_s = 0.0
        self._identity_at_s = now_s
        reason = refusal(found, primary)
        if reason:
            self._leave(self.standing.refused, reason)
            return
        self.trouble = trouble(found, primary)
        self._follows = primary.server_id
        before = self.standing.state
        self.standing.passed(now_s)
        if before is not self.standing.state:
            log.info("replica takes reads name=%s place=%s", self.name, self.place)

    def _see_applied(self, connection: Connection) -> None:
        """Ask where it is; while somebody waits, have it answer as soon as it is there, or after LOOK_S."""
        target = NOWHERE
        for position, _ in self._waiting:
            target = later(target, position)
        statement = _APPLIED
        if target.domains:
            place = text_literal(target.text)
            statement = b"SELECT MASTER_GTID_WAIT(" + place + b", %.3f), @@gtid_slave_pos" % LOOK_S
        sent_s = self._looking_since_s = time.monotonic()
        try:
            waited, text = cells(connection.packets(statement)[0])
        except ServerError as error:
            raise store_error(error) from error
        finally:
            self._looking_since_s = 0.0
        applied = parse_position((text or b"").decode())
        if target.domains and waited == b"0":
            applied = later(applied, target)
        self._applied, self._applied_at_s = applied, sent_s
        self._behind_s = self._samples.behind_s(applied, sent_s)
        before = self.standing.state
        self.standing.measured(self._behind_s, time.monotonic())
        if self.standing.state is not before:
            self._weighed_anew()
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for position, waiter in waiting:
            if self._applied.covers(position):
                waiter.set(True)
            else:
                self._waiting.append((position, waiter))

    def _weighed_anew(self) -> None:
        if self.standing.takes_reads:
            log.info("replica takes reads again name=%s", self.name)
            return
        reason = f"{self.standing.reason}{': ' + self.trouble if self.trouble else ''}"
        log.warning("replica takes no reads name=%s reason=%s", self.name, reason)
        self._let_go(reason)

    def _lost(self, reason: str) -> None:
        self._leave(self.standing.lost, reason)

    def _leave(self, how: Callable[[str, float], None], reason: str) -> None:
        known = (self.standing.state, self.standing.reason)
        how(reason, time.monotonic())
        level = logging.INFO if known == (self.standing.state, self.standing.reason) else logging.WARNING
        log.log(level, "replica takes no reads name=%s reason=%s", self.name, reason, extra=REPEATED)
        self._let_go(reason)

    def _let_go(self, reason: str) -> None:
        """Whoever waits or reads here goes elsewhere, now."""
        error = ConnectionLost(f"replica {self.name} takes no reads: {reason}")
        waiting, self._waiting = self._waiting, []
        for _, waiter in waiting:
            waiter.set_exception(error)
        for gathering in self._gatherings.values():
            gathering.fail(error)
        if self.standing.state is not State.LAGGING:
            for connection in list(self._in_use):
                connection.interrupt()
