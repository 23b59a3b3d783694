"""One PyMySQL connection, made safe for greenlets, and its errors sorted into ours.

Whatever interrupts a statement in flight (a lost peer, a timeout, a killed greenlet) leaves the protocol in the middle
of a packet, so the connection is cut at once and never used again. An error that the server itself answered leaves it
usable.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from socket import SHUT_RDWR
from typing import Any

import pymysql
from pymysql.constants import CLIENT, COMMAND, CR, ER
from pymysql.err import MySQLError

from zcompute.db.errors import ConnectionLost, DatabaseBusy, StatementFailed, StoreError
from zcompute.db.native.rows import select_packets
from zcompute.db.tls import VERIFY_NONE, NativeTls, TlsFiles, context_of
from zcompute.db.url import MariaDbTarget
from zcompute.failpoints import failpoint

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
STATEMENT_TIMEOUT_S = 20.0
LOCK_WAIT_S = 2
# A process that is stopped in the middle of a transaction must not keep its locks: the server ends that transaction.
IDLE_TRANSACTION_S = 1

# The session is set up by one statement; the server's own defaults are never relied on.
_SETTINGS = (
    f"SET SESSION transaction_isolation='READ-COMMITTED', innodb_lock_wait_timeout={LOCK_WAIT_S}, "
    "sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone='+00:00', idle_transaction_timeout="
)
_OLD_SETTINGS = _SETTINGS.replace("transaction_isolation", "tx_isolation")

ER_LOCK_WAIT_TIMEOUT = ER.LOCK_WAIT_TIMEOUT
ER_LOCK_DEADLOCK = ER.LOCK_DEADLOCK
_ER_CONNECTION_KILLED = 1927
_ER_SHUTDOWN = frozenset({ER.SERVER_SHUTDOWN, _ER_CONNECTION_KILLED, ER.QUERY_INTERRUPTED, ER.NORMAL_SHUTDOWN})
_ER_READ_ONLY = frozenset({ER.OPTION_PREVENTS_STATEMENT, 1836})
_ER_PASSWORD = frozenset({ER.ACCESS_DENIED_ERROR, 1698})
_ER_REFUSED = frozenset({ER.CON_COUNT_ERROR, ER.TOO_MANY_USER_CONNECTIONS, ER.HOST_IS_BLOCKED})
_ER_STATEMENT_TIMEOUT = 1969  # max_statement_time
# No room: the statement was rolled back and may succeed once an operator has made some.
_ER_NO_ROOM = frozenset({ER.DISK_FULL, ER.RECORD_FILE_FULL, ER.OUT_OF_RESOURCES, ER.GET_ERRNO})


class PasswordRefused(ConnectionLost):
    """The server knows the user, or not, and refuses the password."""


class ServerError(Exception):
    """The server answered with an error; the connection is in order."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Connection:
    """A connection. One greenlet (or thread) at a time.

    ``dial`` makes a connected socket of the standard library's own class, for threads that gevent must not touch.
    ``idle_transaction_s``: the server ends a transaction that waits so long for its next statement; 0 is never.
    """

    def __init__(
        self,
        target: MariaDbTarget,
        *,
        timeout_s: float = STATEMENT_TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        autocommit: bool = True,
        dial: Callable[[], Any] | None = None,
        idle_transaction_s: int = 0,
    ) -> None:
        """Connects, with the passwords of the target in turn. Raises ConnectionLost."""
        failure: ConnectionLost | None = None
        for password in target.passwords():
            self._raw: Any = _raw(target, password, timeout_s, connect_timeout_s, autocommit)
            try:
                self._begin(target, dial, idle_transaction_s)
            except PasswordRefused as refused:
                failure = refused
                continue
            if target.worked(password) and dial is None:
                log.warning("database password changed server=%s", describe(target))
            return
        raise failure or ConnectionLost(f"no password for {describe(target)}")

    def _begin(self, target: MariaDbTarget, dial: Callable[[], Any] | None, idle_transaction_s: int) -> None:
        try:
            _use_tls(self._raw, target, native=dial is not None)
            self._raw.connect(sock=dial() if dial is not None else None)
            settings = _SETTINGS if self._is_new() else _OLD_SETTINGS
            self.query(f"{settings}{idle_transaction_s}".encode())
        except MySQLError as error:
            self.cut()
            kind = PasswordRefused if error.args[:1] and error.args[0] in _ER_PASSWORD else ConnectionLost
            raise kind(f"cannot connect to {describe(target)}: {error}") from error
        except ServerError as error:
            self.cut()
            raise ConnectionLost(f"{describe(target)} refused the session's settings: {error}") from error
        except (OSError, ValueError) as error:
            # An OSError of the handshake or of dial, and what PyMySQL lets through.
            self.cut()
            raise ConnectionLost(f"cannot connect to {describe(target)}: {error!r}") from error
        except BaseException:
            self.cut()
            raise

    def _is_new(self) -> bool:
        # transaction_isolation exists since MariaDB 11.1; before, it is tx_isolation.
        version = self._raw.server_version.removeprefix("5.5.5-").split(".")
        return int(version[0]) * 100 + int(version[1]) >= 1101

    @property
    def thread_id(self) -> int:
        """The server's id of this connection, as KILL wants it."""
        return int(self._raw.thread_id())

    @property
    def driver(self) -> Any:
        """PyMySQL's connection, for those who bring their own statements (SQLAlchemy)."""
        return self._raw

    @property
    def is_open(self) -> bool:
        return bool(self._raw.open)

    def query(self, statement: bytes, *, passing: str = "") -> int:
        """Run one statement; returns the affected rows. ``passing``: the failpoint between packet and answer.

        Raises ServerError (the connection stays) or ConnectionLost (it is cut).
        """
        try:
            if not passing:
                return int(self._raw.query(statement))
            self._raw._execute_command(COMMAND.COM_QUERY, statement)
            failpoint(passing)
            return int(self._raw._read_query_result())
        except BaseException as error:
            found = self._sorted(error)
            if found is error:
                raise
            raise found from error

    def packets(self, statement: bytes) -> list[bytes]:
        """Run a SELECT; the packet of each row (zcompute.db.native.rows). Raises as query does."""
        try:
            return select_packets(self._raw, statement)
        except BaseException as error:
            found = self._sorted(error)
            if found is error:
                raise
            raise found from error

    def _sorted(self, error: BaseException) -> BaseException:
        """What a failed statement is to callers; unless the server itself answered so, the connection is cut."""
        if isinstance(error, MySQLError):
            code = error.args[0] if error.args and isinstance(error.args[0], int) else 0
            if is_from_server(code):
                return ServerError(code, str(error.args[1] if len(error.args) > 1 else error))
            self.cut()
            return ConnectionLost(f"the connection broke in a statement: {error}")
        self.cut()
        if isinstance(error, OSError | ValueError | IndexError | AttributeError):
            # What PyMySQL lets through when the stream ends in the middle of a packet.
            return ConnectionLost(f"the connection broke in a statement: {error!r}")
        return error

    def rows(self, statement: bytes) -> list[tuple[Any, ...]]:
        """Run a SELECT; returns all rows."""
        self.query(statement)
        result = self._raw._result  # a cursor would only copy it
        return list(result.rows or ()) if result is not None else []

    def named_rows(self, statement: bytes) -> list[dict[str, Any]]:
        """Run a statement; its rows by column name: for what has many columns, some of which differ by release."""
        rows = self.rows(statement)
        names = [field[0] for field in self._raw._result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in rows]

    def wait_up_to(self, timeout_s: float) -> None:
        """From now on an answer may take so long."""
        self._raw._read_timeout = timeout_s

    def interrupt(self) -> None:
        """Whoever waits for an answer on it, in another greenlet, has ConnectionLost at once."""
        sock = self._raw._sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(SHUT_RDWR)

    def cut(self) -> None:
        """Drop the connection without a word."""
        self._raw._force_close()


