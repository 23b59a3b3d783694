"""What the primary is asked for the replicas' sake: where its log is, and who it is. Tiny questions, shared."""

import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

import gevent

from zcompute.db.errors import ConnectionLost, StoreError
from zcompute.db.native.connection import Connection, ServerError, store_error
from zcompute.db.native.rows import cells
from zcompute.db.replicas.identity import Identity, identity_of
from zcompute.db.replicas.lag import Samples
from zcompute.db.replicas.position import Position, parse_position
from zcompute.db.replicas.shared import Gathering
from zcompute.db.url import MariaDbTarget
from zcompute.log import REPEATED

log = logging.getLogger(__name__)

QUESTION_S_MAX = 5.0
CONNECT_S_MAX = 2.0
SAMPLE_S = 0.2  # asked so often at least, for the lag's sake
IDENTITY_S = 2.0
_QUESTION = b"SELECT @@server_id, @@gtid_current_pos"


class Answered(NamedTuple):
    """Where the log was after ``at_s``: all that had committed by then is in it."""

    at_s: float
    position: Position


class PrimaryPositions:
    """The shared question of one process, on a connection of its own."""

    def __init__(self, target: MariaDbTarget, samples: Samples) -> None:
        self._target = target
        self._samples = samples
        self._connection: Connection | None = None
        self._shared: Gathering[None, Answered] = Gathering(self._ask, keys_max=1)
        self._sampling: gevent.Greenlet | None = None
        self._identity_at_s = 0.0
        self._server_id = 0
        self.identity: Identity | None = None  # None: not known yet
        self.problem = "not asked yet"

    @property
    def asked(self) -> int:
        """Questions so far; ``shared`` says how many reads they served."""
        return self._shared.asked

    @property
    def shared(self) -> int:
        return self._shared.shared

    @property
    def server_id(self) -> int:
        """Of the server that has answered last; 0 before."""
        return self._server_id

    def start(self) -> None:
        """Sample for the lag's sake."""
        self._sampling = gevent.spawn(self._sample)

    def stop(self) -> None:
        if self._sampling is not None:
            self._sampling.kill(block=False)
        self._shared.fail(ConnectionLost("the store is closed"))
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.interrupt()  # a question may be under way on it

    def position(self, timeout_s: float) -> Position:
        """Where the primary's log is, asked after this call began.

        Raises ConnectionLost, DatabaseBusy; gevent.Timeout.
        """
        answered = self._shared.get(None, timeout_s)
        if answered is None:
            raise ConnectionLost("the primary did not say where its log is")
        return answered.position

    # -- the connection's greenlet: one question after the other ---------------------------------------------------

    def _ask(self, _: list[None], __: float) -> Mapping[None, Answered]:
        try:
            connection = self._connected()
            at_s = time.monotonic()
            server, text = cells(connection.packets(_QUESTION)[0])
            position = parse_position((text or b"").decode())
            if int(server or 0) != self._server_id:
                self._another(int(server or 0))
            if self.identity is None or at_s - self._identity_at_s >= IDENTITY_S:
                self.identity = identity_of(connection, replica=False)
                self._identity_at_s = at_s
        except ServerError as error:
            self._away(str(error))
            raise store_error(error) from error
        except StoreError as error:
            self._away(str(error))
            raise
        self.problem = ""
        self._samples.add(at_s, position)
        return {None: Answered(at_s, position)}

    def _connected(self) -> Connection:
        if self._connection is None or not self._connection.is_open:
            self._connection = Connection(self._target, timeout_s=QUESTION_S_MAX, connect_timeout_s=CONNECT_S_MAX)
            self.identity = None  # whoever answers now
        return self._connection

    def _another(self, server_id: int) -> None:
        if self._server_id:
            log.warning("another primary, its replicas are looked at anew server_id=%s", server_id)
        self._server_id = server_id
        self.identity = None
        self._samples.clear()

    def _away(self, problem: str) -> None:
        self.problem = problem
        log.info("primary not asked error=%s", problem, extra=REPEATED)

    def _sample(self) -> None:
        while True:
            try:
                if time.monotonic() - self._samples.newest_at_s >= SAMPLE_S or self.identity is None:
                    self.position(QUESTION_S_MAX + CONNECT_S_MAX)
            except StoreError:
                log.debug("no sample of the primary: %s", self.problem)
            except gevent.Timeout:
                self._away("it does not answer")
            gevent.sleep(SAMPLE_S)
