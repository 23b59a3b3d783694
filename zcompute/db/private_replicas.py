"""A private MariaDB with replicas of its own, for tests, benchmarks and the embedded region.

Every server starts from the same empty data directory and follows the primary's log from its first event, by global
transaction ids, so that any of them can become the primary (https://mariadb.com/kb/en/gtid/).
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from zcompute.db.durability import ACKER_OPTIONS, PRIMARY_OPTIONS, SWITCHED_ON
from zcompute.db.errors import PrivateServerFailed
from zcompute.db.private import PrivateMariaDB
from zcompute.db.private_succession import Left, succession
from zcompute.db.replicas.position import parse_position

CAUGHT_UP_DEADLINE_S = 30.0
REPLICAS_MAX = 8
IDS_FILE = "server-ids.json"
ASIDE_SUFFIX = ".lost"

_TERM = (
    "SELECT COUNT(*) AS present FROM information_schema.COLUMNS "
    "WHERE TABLE_SCHEMA = '{0}' AND TABLE_NAME = 'cell_state' AND COLUMN_NAME = 'term'",
    "SELECT term FROM `{0}`.cell_state WHERE id = 1",
)


def replication_options(server_id: int, *, read_only: bool, durable: bool) -> tuple[str, ...]:
    """The options of a server that writes a log which others follow. One that is not durable may find after a crash
    that its data and its log have parted, and follows nobody then."""
    return (
        f"--sync-binlog={int(durable)}",
        f"--server-id={server_id}",
        "--log-bin=binlog",
        "--log-slave-updates",
        "--relay-log=relay",
        "--gtid-strict-mode=ON",
        "--binlog-format=ROW",
        "--binlog-row-image=MINIMAL",
        "--session-track-system-variables=last_gtid",
        "--slave-net-timeout=5",
        f"--read-only={'ON' if read_only else 'OFF'}",
    )


@dataclass(frozen=True)
class ReplicaState:
    """What a replica says of itself: whether both of its threads run, how far each has come, and its last error."""

    io_running: bool
    sql_running: bool
    received: str
    applied: str
    error: str


class PrivateReplicas:
    """One primary and replicas. ``ports``: of the primary first, then of each replica; all on loopback.

    ``options`` go to every server. ``semi_synchronous``: the primary waits for a replica, any of them, at each commit
    (zcompute.db.durability). A directory that is there already is used again: the servers begin where they were. The
    first of them is the primary, unless ``database`` is given, a cell's, and another was promoted meanwhile.
    ``set_aside``: the data of servers that start() has made anew, since the primary may lack what they hold.
    """

    def __init__(
        self,
        directory: str | Path,
        ports: list[int],
        *,
        durable: bool = True,
        template: str | Path | None = None,
        buffer_pool_mb: int = 64,
        options: tuple[str, ...] = (),
        semi_synchronous: bool = False,
        database: str | None = None,
    ) -> None:
        if not 1 <= len(ports) <= REPLICAS_MAX + 1:
            raise ValueError(f"expected 1 to {REPLICAS_MAX + 1} ports, found {len(ports)}")
        self._directory = Path(directory)
        self._template = None if template is None else Path(template)
        self._durable = durable
        self._options = options
        self._semi_synchronous = semi_synchronous
        self._database = database
        self._server_ids = self._known_ids(len(ports))
        self.set_aside: list[Path] = []
        self.servers = [
            PrivateMariaDB(
                self._directory / f"server-{number}",
                port=port,
                durable=durable,
                template=self._directory / "empty",
                buffer_pool_mb=buffer_pool_mb,
            )
            for number, port in enumerate(ports, 1)
        ]
        self.primary = self.servers[0]
        self._give_options()

    def _give_options(self, *, undecided: bool = False) -> None:
        """``undecided`` while nobody is the primary yet: nobody takes writes or follows."""
        for server_id, server in zip(self._server_ids, self.servers, strict=True):
            primary = server is self.primary and not undecided
            semi = (*ACKER_OPTIONS, *(PRIMARY_OPTIONS if primary else ())) if self._semi_synchronous else ()
            options = replication_options(server_id, read_only=not primary, durable=self._durable)
            server.options = (*options, *semi, *(["--skip-slave-start"] if undecided else []), *self._options)

    @property
    def replicas(self) -> list[PrivateMariaDB]:
        """Every server but the primary."""
        return [server for server in self.servers if server is not self.primary]

    def start(self) -> None:
        """Start all, find the primary, and have the replicas follow it. Raises PrivateServerFailed."""
        self._prepare_empty()
        self._give_options(undecided=True)
        try:
            for server in self.servers:
                server.start()
            lost = [] if self._database is None else self._succeed(self._database)
            self._give_options()
            for server in lost:
                self._set_aside(server)
            self.primary.administer(*(SWITCHED_ON if self._semi_synchronous else ()), "STOP SLAVE", "RESET SLAVE ALL")
            for replica in self.replicas:
                self.follow(replica)
            self.primary.administer("SET GLOBAL read_only = OFF")
        except BaseException:
            self.stop()
            raise

    def _succeed(self, database: str) -> list[PrivateMariaDB]:
        """The primary is the one that was it last; who may hold what it lacks."""
        found = succession([self._left(server, database) for server in self.servers], self.servers.index(self.primary))
        self.primary = self.servers[found.primary]
        return [self.servers[index] for index in found.lost]

    def _left(self, server: PrivateMariaDB, database: str) -> Left:
        present, term = (query.format(database) for query in _TERM)
        rows = server.administer(term) if server.administer(present)[0]["present"] else []
        row = server.administer("SELECT @@server_id AS id, @@gtid_binlog_pos AS written")[0]
        writers = {one.split("-")[1] for one in row["written"].split(",") if one}
        wrote_last = str(row["id"]) in writers
        return Left(server.port, rows[0]["term"] if rows else 0, parse_position(row["written"]), wrote_last)

    def _set_aside(self, server: PrivateMariaDB) -> None:
        """Keep the newest such data of each server."""
        server.stop()
        aside = server.datadir.with_name(server.datadir.name + ASIDE_SUFFIX)
        shutil.rmtree(aside, ignore_errors=True)
        server.datadir.rename(aside)
        self.set_aside.append(aside)
        self._begin_anew(server)

    def stop(self) -> None:
        """End all servers, the replicas first."""
        for server in (*self.replicas, self.primary):
            server.stop()

    def follow(self, replica: PrivateMariaDB) -> None:
        """Have a server follow the primary, from where it is. Raises PrivateServerFailed."""
        primary = self.primary
        replica.administer(
            "SET GLOBAL read_only = ON",
            "STOP SLAVE",
            f"CHANGE MASTER TO master_host='127.0.0.1', master_port={primary.port}, master_user='{primary.user}', "
            f"master_password='{primary.password}', master_use_gtid=slave_pos, master_connect_retry=1, "
            "master_heartbeat_period=1",
            "START SLAVE",
        )

    def promoted(self, port: int) -> None:
        """The server at this port has become the primary: so it starts from now on. Raises PrivateServerFailed."""
        found = [server for server in self.servers if server.port == port]
        if not found:
            raise PrivateServerFailed(f"expected the port of one of {len(self.servers)} servers, found {port}")
        self.primary = found[0]
        self._give_options()

    def rebuild(self, server: PrivateMariaDB) -> None:
        """Make a replica of a server whose data nobody needs, under an id of its own: a replica passes over what a
        server of its id has written. It reads the primary's whole log, flushes nothing meanwhile, and has caught up at
        the end. Raises PrivateServerFailed."""
        if server is self.primary:
            raise PrivateServerFailed(f"expected a replica to rebuild, found the primary at port {server.port}")
        self._begin_anew(server)
        flushed = server.administer("SELECT @@sync_binlog AS log, @@innodb_flush_log_at_trx_commit AS data")[0]
        server.administer("SET GLOBAL sync_binlog = 0", "SET GLOBAL innodb_flush_log_at_trx_commit = 0")
        self.follow(server)
        self.wait_caught_up()
        server.administer(
            f"SET GLOBAL sync_binlog = {flushed['log']}",
            f"SET GLOBAL innodb_flush_log_at_trx_commit = {flushed['data']}",
        )

    def _begin_anew(self, server: PrivateMariaDB) -> None:
        server.stop()
        shutil.rmtree(server.datadir, ignore_errors=True)
        self._server_ids[self.servers.index(server)] = max(self._server_ids) + 1
        fresh = self._ids_path.with_suffix(".new")
        fresh.write_text(json.dumps(self._server_ids))
        fresh.rename(self._ids_path)
        self._give_options()
        server.start()

    @property
    def _ids_path(self) -> Path:
        return self._directory / IDS_FILE

    def _known_ids(self, servers: int) -> list[int]:
        """The id of each server: who has written under one keeps it. Raises PrivateServerFailed."""
        if not self._ids_path.exists():
            return list(range(1, servers + 1))
        try:
            ids = [int(one) for one in json.loads(self._ids_path.read_text())]
        except (OSError, ValueError, TypeError) as error:
            raise PrivateServerFailed(f"expected the ids of servers in {self._ids_path}: {error}") from error
        return [*ids, *range(max(ids) + 1, max(ids) + 1 + servers - len(ids))][:servers]

    def state(self, replica: PrivateMariaDB) -> ReplicaState:
        """How a replica fares. Raises PrivateServerFailed for one that follows nobody."""
        rows = replica.administer("SHOW ALL SLAVES STATUS")
        if not rows:
            raise PrivateServerFailed(f"expected a replica at port {replica.port}, found a server that follows nobody")
        row = rows[0]
        return ReplicaState(
            io_running=row["Slave_IO_Running"] == "Yes",
            sql_running=row["Slave_SQL_Running"] == "Yes",
            received=row["Gtid_IO_Pos"],
            applied=row["Gtid_Slave_Pos"],
            error=row["Last_SQL_Error"] or row["Last_IO_Error"],
        )

    def wait_caught_up(self, deadline_s: float = CAUGHT_UP_DEADLINE_S) -> None:
        """Until every replica has applied what the primary has committed by now. Raises PrivateServerFailed."""
        position = self.primary.administer("SELECT @@gtid_binlog_pos AS position")[0]["position"]
        ends_at = time.monotonic() + deadline_s
        for replica in self.replicas:
            left_s = max(0.0, ends_at - time.monotonic())
            waited = replica.administer(f"SELECT MASTER_GTID_WAIT('{position}', {left_s:.3f}) AS waited")[0]["waited"]
            if waited != 0:
                raise PrivateServerFailed(
                    f"expected the replica at port {replica.port} to reach {position} in {deadline_s:g} s, "
                    f"found {self.state(replica)}"
                )

    def _prepare_empty(self) -> None:
        """The data directory from which all start: one password for all, and no event in any log yet."""
        empty = self._directory / "empty"
        if empty.exists():
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        made = PrivateMariaDB(empty, template=self._template)
        made.start()
        made.stop()
        for left in (made.log_path, Path(f"{empty}.tmp")):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
