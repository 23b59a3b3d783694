"""The portable Stores."""

from zcompute.db.native.beater import NativeBeater
from zcompute.db.portable.lane import MariaDbLink, PortableLane
from zcompute.db.portable.session import MariaDbSessions
from zcompute.db.portable.sqlite import SqliteBeater, SqliteLink, SqliteSessions
from zcompute.db.portable.sqlite_thread import SqliteThread
from zcompute.db.session_store import SessionStore
from zcompute.db.store import KIND_MARIADB, KIND_SQLITE, Beater, LaneConnection, Store
from zcompute.db.url import MariaDbTarget, SqliteTarget


def open_portable(url: str, target: MariaDbTarget | SqliteTarget) -> Store:
    """The portable Store for this target."""
    return SqliteStore(url, target) if isinstance(target, SqliteTarget) else PortableMariaDbStore(url, target)


class PortableMariaDbStore(SessionStore):
    """Store on MariaDB through SQLAlchemy Core."""

    def __init__(self, url: str, target: MariaDbTarget) -> None:
        self._pool = MariaDbSessions(target)
        super().__init__(KIND_MARIADB, url, self._pool)
        self._target = target

    def open_lane(self, lane_id: int, term: int) -> LaneConnection:
        return PortableLane(MariaDbLink(self._target, self._pool.engine, lane_id), lane_id, term)

    def open_beater(self, incarnation: str) -> Beater:
        # A native thread must not touch what gevent has patched: the native driver's beater is made for that.
        return NativeBeater(self._target, incarnation)


class SqliteStore(SessionStore):
    """Store on one SQLite file."""

    def __init__(self, url: str, target: SqliteTarget) -> None:
        self._thread = SqliteThread(target)
        super().__init__(KIND_SQLITE, url, SqliteSessions(self._thread))

    def open_lane(self, lane_id: int, term: int) -> LaneConnection:
        return PortableLane(SqliteLink(self._thread), lane_id, term)

    def open_beater(self, incarnation: str) -> Beater:
        return SqliteBeater(self._thread, incarnation)
