"""What SQLAlchemy raises, sorted into our errors."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from pymysql.err import MySQLError

from zcompute.db.errors import ConnectionLost, DatabaseBusy, StatementFailed, StoreError
from zcompute.db.native.connection import ER_LOCK_WAIT_TIMEOUT, ServerError, is_from_server, store_error
from zcompute.db.native.lane import DATA_ERRORS
from zcompute.db.session import LockWaitTimeout

_SQLITE_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SQLITE_NOT_DONE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_INTERRUPT})  # the latter: a deadline passed
# The file or its disk failed us: what was being committed may be there or not.
_SQLITE_LOST = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT})
_SQLITE_DATA = frozenset({sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG})


class DataRefused(StoreError):
    """The database refused the values of a statement; a lane makes a BadRow of it."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise our errors instead of SQLAlchemy's. Those of values become DataRefused."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise _of_driver(error.orig, str(error.orig)) from error
    except (OverflowError, UnicodeError) as error:
        raise DataRefused(str(error)) from error
    except OSError as error:
        raise ConnectionLost(f"the connection broke in a statement: {error!r}") from error


def _of_driver(error: BaseException | None, words: str) -> StoreError:
    if isinstance(error, sqlite3.Error):
        return _of_sqlite(error, words)
    if isinstance(error, MySQLError):
        code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
        if not is_from_server(code):
            return ConnectionLost(f"the connection broke in a statement: {words}")
        if code in DATA_ERRORS:
            return DataRefused(words)
        answer = ServerError(code, words)
        return LockWaitTimeout(words) if code == ER_LOCK_WAIT_TIMEOUT else store_error(answer)
    return ConnectionLost(f"the connection broke in a statement: {words}")


def _of_sqlite(error: sqlite3.Error, words: str) -> StoreError:
    extended = getattr(error, "sqlite_errorcode", None)
    if extended is None:
        # Raised by the module itself: values that it cannot bind.
        return DataRefused(words)
    code = extended & 0xFF
    if code in _SQLITE_BUSY:
        return LockWaitTimeout(words)
    if code in _SQLITE_NOT_DONE:
        return DatabaseBusy(words)
    if code in _SQLITE_DATA:
        return DataRefused(words)
    return ConnectionLost(words) if code in _SQLITE_LOST else StatementFailed(extended, words)
