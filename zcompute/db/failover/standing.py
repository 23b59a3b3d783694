"""A server as a promotion sees it, and what may be said about it. ``what_is_known`` asks; the rest is pure."""

from dataclasses import dataclass
from typing import Any

from zcompute.db.errors import StoreError
from zcompute.db.native.connection import Connection, ServerError
from zcompute.db.replicas.position import NOWHERE, Position, parse_position

# Of an IO thread that was begun after it had lost its primary, or that has never had it: what it had received before
# was thrown away at its begin (MariaDB purges the relay log when both threads begin anew by GTID).
BEGUN_ANEW = "Connecting to master"
READ_S_MAX = 60.0
CONNECT_S_MAX = 2.0


@dataclass(frozen=True)
class Standing:
    """``received`` and ``applied`` are of the log that it follows; ``written``: of its own log, whoever wrote it."""

    name: str
    problem: str = ""  # why it could not be asked
    server_id: int = 0
    read_only: bool = True
    cell: str = ""
    term: int = 0
    follows: str = ""  # host:port; empty for nobody
    followed_id: int = 0
    io_state: str = ""  # Yes, No, Connecting
    io_doing: str = ""
    sql_running: bool = False
    error: str = ""
    received: Position = NOWHERE
    applied: Position = NOWHERE
    written: Position = NOWHERE

    @property
    def reached(self) -> bool:
        return not self.problem

    @property
    def follower(self) -> bool:
        return self.reached and bool(self.follows)

    def out_of_reach(self) -> str:
        """Why nobody knows what it had acknowledged; empty where it still has all of that."""
        if self.problem:
            return f"it does not answer: {self.problem}"
        if not self.follows:
            return "it follows nobody"
        if not self.sql_running:
            return f"its SQL thread is stopped{': ' + self.error if self.error else ''}"
        if self.io_doing.startswith(BEGUN_ANEW) or not self.followed_id:
            return "it, or its replication, was started again since the loss: what it had only received is gone"
        return ""


def standing_of(name: str, connection: Connection) -> Standing:
    """Ask a server, as its administrator. Raises ServerError, StoreError."""
    server_id, read_only, cell, term, written, applied = connection.rows(
        b"SELECT @@server_id, @@GLOBAL.read_only, cell, term, @@GLOBAL.gtid_current_pos, @@GLOBAL.gtid_slave_pos "
        b"FROM cell_state WHERE id = 1"
    )[0]
    known: dict[str, Any] = {
        "server_id": int(server_id), "read_only": bool(read_only), "cell": cell, "term": int(term),
        "written": parse_position(written),
    }  # fmt: skip
    rows = connection.named_rows(b"SHOW ALL SLAVES STATUS")
    if not rows:
        return Standing(name, **known)
    if len(rows) > 1:
        return Standing(name, problem=f"it follows {len(rows)} primaries, expected one")
    row = rows[0]
    return Standing(
        name,
        **known,
        follows=f"{row['Master_Host']}:{row['Master_Port']}",
        followed_id=int(row["Master_Server_Id"] or 0),
        io_state=str(row["Slave_IO_Running"]),
        io_doing=str(row["Slave_IO_State"] or ""),
        sql_running=row["Slave_SQL_Running"] == "Yes",
        error=str(row["Last_SQL_Error"] or ""),
        received=parse_position(row["Gtid_IO_Pos"] or ""),
        applied=parse_position(applied or ""),  # the column Gtid_Slave_Pos counts own writes too
    )


def asked(name: str, connection: Connection | StoreError) -> Standing:
    """The same; what goes wrong becomes ``problem``."""
    if isinstance(connection, StoreError):
        return Standing(name, problem=str(connection))
    try:
        return standing_of(name, connection)
    except (StoreError, ServerError, IndexError) as error:
        return Standing(name, problem=str(error) or "its database has no cell in it")
