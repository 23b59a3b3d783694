"""A cell whose network can be cut in two: four MariaDB servers, two conductors and their clients, on two sides.

Side A: the primary P, the replica R2, the conductor ``a``. Side B: the replicas R1 and R3, the conductor ``b``, and
whoever promotes. Everything that crosses goes through a wire; a cut wire is a black hole.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
import msgspec

from loadtest.chaos.wires import BACK, TOWARDS, LaidWire, Wire
from tests.unit.conductor.ledger_world import instance
from zcompute.bus.errors import BusError
from zcompute.cli.up.statedir import free_ports
from zcompute.conductor.incarnation import Incarnation
from zcompute.conductor.primary import CellDatabase
from zcompute.conductor.reading import ClientReads
from zcompute.conductor.settings import LifeSettings
from zcompute.config import DatabaseConfig, ReplicaConfig
from zcompute.db import migrate
from zcompute.db.drivers import named_targets
from zcompute.db.durability import ACKER_OPTIONS, PRIMARY_OPTIONS, SWITCHED_ON
from zcompute.db.errors import StoreError
from zcompute.db.failover.promote import Asked, Promoted, Promotion, administered
from zcompute.db.private import ADMINISTRATOR, PrivateMariaDB
from zcompute.db.private_replicas import PrivateReplicas
from zcompute.db.tables import INSTANCES
from zcompute.objects.partition import partition_of

LEASE_MS = 600
KEYS = 8
P, R1, R2, R3 = "p", "r1", "r2", "r3"
DATABASE = "cell"


def uuid_of(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    ends_at_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_at_s, f"not within {timeout_s} s: {what}"
        gevent.sleep(0.01)


@dataclass
class Node:
    """A conductor without its bus: its database, its lives, and clients that write and read there."""

    name: str
    base: CellDatabase
    life: Incarnation | None = None
    acked: list[tuple[float, str, int]] = field(default_factory=list)  # when, of which server, the count it had
    read_at_s: list[float] = field(default_factory=list)  # begins of current reads that were answered
    reasons: list[str] = field(default_factory=list)
    stopping: bool = False
    greenlets: list[Any] = field(default_factory=list)

    def start(self) -> None:
        self.base.start()
        self.greenlets = [gevent.spawn(self._live), gevent.spawn(self._read)]

    def leave(self, reason: str) -> None:
        if self.life is not None:
            self.life.abandon(reason)

    def _live(self) -> None:
        while not self.stopping:
            if not self.base.reopen():
                gevent.sleep(0.05)
                continue
            self.life = Incarnation(
                self.base.store, "c1", self.name, "tcp://127.0.0.1:1", settings=LifeSettings(), probe=lambda *_: False
            )
            living = gevent.spawn(self.life.run)
            while not living.ready() and not self.life.abandoned:
                gevent.sleep(0.02)
            living.join(1.0)
            living.kill(block=False)
            self.reasons.append(self.life.reason)
            gevent.sleep(0.05)

    def write(self, number: int) -> None:
        """Count one server up, for ever; what is acknowledged is written down."""
        uuid = uuid_of(number)
        while not self.stopping:
            life = self.life
            try:
                if life is None or life.reason or not life.ledger.owns(partition_of(uuid)):
                    gevent.sleep(0.02)
                    continue
                count = life.ledger.commit(partition_of(uuid), [(INSTANCES, (uuid,))], counted(uuid), timeout_ms=3000)
            except (BusError, StoreError):
                gevent.sleep(0.02)
                continue
            self.acked.append((time.monotonic(), uuid, count))

    def write_all(self, numbers: range) -> None:
        self.greenlets += [gevent.spawn(self.write, number) for number in numbers]

    def _read(self) -> None:
        while not self.stopping:
            life, begun_s = self.life, time.monotonic()
            if life is not None:
                reads = ClientReads(self.base.reading, life.lease_held)
                try:
                    with gevent.Timeout(2.0):
                        reads.read(None, lambda view: view.fetch(INSTANCES, [(uuid_of(1),)]))
                    self.read_at_s.append(begun_s)
                except (BusError, StoreError, gevent.Timeout):
                    gevent.sleep(0.01)
            gevent.sleep(0.01)

    def stop(self) -> None:
        self.stopping = True
        if self.life is not None:
            self.life.abandon("the scene is over")
        gevent.joinall(self.greenlets, timeout=4)
        gevent.killall(self.greenlets, block=False)
        self.base.stop()


def counted(uuid: str) -> Callable[[Any], int]:
    def decide(change: Any) -> int:
        former = change.get(INSTANCES, (uuid,))
        if former is None:
            change.put(INSTANCES, instance(uuid, decided=1))
            return 1
        change.put(INSTANCES, msgspec.structs.replace(former, decided=former.decided + 1))
        return int(former.decided) + 1

    return decide


class Scene:
    """``silent``: those of the replicas that cannot acknowledge."""

    def __init__(self, silent: frozenset[str] = frozenset(), servers: tuple[str, ...] = (P, R1, R2, R3)) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="zcompute-failover-"))
        self.names = servers
        ports = free_ports([*servers, *(f"{one}>{other}" for one in "ab" for other in servers)], {})
        self._wired_ports = ports
        self.silent = silent
        self.group = PrivateReplicas(
            self.place, [ports[name] for name in servers], buffer_pool_mb=32, options=ACKER_OPTIONS
        )
        self.servers: dict[str, PrivateMariaDB] = dict(zip(servers, self.group.servers, strict=True))
        self.wires: dict[str, LaidWire] = {}
        self.nodes: dict[str, Node] = {}
        self.side = {P: "a", R2: "a", R1: "b", R3: "b"}

    def start(self) -> None:
        for name, server in self.servers.items():
            for side in "ab":
                wire = f"{side}>{name}"
                listen = f"tcp://127.0.0.1:{self._wired_ports[wire]}"
                self.wires[wire] = LaidWire(Wire(wire, listen, f"tcp://127.0.0.1:{server.port}"))
        self.group.start()
        primary = self.servers[P]
        migrate.upgrade(primary.create_database(DATABASE), "cell", "c1")
        for name in self.names[1:]:
            acks = "OFF" if name in self.silent else "ON"
            self.servers[name].administer(
                "STOP SLAVE",
                f"SET GLOBAL rpl_semi_sync_slave_enabled = {acks}",
                f"CHANGE MASTER TO master_port = {self._wired_ports[f'{self.side[name]}>{P}']}",
                "START SLAVE",
            )
        self.group.wait_caught_up()
        for server in self.servers.values():
            self._allow_administration(server)
        primary.administer(*SWITCHED_ON)
        ackers = len(self.names) - 1 - len(self.silent)
        wait_for(lambda: self.clients(P) == ackers, "the ackers are connected")

    def clients(self, name: str) -> int:
        return int(self.servers[name].administer("SHOW GLOBAL STATUS LIKE 'Rpl_semi_sync_master_clients'")[0]["Value"])

    def url(self, side: str, name: str) -> str:
        server = self.servers[name]
        return f"mysql://{server.user}:{server.password}@127.0.0.1:{self._wired_ports[f'{side}>{name}']}/{DATABASE}"

    def config(self, side: str) -> DatabaseConfig:
        replicas = [ReplicaConfig(self.url(side, name), name not in self.silent) for name in self.names[1:]]
        return DatabaseConfig(url=self.url(side, P), durability="replicated", replicas=replicas)

    def node(self, side: str) -> Node:
        made: Node

        def leave(reason: str) -> None:
            made.leave(reason)

        made = self.nodes[side] = Node(f"conductor-{side}", CellDatabase(self.config(side), "c1", None, leave))
        made.start()
        wait_for(lambda: made.life is not None and made.life.wait_ready(1), f"conductor {side} is ready")
        return made

    def restart_primary(self) -> None:
        """kill -9, and its start on the same data; semi-synchronous from its first moment, as its file has it."""
        server = self.servers[P]
        server.kill()
        server.options = (*server.options, *PRIMARY_OPTIONS)
        server.start()

    def cut(self) -> None:
        """Nothing crosses any more, in either direction, and nothing is refused."""
        self._turn(lambda gate: gate.clear())

    def heal(self) -> None:
        self._turn(lambda gate: gate.set())

    def _turn(self, how: Callable[[Any], None]) -> None:
        for wire, laid in self.wires.items():
            side, _, name = wire.partition(">")
            if self.side[name] != side:
                for direction in (TOWARDS, BACK):
                    how(laid.gates[direction])

    def promote(self, side: str = "b", **asked: Any) -> tuple[Promoted | None, list[str]]:
        said: list[str] = []
        urls = [self.url(side, name) for name in self.names]
        targets = named_targets(urls)
        passwords = [server.password for server in self.servers.values()]
        admin = {
            name: administered(target, ADMINISTRATOR, password)
            for (name, target), password in zip(targets.items(), passwords, strict=True)
        }
        quiet = [f"127.0.0.1:{self._wired_ports[f'{side}>{name}']}" for name in self.silent]
        what = Asked("c1", "replicated", LEASE_MS, silent=quiet, **asked)
        return Promotion(admin, what, said.append).run(), said

    @staticmethod
    def _allow_administration(server: PrivateMariaDB) -> None:
        """Over TCP too: the private servers' administrator is known on their sockets only."""
        server.administer(
            "SET SESSION sql_log_bin = 0",
            f"CREATE OR REPLACE USER '{ADMINISTRATOR}'@'127.0.0.1' IDENTIFIED BY '{server.password}'",
            f"GRANT ALL PRIVILEGES ON *.* TO '{ADMINISTRATOR}'@'127.0.0.1'",
        )

    def counts(self, name: str) -> dict[str, int]:
        rows = self.servers[name].administer(f"SELECT uuid, decided FROM {DATABASE}.instances")  # noqa: S608
        return {str(row["uuid"]): int(row["decided"]) for row in rows}

    def lost(self, name: str) -> list[tuple[float, str, int]]:
        """What was acknowledged and is not there."""
        found = self.counts(name)
        return [one for node in self.nodes.values() for one in node.acked if found.get(one[1], 0) < one[2]]

    def named(self, name: str, side: str = "b") -> str:
        """Which of the servers has this name on this side."""
        return next(one for one in self.names if name == f"127.0.0.1:{self._wired_ports[f'{side}>{one}']}")

    def stop(self) -> None:
        for node in self.nodes.values():
            node.stop()
        self.heal()
        for wire in self.wires.values():
            wire.refuse()
        for server in self.group.servers:
            server.kill()
        shutil.rmtree(self.place, ignore_errors=True)
