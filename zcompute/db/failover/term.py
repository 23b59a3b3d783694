"""The cell's term, raised at the server that becomes the primary: whoever wrote under the former one is over."""

import time

from zcompute.db.backup import COUNTERS, NUMBERED, next_history
from zcompute.db.native.connection import Connection
from zcompute.objects.epochs import HISTORY_BITS, history_of

# Map versions that nobody was told of for certain: one committed at the lost primary alone may have been seen there
# after a crash, before a barrier, and agents refuse what is older than they have seen.
VERSIONS = 1024
_COUNT = (1 << HISTORY_BITS) - 1


def raise_term(connection: Connection, *, new_history: bool, now_s: float | None = None) -> int:
    """In one transaction: a higher term, a higher map version, and no lane, beat or conductor of before alive.

    ``new_history``: what was acknowledged may be gone, so every number that only rises goes on above any former value,
    as after a restore (zcompute.objects.epochs). Returns the term. Raises ServerError, ConnectionLost.
    """
    connection.query(b"SET GLOBAL rpl_semi_sync_master_enabled = OFF")  # nobody follows it yet, who could acknowledge
    connection.query(b"START TRANSACTION")
    connection.query(b"UPDATE cell_state SET term = term + 1, map_version = map_version + %d WHERE id = 1" % VERSIONS)
    if new_history:
        version = int(connection.rows(b"SELECT map_version FROM cell_state WHERE id = 1")[0][0])
        history = next_history(history_of(version), now_s if now_s is not None else time.time())
        _begin_history(connection, history)
    connection.query(b"UPDATE lanes SET alive = 0")
    connection.query(b"UPDATE conductors SET alive = 0")
    connection.query(b"DELETE FROM beats")
    term = int(connection.rows(b"SELECT term FROM cell_state WHERE id = 1")[0][0])
    connection.query(b"COMMIT")
    return term


def _begin_history(connection: Connection, history: int) -> None:
    present = {row[0] for row in connection.rows(b"SHOW TABLES")}
    columns = {**COUNTERS, **dict.fromkeys(NUMBERED, ("n",))}
    for table, names in columns.items():
        if table in present:
            sets = ", ".join(f"{name} = ({name} & {_COUNT}) + {history << HISTORY_BITS}" for name in names)
            connection.query(f"UPDATE {table} SET {sets}".encode())  # noqa: S608  # our own names, and numbers


def newest_change(connection: Connection) -> str:
    """When the newest change was made that this server has, by the primary's UTC clock; empty where there is none."""
    found = connection.rows(
        b"SELECT TABLE_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() "
        b"AND COLUMN_NAME = 'updated_at_us' AND TABLE_NAME IN ('instances', 'instance_mappings')"
    )
    newest = ""
    for (table,) in found:
        text = connection.rows(
            f"SELECT CAST(FROM_UNIXTIME(MAX(updated_at_us) / 1000000) AS CHAR) FROM {table}".encode()  # noqa: S608
        )[0][0]
        newest = max(newest, str(text or ""))
    return newest
