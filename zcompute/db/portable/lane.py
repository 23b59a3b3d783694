"""A lane's connection on SQLAlchemy: for MariaDB a connection of its own, for SQLite turns of the one thread."""

import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import sqlalchemy as sa
from gevent import sleep

from zcompute.db.batch import Batch
from zcompute.db.errors import BadRow, ConnectionLost, DatabaseBusy, StoreError
from zcompute.db.native.lane import COMMIT_TRIES_MAX, CONNECT_DEADLINE_MS, fence_verdict
from zcompute.db.native.lane_lock import take_lane
from zcompute.db.portable.apply import FenceMissed, RowsRefused, apply, named_bad_row
from zcompute.db.portable.engine import PortableConnection
from zcompute.db.portable.failures import DataRefused
from zcompute.db.portable.session import transact
from zcompute.db.schema import lanes
from zcompute.db.url import MariaDbTarget

log = logging.getLogger(__name__)

R = TypeVar("R")

_RECONNECT_PAUSE_S = 0.05


class LaneLink(Protocol):
    """Where a lane's transactions run."""

    def transact(self, work: Callable[[sa.Connection], R]) -> R:
        """One transaction. Raises what translated() raises."""

    def open(self) -> None:
        """Make sure that the former connection is gone, then open a new one. Raises ConnectionLost, DatabaseBusy."""

    @property
    def was_opened(self) -> bool:
        """Has open() succeeded before?"""

    def close(self) -> None:
        """Close the connection."""


class PortableLane:
    """LaneConnection over a LaneLink."""

    def __init__(self, link: LaneLink, lane_id: int, term: int) -> None:
        self._link = link
        self._lane_id = lane_id
        self._term = term

    def commit(self, batch: Batch) -> None:
        if batch.lane_id != self._lane_id or batch.term != self._term:
            raise ValueError(
                f"expected a batch of lane {self._lane_id} term {self._term}, found lane {batch.lane_id} "
                f"term {batch.term}"
            )
        if not self._link.was_opened:
            self.reconnect(CONNECT_DEADLINE_MS)
        for _ in range(COMMIT_TRIES_MAX):
            try:
                self._link.transact(lambda connection: apply(connection, batch))
                return
            except DatabaseBusy as error:
                failure = error
            except FenceMissed as error:
                raise fence_verdict(batch, error.found) from error
            except RowsRefused as error:
                raise self._bad_row(batch, error) from error
            except DataRefused as error:
                raise BadRow("lanes", None, str(error)) from error
        raise DatabaseBusy(f"lane {self._lane_id}: {COMMIT_TRIES_MAX} times {failure}") from failure

    def _bad_row(self, batch: Batch, refused: RowsRefused) -> StoreError:
        try:
            return self._link.transact(lambda connection: named_bad_row(connection, batch, refused))
        except StoreError:
            # The batch was rolled back for certain; only the row's name could not be found out.
            return BadRow(refused.change.table.name, None, refused.reason)

    def reconnect(self, deadline_ms: int) -> None:
        ends_at = time.monotonic() + deadline_ms / 1000
        self.close()
        while True:
            try:
                self._link.open()
                return
            except (ConnectionLost, DatabaseBusy) as error:
                if time.monotonic() + _RECONNECT_PAUSE_S > ends_at:
                    raise ConnectionLost(f"lane {self._lane_id}: {error}") from error
            sleep(_RECONNECT_PAUSE_S)

    def close(self) -> None:
        self._link.close()


class MariaDbLink:
    """A connection of the lane's own."""

    def __init__(self, target: MariaDbTarget, engine: sa.Engine, lane_id: int) -> None:
        self._target = target
        self._engine = engine
        self._lane_id = lane_id
        self._connection: PortableConnection | None = None
        self.was_opened = False

    def transact(self, work: Callable[[sa.Connection], R]) -> R:
        if self._connection is None or not self._connection.is_open:
            raise ConnectionLost(f"lane {self._lane_id} has no connection: reconnect first")
        return transact(self._connection, work)

    def open(self) -> None:
        connection = PortableConnection(self._engine)
        mark = sa.update(lanes).where(lanes.c.lane_id == self._lane_id).values(connection_id=connection.thread_id)

        def ask(sql: str) -> object:
            return transact(connection, lambda session: session.exec_driver_sql(sql).scalar())

        try:
            take_lane(self._target, self._lane_id, ask)
            transact(connection, lambda sql: sql.execute(mark).close())
        except BaseException:
            connection.cut()
            raise
        self._connection = connection
        self.was_opened = True
        log.info("lane connected lane=%s", self._lane_id)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.cut()
