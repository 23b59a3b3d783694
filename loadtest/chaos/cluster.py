"""The cluster under test: an embedded region on MariaDB whose agents make traffic, and whose parts can be hurt."""

import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

import gevent
import msgspec

from loadtest.chaos import wires
from loadtest.chaos.history import PAUSE_FILE, QUIET_FILE
from zcompute.cli.exits import CommandError
from zcompute.cli.up.databases import MARIADB
from zcompute.cli.up.keys import write_private
from zcompute.cli.up.layout import API, COMPUTE, CONDUCTOR, ServicePlan, Shape
from zcompute.cli.up.process import ServiceProcess
from zcompute.cli.up.region import Region
from zcompute.cli.up.statedir import free_ports
from zcompute.db.drivers import open_store
from zcompute.db.errors import StoreError
from zcompute.db.native.connection import Connection, ServerError
from zcompute.db.private import PrivateMariaDB
from zcompute.db.store import MapRows, Store
from zcompute.db.url import MariaDbTarget, parse_url
from zcompute.objects.cell import ROOT_CELL

CELL = "c1"
OTHERS = "others"
POLL_S = 0.02
STOPPED_S = 10.0
HOLD_S = 1.0
MAP_TRIES_MAX = 10
PROMOTED_S = 30.0
PROMOTED = re.compile(r"^primary [^ ]*:(\d+), term", re.MULTILINE)
AGENT_BEAT_MS = 500


