"""The databases of an embedded region: a private MariaDB per cell, or a SQLite file per cell."""

from collections.abc import Mapping
from pathlib import Path

from gevent.pool import Pool

from zcompute.cli.exits import CommandError, ProgramMissing, UsageRefused
from zcompute.cli.up.layout import Paths, cells_of, database_names
from zcompute.cli.up.layout import Shape as RegionShape
from zcompute.db import seed
from zcompute.db.durability import REPLICATED
from zcompute.db.errors import StoreError
from zcompute.db.migrate import upgrade
from zcompute.db.private import PrivateMariaDB, find_programs
from zcompute.db.private_replicas import PrivateReplicas
from zcompute.db.schema import KIND_CELL, KIND_ROOT
from zcompute.objects.cell import ROOT_CELL

AUTO, SQLITE, MARIADB = "auto", "sqlite", "mariadb"
START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 1.5
DATABASE_NAME = "zcompute"
PACKAGES = "mariadb-server-core and mariadb-client-core"


def choose(asked: str, present: str | None) -> str:
    """Which kind to use: what the state directory holds, else what was asked, else MariaDB where it is installed.

    Raises UsageRefused when the directory holds another kind than asked, ProgramMissing when MariaDB is not here.
    """
    if present is not None:
        if asked not in (AUTO, present):
            raise UsageRefused(
                f"the state directory holds a region on {present}, not {asked}: use --database {present}, "
                "or another --state-dir"
            )
        asked = present
    if asked == SQLITE:
        return SQLITE
    installed = find_programs() is not None
    if asked == MARIADB and not installed:
        raise ProgramMissing(
            f"mariadbd or mariadb-install-db is not installed: install Debian's {PACKAGES}, or use --database sqlite"
        )
    return MARIADB if installed else SQLITE


class Databases:
    """One database per cell, with schema and seeds; MariaDB servers live as long as start() to stop()."""

    def __init__(self, kind: str, paths: Paths, shape: RegionShape, ports: Mapping[str, int] | None = None) -> None:
        """``ports``: by the names of layout.database_names, for databases with replicas."""
        self.kind = kind
        self._paths = paths
        self._shape = shape
        self._ports = ports or {}
        self._replicated: dict[str, PrivateReplicas] = {}
        self._cells = cells_of(shape)
        self._servers: dict[str, PrivateMariaDB] = {}
        self.urls: dict[str, str] = {}
        self.set_aside: list[Path] = []  # data of servers that were replaced by a promotion

    def start(self) -> None:
        """Start all servers together, bring every schema to the newest, seed the root. Raises CommandError."""
        try:
            self.urls = self._urls()
            # One after the other: Alembic keeps what it works on in module globals.
            for cell, url in self.urls.items():
                upgrade(url, KIND_ROOT if cell == ROOT_CELL else KIND_CELL, cell)
            seed.flavors(self.urls[ROOT_CELL])
            seed.default_image(self.urls[ROOT_CELL])
        except StoreError as error:
            raise CommandError(f"the databases did not come up: {' '.join(str(error).split())}") from error

    def _urls(self) -> dict[str, str]:
        """Every database's URL, its server started; all have ended trying before an error is raised."""
        pool = Pool(len(self._cells))
        try:
            found = dict(zip(self._cells, pool.map(self._url_or_error, self._cells), strict=True))
        finally:
            pool.kill()
        for value in found.values():
            if isinstance(value, StoreError):
                raise value
        return {cell: url for cell, url in found.items() if isinstance(url, str)}

    def _url_or_error(self, cell: str) -> str | StoreError:
        try:
            return self._sqlite(cell) if self.kind == SQLITE else self._mariadb(cell)
        except StoreError as error:
            return error

    def _sqlite(self, cell: str) -> str:
        directory = self._paths.database(cell)
        directory.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{directory / 'zcompute.db'}"

    def _mariadb(self, cell: str) -> str:
        names = database_names(self._shape, cell)
        if names:
            servers = PrivateReplicas(
                self._paths.database(cell),
                [self._ports[name] for name in names],
                semi_synchronous=self._shape.durability == REPLICATED,
                database=DATABASE_NAME,
            )
            self._replicated[cell] = servers
            servers.start()
            self.set_aside += servers.set_aside
            self._servers[cell] = servers.primary
            return servers.primary.create_database(DATABASE_NAME)
        server = PrivateMariaDB(self._paths.database(cell))
        self._servers[cell] = server
        server.start(START_DEADLINE_S)
        return server.create_database(DATABASE_NAME)

    def server(self, cell: str) -> PrivateMariaDB:
        """The cell's MariaDB. Raises KeyError for SQLite."""
        return self._servers[cell]

    def replicated(self, cell: str) -> PrivateReplicas:
        """The cell's primary with its replicas. Raises KeyError where there are none."""
        return self._replicated[cell]

    def promoted(self, cell: str, port: int) -> None:
        """The server at this port has become the cell's primary. Raises PrivateServerFailed, KeyError."""
        servers = self._replicated[cell]
        servers.promoted(port)
        self._servers[cell] = servers.primary
        self.urls[cell] = servers.primary.url(DATABASE_NAME)

    def replica_urls(self, cell: str) -> list[str]:
        """Where the cell's replicas are; none where there are none."""
        servers = self._replicated.get(cell)
        return [] if servers is None else [replica.url(DATABASE_NAME) for replica in servers.replicas]

    def pids(self) -> dict[str, int]:
        """Cell to the pid of its MariaDB, and its replicas by their names; empty for SQLite."""
        found = {cell: server.pid for cell, server in self._servers.items() if server.pid}
        for cell, servers in self._replicated.items():
            for name, replica in zip(database_names(self._shape, cell)[1:], servers.replicas, strict=True):
                if replica.pid:
                    found[name] = replica.pid
        return found

    def stop(self) -> None:
        """Stop all servers together."""
        replicas = [replica for servers in self._replicated.values() for replica in servers.replicas]
        for servers in (replicas, list(self._servers.values())):
            if servers:
                Pool(len(servers)).map(lambda server: server.stop(STOP_DEADLINE_S), servers)
        self._servers.clear()
        self._replicated.clear()
