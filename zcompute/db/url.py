"""Database URLs: which server or file, and how to reach it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from msgspec.structs import replace

from zcompute.config import DatabaseConfig
from zcompute.db.errors import InvalidUrl
from zcompute.db.secrets import Secret, file_secret
from zcompute.db.tls import VERIFY, VERIFY_IDENTITY, TlsFiles

PORT_DEFAULT = 3306
_TLS = ("tls_ca", "tls_cert", "tls_key", "tls_verify")
OPTIONS = frozenset({"unix_socket", "password_file", *_TLS})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True)
class MariaDbTarget:
    """A database of a MariaDB server. ``tls`` demands TLS; ``secret`` stands for ``password`` where it may change."""

    host: str
    port: int
    user: str
    password: str
    database: str
    unix_socket: str | None = None
    tls: TlsFiles | None = None
    secret: Secret | None = field(default=None, compare=False)

    def passwords(self) -> Iterator[str]:
        """What to try, in this order."""
        return iter([self.password]) if self.secret is None else self.secret.candidates()

    def worked(self, password: str) -> bool:
        """This one was accepted; whether it is another one than before."""
        return self.secret is not None and self.secret.worked(password)

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
    unknown = set(options) - OPTIONS
    if unknown:
        raise refuse(url, f"unknown options {sorted(unknown)}; there are {', '.join(sorted(OPTIONS))}")
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
        tls=_tls(url, options),
        secret=file_secret(options["password_file"]) if "password_file" in options else None,
    )


def _tls(url: str, options: dict[str, str]) -> TlsFiles | None:
    if not any(name in options for name in _TLS):
        return None
    ca, cert, key = (options.get(name, "") for name in _TLS[:3])
    verify = options.get("tls_verify", VERIFY_IDENTITY)
    if verify not in VERIFY:
        raise refuse(url, f"tls_verify: expected one of {', '.join(VERIFY)}, found {verify!r}")
    if key and not cert:
        raise refuse(url, "tls_key: expected a tls_cert beside it, found none")
    return TlsFiles(ca, cert, key, verify)


def replica_urls(database: DatabaseConfig) -> list[str]:
    """The URLs of the configured replicas, with what [database] says for all. Raises InvalidUrl for SQLite."""
    if database.replicas and database.url.startswith("sqlite"):
        raise refuse(database.url, "SQLite has no replicas: remove [[database.replicas]]")
    return [configured_url(replace(database, url=replica.url)) for replica in database.replicas]


def urls_of(database: DatabaseConfig) -> list[str]:
    """Every server of the cell's database, ``[database] url`` first. Raises InvalidUrl."""
    return [configured_url(database), *replica_urls(database)]


def configured_url(database: DatabaseConfig) -> str:
    """The URL with what the configuration says beside it."""
    names = ["password_file"]
    if database.tls or database.tls_ca or database.tls_cert or database.tls_key:
        names += _TLS
    own = dict(parse_qsl(urlsplit(database.url).query))
    given = {name: getattr(database, name) for name in names if getattr(database, name) and name not in own}
    if not given:
        return database.url
    return f"{database.url}{'&' if urlsplit(database.url).query else '?'}{urlencode(given)}"