class Cluster(Region):
    """A region whose agents are ``loadtest.chaos.agent``. ``prefix`` goes before every service's module: what runs
    them (the tests' saboteur), or nothing. ``wired``: the cell's conductors can be unplugged."""

    origin_s: float
    history: Path
    per_second: float
    wired: bool
    prefix: tuple[str, ...]
    plain_agents = False  # those of production, without traffic of their own

    @classmethod
    def make(
        cls,
        state_dir: Path,
        shape: Shape,
        per_second: float,
        *,
        wired: bool = False,
        prefix: Sequence[str] = (),
    ) -> "Cluster":
        """Take a new state directory. Raises CommandError's tree."""
        made = cls.create(state_dir, MARIADB, api_port=0, shape=shape)
        if not isinstance(made, cls):
            raise TypeError(f"expected a {cls.__name__}")
        made.origin_s, made.per_second, made.wired, made.prefix = time.monotonic(), per_second, wired, tuple(prefix)
        made.history = made.paths.state_dir / "history"
        made.history.mkdir(exist_ok=True)
        made._wiring = Wiring(made) if wired else None
        return made

    # -- who is who ---------------------------------------------------------------------------------------------------

    def members(self, kind: str, cell: str) -> list[str]:
        """Service ids of a cell, whether they run or not."""
        return [plan.id for plan in self.plans.values() if plan.kind == kind and plan.cell == cell]

    def store(self, cell: str = CELL) -> Store:
        """The cell's database, past every service and wire."""
        return open_store(self.direct_url(cell))

    def direct_url(self, cell: str) -> str:
        """The URL of a cell's database as its server gives it."""
        return self._databases.urls[cell]

    def map_rows(self, cell: str = CELL) -> MapRows:
        """The partition map as the database has it. Raises StoreError."""
        for _ in range(MAP_TRIES_MAX - 1):  # after a restart of the server a take-over may KILL by a former number
            with suppress(StoreError):
                return self._read_map(cell)
            gevent.sleep(POLL_S)
        return self._read_map(cell)

    def _read_map(self, cell: str) -> MapRows:
        store = self.store(cell)
        try:
            return store.read_map()
        finally:
            store.close()

    # -- starting -----------------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        super()._write_files()
        for agent in self.members(COMPUTE, CELL):
            self._beat_often(agent)
        if self._wiring is not None:
            self._wiring.lay()

    def _beat_often(self, agent: str) -> None:
        """A host is up after three beats: with those of every 2 s that were most of a start."""
        path = self.paths.config(agent)
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        document["compute"]["beat_ms"] = AGENT_BEAT_MS
        write_private(path, document)

    def _start_process(self, plan: ServicePlan) -> None:
        process = ServiceProcess(plan.id, self._arguments(plan), self.paths.log(plan.id))
        self.processes.setdefault(plan.id, process).start()

    def _arguments(self, plan: ServicePlan) -> list[str]:
        config = ["--config", str(self.paths.config(plan.id))]
        table = [] if self._wiring is None else [str(self._wiring.table(plan.id))]
        if plan.kind == COMPUTE and not self.plain_agents:
            words = ["loadtest.chaos.agent", *config, "--history", str(self.history / f"{plan.id}.jsonl")]
            words += ["--per-second", str(self.per_second), "--origin", str(self.origin_s)]
            words += ["--wires", *table] if table else []
        elif table:
            words = ["loadtest.chaos.service", *table, plan.kind, *config]
        else:
            words = ["zcompute.cli.main", plan.kind, *config]
        return [sys.executable, "-m", *self.prefix, *words]

    def stop(self) -> None:
        super().stop()
        if self._wiring is not None:
            self._wiring.close()

    # -- traffic ------------------------------------------------------------------------------------------------------

    def hush(self) -> None:
        """No agent changes anything any more."""
        (self.history / QUIET_FILE).touch()

    def pause(self) -> None:
        """No agent changes anything until ``go_on``; what they owe is still answered."""
        (self.history / PAUSE_FILE).touch()

    def go_on(self) -> None:
        """They do again."""
        (self.history / PAUSE_FILE).unlink(missing_ok=True)

    # -- hurting ------------------------------------------------------------------------------------------------------

    def kill_database(self, cell: str) -> None:
        """kill -9 of a cell's MariaDB."""
        self._databases.server(cell).kill()

    def start_database(self, cell: str) -> None:
        """Start it again on the same data. Raises StoreError."""
        self._databases.server(cell).start()

    def promote(self, cell: str) -> None:
        """What an operator does when a cell's primary will not come back. Raises CommandError."""
        config = self.paths.config(self.members(CONDUCTOR, cell)[0])
        words = ["zcompute.cli.main", "db", "promote", "--config", str(config)]
        done = subprocess.run(
            [sys.executable, "-m", *words], capture_output=True, text=True, timeout=PROMOTED_S, check=False
        )
        found = PROMOTED.search(done.stdout)
        if done.returncode or found is None:
            raise CommandError(f"the promotion ended with status {done.returncode}: {done.stdout}{done.stderr}")
        self._databases.promoted(cell, int(found[1]))

    def rebuild(self, cell: str, server: PrivateMariaDB) -> None:
        """A primary that was lost comes back as a replica, and takes part in acknowledging. Raises CommandError."""
        servers = self.database_servers(cell)
        servers.rebuild(server)
        clients = "SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_master_clients'"
        wait_until(
            lambda: int(servers.primary.administer(clients)[0]["Value"]) == len(servers.replicas),
            "every replica acknowledges",
            PROMOTED_S,
        )

    def end(self, service_id: str) -> None:
        """SIGTERM, and wait for the end."""
        process = self.processes[service_id]
        process.send(signal.SIGTERM)
        wait_until(lambda: not process.alive, f"{service_id} has ended", STOPPED_S)

    def cut(self, conductor: str, directions: Sequence[str] = (wires.TOWARDS, wires.BACK)) -> None:
        """Unplug a conductor of the cell, or one direction of all its connections as seen from the others."""
        self._need_wiring().order(conductor, directions, cut=True)

    def mend(self, conductor: str) -> None:
        """Plug it in again."""
        self._need_wiring().order(conductor, (wires.TOWARDS, wires.BACK), cut=False)

    def refuse(self, one: str, other: str) -> None:
        """Two conductors refuse each other, as by a REJECT rule; whatever else they are linked with stays."""
        self._need_wiring().refuse(one, other, refused=True)

    def accept(self, one: str, other: str) -> None:
        """They do so no more."""
        self._need_wiring().refuse(one, other, refused=False)

    def _need_wiring(self) -> "Wiring":
        if self._wiring is None:
            raise CommandError("this cluster has no wires to cut")
        return self._wiring

    _wiring: "Wiring | None" = None

    @contextmanager
    def batches_held(self, service_id: str, held_s: float) -> Iterator[None]:
        """Inside, every batch of this conductor waits in the database at its first statement, while the next fills.

        Those that wait there have gathered for ``held_s``: they were held once before, and let through to the last.
        """
        target = parse_url(self.direct_url(CELL))
        if not isinstance(target, MariaDbTarget):
            raise CommandError(f"expected MariaDB, found {target}")
        rows = self.map_rows()
        lanes = [lane.lane_id for lane in rows.lanes.values() if lane.alive and lane.service_id == service_id]
        first = [_LaneHold(target, lane) for lane in lanes]
        second: list[_LaneHold] = []
        try:
            gevent.joinall([gevent.spawn(hold.take) for hold in first], timeout=HOLD_S)
            gevent.sleep(held_s)
            second = [_LaneHold(target, lane) for lane in lanes]
            taking = [gevent.spawn(hold.take) for hold in second]
            gevent.sleep(held_s / 2)  # now they wait behind the batches
            for hold in first:
                hold.let_go()
            gevent.joinall(taking, timeout=HOLD_S)
            gevent.sleep(held_s)
            yield
        finally:
            for hold in (*first, *second):
                hold.let_go()

    # -- waiting ------------------------------------------------------------------------------------------------------

    def incarnations(self) -> dict[str, str]:
        """Service id to living incarnation, of the cell's conductors."""
        return {row.service_id: row.incarnation for row in self.map_rows().conductors.values() if row.alive}

    def shares(self, gone: Collection[str] = ()) -> dict[str, int]:
        """How many partitions of the cell each conductor owns, by another incarnation than those that are gone."""
        rows = self.map_rows()
        owners = [rows.lanes[row.lane_id] for row in rows.partitions if row.lane_id in rows.lanes]
        alive = [lane.service_id for lane in owners if lane.alive and lane.incarnation not in gone]
        return {service_id: alive.count(service_id) for service_id in self.members(CONDUCTOR, CELL)}

    def wait_whole(self, timeout_s: float, gone: Collection[str] = ()) -> None:
        """Until every conductor of the cell owns its share again, none by an incarnation that is gone.

        Raises CommandError.
        """
        least = 256 // len(self.members(CONDUCTOR, CELL)) - 1
        wait_until(lambda: min(self.shares(gone).values()) >= least, "every conductor owns its share", timeout_s)


