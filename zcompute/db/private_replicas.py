"""A private MariaDB with replicas of its own, for tests, benchmarks and the embedded region.

Every server starts from the same empty data directory and follows the primary's log from its first event, by global
transaction ids, so that any of them can become the primary (https://mariadb.com/kb/en/gtid/).
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from zcompute.db.durability import ACKER_OPTIONS, PRIMARY_OPTIONS
from zcompute.db.errors import PrivateServerFailed
from zcompute.db.private import PrivateMariaDB

CAUGHT_UP_DEADLINE_S = 30.0
REPLICAS_MAX = 8


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
    (zcompute.db.durability). A directory that is there already is used again: the servers begin where they were, the
    first of them as the primary.
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
    ) -> None:
        if not 1 <= len(ports) <= REPLICAS_MAX + 1:
            raise ValueError(f"expected 1 to {REPLICAS_MAX + 1} ports, found {len(ports)}")
        self._directory = Path(directory)
        self._template = None if template is None else Path(template)
        self._durable = durable
        self._options = options
        self._semi_synchronous = semi_synchronous
        self._server_ids = list(range(1, len(ports) + 1))
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

    def _give_options(self) -> None:
        for server_id, server in zip(self._server_ids, self.servers, strict=True):
            primary = server is self.primary
            semi = (*ACKER_OPTIONS, *(PRIMARY_OPTIONS if primary else ())) if self._semi_synchronous else ()
            options = replication_options(server_id, read_only=not primary, durable=self._durable)
            server.options = (*options, *semi, *self._options)

    @property
    def replicas(self) -> list[PrivateMariaDB]:
        """Every server but the primary."""
        return [server for server in self.servers if server is not self.primary]

    def start(self) -> None:
        """Start all, and have the replicas follow the primary. Raises PrivateServerFailed."""
        self._prepare_empty()
        try:
            for server in self.servers:
                server.start()
            for replica in self.replicas:
                self.follow(replica)
        except BaseException:
            self.stop()
            raise

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
        server.stop()
        shutil.rmtree(server.datadir, ignore_errors=True)
        self._server_ids[self.servers.index(server)] = max(self._server_ids) + 1
        self._give_options()
        server.start()
        flushed = server.administer("SELECT @@sync_binlog AS log, @@innodb_flush_log_at_trx_commit AS data")[0]
        server.administer("SET GLOBAL sync_binlog = 0", "SET GLOBAL innodb_flush_log_at_trx_commit = 0")
        self.follow(server)
        self.wait_caught_up()
        server.administer(
            f"SET GLOBAL sync_binlog = {flushed['log']}",
            f"SET GLOBAL innodb_flush_log_at_trx_commit = {flushed['data']}",
        )

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