def _raw(target: MariaDbTarget, password: str, timeout_s: float, connect_timeout_s: float, autocommit: bool) -> Any:
    return pymysql.Connection(
        host=target.host,
        port=target.port,
        user=target.user,
        password=password,
        database=target.database,
        unix_socket=target.unix_socket,
        charset="utf8mb4",
        autocommit=autocommit,
        connect_timeout=connect_timeout_s,
        read_timeout=timeout_s,
        write_timeout=timeout_s,
        ssl_disabled=True,  # TLS is set by _use_tls: PyMySQL would make a context for each connection
        defer_connect=True,
    )


def _use_tls(raw: Any, target: MariaDbTarget, *, native: bool) -> None:
    """TLS as the target wants it; for a server elsewhere, of which nothing is said, where it offers it."""
    files = target.tls
    if files is None and target.is_local:
        return
    context = context_of(files or TlsFiles(verify=VERIFY_NONE))
    raw.ctx = NativeTls(context) if native else context
    raw.ssl = True
    raw._ssl_required = files is not None
    if files is not None:
        raw.client_flag |= CLIENT.SSL


def is_from_server(code: int) -> bool:
    """Is this the code of an error packet, after which the stream is in order?"""
    if code in _ER_SHUTDOWN or CR.CR_ERROR_FIRST <= code <= CR.CR_ERROR_LAST:
        return False
    return code >= 1000


def describe(target: MariaDbTarget) -> str:
    """Where the database is, without secrets."""
    place = target.unix_socket or f"{target.host}:{target.port}"
    return f"MariaDB database {target.database} at {place}"


def store_error(error: ServerError) -> StoreError:
    """An error answer as one of ours, for statements in which no row can be bad."""
    if error.code in (ER_LOCK_DEADLOCK, ER_LOCK_WAIT_TIMEOUT, _ER_STATEMENT_TIMEOUT) or error.code in _ER_NO_ROOM:
        return DatabaseBusy(f"the database answered {error}")
    if error.code in _ER_READ_ONLY or error.code in _ER_REFUSED:
        return ConnectionLost(f"the database takes no writes now: {error}")
    return StatementFailed(error.code, error.message)