class _LaneHold:
    """The lock on a lane's row, so that its batches wait."""

    def __init__(self, target: MariaDbTarget, lane: int) -> None:
        self._connection = Connection(target)
        self._lane = lane

    def take(self) -> None:
        """Wait for the lock. A failure leaves the lane as it is."""
        try:
            self._connection.query(b"START TRANSACTION")
            self._connection.query(b"SELECT lane_id FROM lanes WHERE lane_id = %d FOR UPDATE" % self._lane)
        except (ServerError, StoreError):
            self.let_go()

    def let_go(self) -> None:
        """Give the lock back; whoever waits gets it."""
        self._connection.cut()


def wait_until(condition: Callable[[], object], what: str, timeout_s: float) -> None:
    """Until the condition holds. Raises CommandError when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise CommandError(f"not within {timeout_s:.0f} s: {what}")
        gevent.sleep(POLL_S)


class Wiring:
    """A wire from every service to every conductor of the cell that it may dial, and from each of these to every server
    of its database."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._conductors = cluster.members(CONDUCTOR, CELL)
        self._wires: dict[str, wires.Wire] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def table(self, service_id: str) -> Path:
        """The file by which this service dials."""
        return self._cluster.paths.config(service_id).with_suffix(".wires")

    def lay(self) -> None:
        """Lay all wires, write every service's table, and give the conductors their wire to the database."""
        cluster = self._cluster
        ports = cluster.file.bus_ports
        targets = {name: f"tcp://127.0.0.1:{ports[name]}" for name in ports if name != API}
        pairs = [(source, target) for source in (*self._conductors, OTHERS) for target in self._conductors]
        pairs += [(source, target) for source in self._conductors for target in cluster.members(CONDUCTOR, ROOT_CELL)]
        names = [f"{source}>{target}" for source, target in pairs if source != target]
        taken = free_ports([*ports, *names], dict(ports))
        for name in names:
            target = name.partition(">")[2]
            self._wires[name] = wires.Wire(name, f"tcp://127.0.0.1:{taken[name]}", targets[target])
        for plan in cluster.plans.values():
            source = plan.id if plan.id in self._conductors else OTHERS
            table = {wire.target: wire.listen for wire in self._wires.values() if wire.name.partition(">")[0] == source}
            self.table(plan.id).write_bytes(msgspec.json.encode(table))
        for conductor in self._conductors:
            self._wire_database(conductor)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.chaos.wires"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._say(wires.Order(lay=list(self._wires.values())))

    def _wire_database(self, conductor: str) -> None:
        path = self._cluster.paths.config(conductor)
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        for number, server in enumerate([document["database"], *document["database"].get("replicas", [])]):
            url, _, real = server["url"].partition("unix_socket=")
            listen = f"{self._cluster.paths.database(conductor)}.wire-{number}"
            server["url"] = f"{url}unix_socket={quote(listen)}"
            name = f"{conductor}>database-{number}"
            self._wires[name] = wires.Wire(name, listen, unquote(real))
        write_private(path, document)

    def order(self, conductor: str, directions: Sequence[str], *, cut: bool) -> None:
        """Cut or mend all wires of a conductor; ``towards`` is towards it, whoever has dialled."""
        for name in self._wires:
            source, _, target = name.partition(">")
            turned = [wires.BACK if one == wires.TOWARDS else wires.TOWARDS for one in directions]
            if conductor in (source, target):
                way = list(directions) if target == conductor else turned
                self._say(wires.Order(directions=tuple(way), **{"cut" if cut else "mend": [name]}))

    def refuse(self, one: str, other: str, *, refused: bool) -> None:
        """Have the wires between two conductors refuse, or accept again."""
        names = [name for name in (f"{one}>{other}", f"{other}>{one}") if name in self._wires]
        self._say(wires.Order(**{"refuse" if refused else "accept": names}))

    def _say(self, order: wires.Order) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise CommandError("the wires are not laid")
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        process.stdin.flush()
        if process.stdout.readline().strip() != b"done":
            raise CommandError("the wires have ended")

    def close(self) -> None:
        """End the process of the wires."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
