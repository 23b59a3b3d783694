"""SQLAlchemy engines for both databases, and a connection that a pool can keep."""

import sqlite3
from typing import Any

import sqlalchemy as sa

from zcompute.db.errors import ConnectionLost, StoreError
from zcompute.db.native.connection import IDLE_TRANSACTION_S, Connection
from zcompute.db.portable.failures import translated
from zcompute.db.url import MariaDbTarget, SqliteTarget

SQLITE_BUSY_TIMEOUT_S = 2.0


def mariadb_engine(target: MariaDbTarget) -> sa.Engine:
    """Connections come with the session settings of the native driver, and are pooled by us."""
    return sa.create_engine(
        "mariadb+pymysql://",
        creator=lambda: Connection(target, autocommit=False, idle_transaction_s=IDLE_TRANSACTION_S).driver,
        poolclass=sa.NullPool,
    )


def sqlite_engine(target: SqliteTarget) -> sa.Engine:
    """One connection, for one thread; execution option ``zcompute_writes`` says what a transaction is for.

    The file must be there: migrations make it.
    """

    def connect() -> sqlite3.Connection:
        raw = sqlite3.connect(
            f"file:{_quoted(target.path)}?mode=rw",
            uri=True,
            timeout=SQLITE_BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=True,
        )
        raw.execute("PRAGMA journal_mode=WAL").close()
        raw.execute("PRAGMA synchronous=FULL").close()
        raw.execute("PRAGMA case_sensitive_like=ON").close()  # as names compare in MariaDB
        return raw

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool)

    # Writers lock at once: of two that read first and wrote then, one would fail.
    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("zcompute_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


class PortableConnection:
    """A connection of an engine."""

    def __init__(self, engine: sa.Engine) -> None:
        try:
            with translated():
                self.sql: sa.Connection = engine.connect()
        except StoreError as error:
            raise ConnectionLost(f"cannot connect: {error}") from error

    @property
    def is_open(self) -> bool:
        return not (self.sql.closed or self.sql.invalidated)

    @property
    def thread_id(self) -> int:
        """MariaDB's id of this connection."""
        raw: Any = self.sql.connection.driver_connection
        return int(raw.thread_id())

    def cut(self) -> None:
        """Drop it; an open transaction is rolled back by the database."""
        if self.is_open:
            self.sql.invalidate()
        self.sql.close()
