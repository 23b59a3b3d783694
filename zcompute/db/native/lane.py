"""A lane's connection on raw PyMySQL: one packet a batch, resent byte for byte when its outcome is unknown."""

import logging
import time

from gevent import sleep
from pymysql.constants import ER

from zcompute.db.batch import Batch
from zcompute.db.durability import ERROR_NOT_REPLICATED
from zcompute.db.errors import (
    AlreadyApplied,
    ConnectionLost,
    DatabaseBusy,
    Fenced,
    GuardFailed,
    ReceiverDead,
    StoreError,
)
from zcompute.db.native.connection import (
    ER_LOCK_DEADLOCK,
    ER_LOCK_WAIT_TIMEOUT,
    Connection,
    ServerError,
    describe,
    store_error,
)
from zcompute.db.native.lane_lock import take_lane
from zcompute.db.native.packet import ERROR_FENCED, ERROR_GUARD, ERROR_RECEIVER_DEAD, STAGE_LANE, render
from zcompute.db.row_errors import bad_row
from zcompute.db.tables import CODECS
from zcompute.db.url import MariaDbTarget
from zcompute.failpoints import failpoint

log = logging.getLogger(__name__)

COMMIT_TRIES_MAX = 3
CONNECT_DEADLINE_MS = 5_000
_RECONNECT_PAUSE_S = 0.05

ER_CONSTRAINT_FAILED = 4025
DATA_ERRORS = frozenset(
    {
        ER.DUP_ENTRY,
        ER.DATA_TOO_LONG,
        ER.BAD_NULL_ERROR,
        ER.TRUNCATED_WRONG_VALUE,
        ER.TRUNCATED_WRONG_VALUE_FOR_FIELD,
        ER.WARN_DATA_OUT_OF_RANGE,
        ER.WARN_DATA_TRUNCATED,
        ER.TOO_BIG_ROWSIZE,
        ER_CONSTRAINT_FAILED,
    }
)


class NativeLane:
    """LaneConnection on MariaDB. Connects at the first commit. ``replicated``: nothing counts as committed that no
    replica has."""

    def __init__(self, target: MariaDbTarget, lane_id: int, term: int, *, replicated: bool = False) -> None:
        self._target = target
        self._lane_id = lane_id
        self._term = term
        self._replicated = replicated
        self._connection: Connection | None = None
        self._was_opened = False

    def commit(self, batch: Batch) -> None:
        if batch.lane_id != self._lane_id or batch.term != self._term:
            raise ValueError(
                f"expected a batch of lane {self._lane_id} term {self._term}, found lane {batch.lane_id} "
                f"term {batch.term}"
            )
        if batch.rendered is None:
            batch.rendered = render(batch, replicated=self._replicated)
        if self._connection is None and not self._was_opened:
            self.reconnect(CONNECT_DEADLINE_MS)
        for _ in range(COMMIT_TRIES_MAX):
            try:
                self._open().query(batch.rendered, passing="session.sent")
                failpoint("session.answered")
                return
            except ServerError as error:
                if error.code not in (ER_LOCK_DEADLOCK, ER_LOCK_WAIT_TIMEOUT):
                    raise self._verdict(batch, error) from error
                failure = error
        raise DatabaseBusy(f"lane {self._lane_id}: {COMMIT_TRIES_MAX} times {failure}") from failure

    def _open(self) -> Connection:
        # Never a new connection unasked: what is to be done first on one is the caller's business.
        if self._connection is None or not self._connection.is_open:
            raise ConnectionLost(f"lane {self._lane_id} has no connection: reconnect first")
        return self._connection

    def _verdict(self, batch: Batch, error: ServerError) -> StoreError:
        """What an error answer means. The batch was rolled back."""
        stage, _, reason = error.message.partition(": ")
        if error.code == ERROR_FENCED:
            return self._fenced(batch)
        if error.code == ERROR_GUARD:
            return GuardFailed(stage)
        if error.code == ERROR_RECEIVER_DEAD:
            return ReceiverDead(f"the receiving lane of batch {batch.number} of lane {self._lane_id} is dead")
        if error.code == ERROR_NOT_REPLICATED:
            return DatabaseBusy(f"lane {self._lane_id}: the primary does not wait for a replica: durability replicated")
        if error.code in DATA_ERRORS and stage in CODECS:
            return bad_row(batch, stage, reason)
        return store_error(error)

    def _fenced(self, batch: Batch) -> StoreError:
        """Fenced, or the resend of a batch that was committed before?"""
        try:
            rows = self._open().rows(
                b"SELECT alive, term, applied, nonce FROM lanes WHERE lane_id = %d" % self._lane_id
            )
        except ServerError as error:
            return store_error(error)
        return fence_verdict(batch, rows[0] if rows else None)

    def reconnect(self, deadline_ms: int) -> None:
        ends_at = time.monotonic() + deadline_ms / 1000
        self.close()
        while True:
            try:
                self._connect()
                return
            except (ConnectionLost, DatabaseBusy) as error:
                if time.monotonic() + _RECONNECT_PAUSE_S > ends_at:
                    raise ConnectionLost(f"lane {self._lane_id}: {error}") from error
            sleep(_RECONNECT_PAUSE_S)

    def _connect(self) -> None:
        connection = Connection(self._target)
        self._was_opened = True
        try:
            take_lane(self._target, self._lane_id, lambda sql: connection.rows(sql.encode())[0][0])
            connection.query(
                b"UPDATE lanes SET connection_id = %d WHERE lane_id = %d" % (connection.thread_id, self._lane_id)
            )
        except ServerError as error:
            connection.cut()
            raise store_error(error) from error
        except BaseException:
            connection.cut()
            raise
        self._connection = connection
        log.info("lane connected lane=%s server=%s", self._lane_id, describe(self._target))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.cut()


def fence_verdict(batch: Batch, found: tuple[int, int, int, int] | None) -> StoreError:
    """AlreadyApplied where the watermark is this very batch's; else Fenced. ``found``: alive, term, applied, nonce."""
    if found is None:
        return Fenced(f"{STAGE_LANE}: lane {batch.lane_id} is gone")
    alive, term, applied, nonce = found
    if applied == batch.number and nonce == batch.nonce and term == batch.term:
        return AlreadyApplied(f"batch {batch.number} of lane {batch.lane_id} was committed before")
    return Fenced(
        f"lane {batch.lane_id} is {'alive' if alive else 'dead'} in term {term} at batch {applied}; "
        f"batch {batch.number} of term {batch.term} may not follow"
    )
