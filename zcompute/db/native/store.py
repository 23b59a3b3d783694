"""The native Store: raw PyMySQL on MariaDB."""

from zcompute.db.native.beater import NativeBeater
from zcompute.db.native.lane import NativeLane
from zcompute.db.native.session import NativeSessions
from zcompute.db.session_store import SessionStore
from zcompute.db.store import KIND_MARIADB, Beater, LaneConnection
from zcompute.db.url import MariaDbTarget


class NativeStore(SessionStore):
    """Store on MariaDB: one packet a batch, literals of our own, pooled readers."""

    def __init__(self, url: str, target: MariaDbTarget, *, replicated: bool = False) -> None:
        super().__init__(KIND_MARIADB, url, NativeSessions(target))
        self._target = target
        self._replicated = replicated

    def open_lane(self, lane_id: int, term: int) -> LaneConnection:
        return NativeLane(self._target, lane_id, term, replicated=self._replicated)

    def open_beater(self, incarnation: str) -> Beater:
        return NativeBeater(self._target, incarnation, replicated=self._replicated)
