"""DDL that never keeps a live cell waiting for long.

On MariaDB every ALTER TABLE and CREATE INDEX runs with ``ALGORITHM=INPLACE, LOCK=NONE`` (which takes INSTANT where it
can; DROP INDEX is so by itself): readers and writers go on, and what cannot be done so is refused by the server before
it begins. The short exclusive lock at its begin and end is waited for LOCK_WAIT_S at most, since whoever comes
meanwhile waits behind it; then it is given up and tried again after a pause. On SQLite a statement is short, or waits
BUSY_S for the file's lock.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from zcompute.db.errors import DatabaseBusy, MigrationBlocks
from zcompute.failpoints import failpoint

log = logging.getLogger(__name__)

LOCK_WAIT_S = 2
TRIES_MAX = 15
PAUSE_S = 1.0
BUSY_S = 5

_ALTER = re.compile(r"^\s*ALTER\s+TABLE\b", re.IGNORECASE)
_INDEX = re.compile(r"^\s*CREATE\s+(UNIQUE\s+)?INDEX\b", re.IGNORECASE)
_DDL = re.compile(r"^\s*(ALTER|CREATE|DROP)\b", re.IGNORECASE)
_LOCKED = frozenset({1205, 1213})
_NOT_ONLINE = frozenset({1845, 1846})


def online_text(statement: str) -> str:
    """A statement with the words that keep the table in use. Pure."""
    if "ALGORITHM=" in statement.upper():
        return statement
    if _ALTER.match(statement):
        return f"{statement.rstrip()}, ALGORITHM=INPLACE, LOCK=NONE"
    if _INDEX.match(statement):
        return f"{statement.rstrip()} ALGORITHM=INPLACE LOCK=NONE"
    return statement


@contextmanager
def bounded(connection: sa.Connection, *, offline: bool) -> Iterator[None]:
    """Inside, statements wait for locks so long at most, and block nobody (unless ``offline``)."""
    on_mariadb = connection.dialect.name != "sqlite"
    if on_mariadb:
        connection.exec_driver_sql(
            f"SET SESSION lock_wait_timeout={LOCK_WAIT_S}, innodb_lock_wait_timeout={LOCK_WAIT_S}"
        )
    else:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={BUSY_S * 1000}")
    connection.rollback()

    def rewrite(_: Any, __: Any, statement: str, parameters: Any, ___: Any, ____: bool) -> tuple[str, Any]:
        if _DDL.match(statement):
            failpoint("migrate.before_ddl")
            if on_mariadb and not offline:
                statement = online_text(statement)
        return statement, parameters

    sa.event.listen(connection, "before_cursor_execute", rewrite, retval=True)
    try:
        yield
    finally:
        sa.event.remove(connection, "before_cursor_execute", rewrite)


def patiently(revision: str, run: Callable[[], None], undo: Callable[[], None]) -> None:
    """Run a revision, again while a lock is not to be had: its steps look at what is there.

    Raises DatabaseBusy after TRIES_MAX, MigrationBlocks for a change that cannot be made in a table in use.
    """
    for tried in range(1, TRIES_MAX + 1):
        try:
            run()
            return
        except sa.exc.DBAPIError as error:
            undo()
            code = error.orig.args[0] if error.orig is not None and error.orig.args else 0
            if code in _NOT_ONLINE:
                raise MigrationBlocks(
                    f"revision {revision} cannot be made while the cell works, and was not begun: {error.orig}; "
                    "stop the cell's conductors and run it with --offline"
                ) from error
            if code not in _LOCKED and "locked" not in str(error.orig):
                raise
            log.info("migration waits for a lock revision=%s tries=%s error=%s", revision, tried, error.orig)
        if tried < TRIES_MAX:
            time.sleep(PAUSE_S)
    raise DatabaseBusy(
        f"revision {revision}: a lock was not to be had in {TRIES_MAX} tries of {LOCK_WAIT_S} s; who holds it, says "
        "information_schema.innodb_trx: end that transaction and run the upgrade again"
    )
