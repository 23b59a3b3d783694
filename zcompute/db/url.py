"""Database URLs: which server or file, and how to reach it."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from zcompute.db.errors import InvalidUrl

PORT_DEFAULT = 3306
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class MariaDbTarget:
    """A database of a MariaDB server. ``ssl_ca`` switches TLS on."""

    host: str
    port: int
    user: str
    password: str
    database: str
    unix_socket: str | None = None
    ssl_ca: str | None = None

    @property
    def is_local(self) -> bool:
        """Reached without a network: no TLS unless asked for."""
        return self.unix_socket is not None or self.host in _LOOPBACK


@dataclass(frozen=True)
class SqliteTarget:
    """A database file."""

    path: str


def refuse(url: str, reason: str) -> InvalidUrl:
    """The error for a URL, which is shown without its password."""
    shown = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)
    return InvalidUrl(f"database URL {shown!r}: {reason}")


def parse_url(url: str) -> MariaDbTarget | SqliteTarget:
    """Read a database URL. Raises InvalidUrl, which says what was expected."""
    scheme = url.partition("://")[0]
    if scheme == "sqlite":
        path = url.partition("://")[2].removeprefix("/")
        if not path.startswith("/"):
            raise refuse(url, "expected an absolute path, as in sqlite:////var/lib/zcompute/cell.db")
        return SqliteTarget(path)
    if scheme not in ("mysql", "mariadb"):
        raise refuse(url, "expected mysql://... or sqlite:////...")
    return _parse_mariadb(url)


def _parse_mariadb(url: str) -> MariaDbTarget:
    try:
        parts = urlsplit(url)
        port = parts.port or PORT_DEFAULT
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError as error:
        raise refuse(url, str(error)) from error
    unknown = set(options) - {"unix_socket", "ssl_ca"}
    if unknown:
        raise refuse(url, f"unknown options {sorted(unknown)}; there are unix_socket and ssl_ca")
    database = unquote(parts.path.removeprefix("/"))
    if not database or "/" in database:
        raise refuse(url, "expected the name of one database as the path")
    return MariaDbTarget(
        host=parts.hostname or "127.0.0.1",
        port=port,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=database,
        unix_socket=options.get("unix_socket"),
        ssl_ca=options.get("ssl_ca"),
    )
