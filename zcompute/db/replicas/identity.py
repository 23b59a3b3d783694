"""What a server says it is, and whether it is a replica that may be read."""

from dataclasses import dataclass, field
from typing import Any

from zcompute.db.errors import ConnectionLost, StoreError
from zcompute.db.native.connection import Connection, ServerError, store_error

_NO_SUCH_TABLE = 1146
_DENIED = frozenset({1045, 1227})
_UNKNOWN_DATABASE = 1049


@dataclass(frozen=True)
class Followed:
    """A primary that a server follows, as SHOW ALL SLAVES STATUS has it."""

    server_id: int
    place: str
    io_state: str  # Yes, No, Connecting, Preparing
    sql_state: str  # Yes, No
    error: str = ""


@dataclass(frozen=True)
class Identity:
    """A server's, with its database's. ``revision`` is all that is applied of the schema; ``cell`` is empty where there
    is none. ``problem`` is why it could not be read."""

    server_id: int = 0
    cell: str = ""
    kind: str = ""
    revision: str = ""
    followed: tuple[Followed, ...] = field(default=())
    problem: str = ""


def refusal(found: Identity, primary: Identity) -> str:
    """Why a server must not be read in place of this primary; empty when it may. Pure."""
    if found.problem:
        return found.problem
    if (found.kind, found.cell) != (primary.kind, primary.cell):
        return (
            f"expected a replica of {primary.kind} {primary.cell!r}, found the database of {found.kind or 'nothing'} "
            f"{found.cell!r}: check its url"
        )
    if found.server_id == primary.server_id:
        return f"expected a replica, found the primary itself (server_id {found.server_id}): check its url"
    if not any(one.server_id == primary.server_id for one in found.followed):
        followed = ", ".join(
            f"{one.place} (server_id {one.server_id}{', ' + one.error if one.error else ''})" for one in found.followed
        )
        return (
            f"expected it to follow the primary (server_id {primary.server_id}), found that it follows "
            f"{followed or 'nobody'}: see CHANGE MASTER TO"
        )
    if found.revision != primary.revision:
        return f"its schema is at {found.revision or 'nothing'}, the primary's at {primary.revision}"
    return ""


def trouble(found: Identity, primary: Identity) -> str:
    """What is wrong with its replication, though it may be read while it keeps up; empty for nothing. Pure."""
    for one in found.followed:
        if one.server_id != primary.server_id:
            continue
        if one.sql_state != "Yes":
            return f"its SQL thread is stopped{': ' + one.error if one.error else ''}"
        if one.io_state != "Yes":
            return f"its IO thread is not connected ({one.io_state}){': ' + one.error if one.error else ''}"
    return ""


def identity_of(connection: Connection, *, replica: bool) -> Identity:
    """Ask a server. What it answers with an error becomes ``problem``. Raises ConnectionLost, DatabaseBusy."""
    try:
        server_id = int(connection.rows(b"SELECT @@server_id")[0][0])
        state = connection.rows(b"SELECT cell, kind FROM cell_state WHERE id = 1")
        revisions = connection.rows(b"SELECT version_num FROM alembic_version ORDER BY version_num")
        followed = tuple(map(_followed, connection.named_rows(b"SHOW ALL SLAVES STATUS"))) if replica else ()
    except ServerError as error:
        return Identity(problem=_problem(error))
    cell, kind = state[0] if state else ("", "")
    return Identity(server_id, cell, kind, " ".join(row[0] for row in revisions), followed)


def _problem(error: ServerError) -> str:
    if error.code in (_NO_SUCH_TABLE, _UNKNOWN_DATABASE):
        return "it has no database of zcompute: check its url, and whether it has been copied from the primary"
    if error.code in _DENIED:
        return f"its user may not look at its replication: GRANT REPLICA MONITOR ON *.* ({error.message})"
    mended: StoreError = store_error(error)
    if isinstance(mended, ConnectionLost):
        raise mended from error
    return f"it answered {error}"


def _followed(row: dict[str, Any]) -> Followed:
    return Followed(
        server_id=int(row.get("Master_Server_Id") or 0),
        place=f"{row.get('Master_Host')}:{row.get('Master_Port')}",
        io_state=str(row.get("Slave_IO_Running")),
        sql_state=str(row.get("Slave_SQL_Running")),
        error=str(row.get("Last_SQL_Error") or row.get("Last_IO_Error") or ""),
    )
