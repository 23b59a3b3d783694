"""The cell under load: a private MariaDB with its instances, and whoever writes into it."""

import json
import sys
import time
from pathlib import Path

import zmq

from loadtest.bus.contender import ROOT, Process
from loadtest.ledger.orders import Begin, Order, Outcome, Place, to_line, to_outcome
from loadtest.ledger.seeding import seed_instances
from loadtest.ledger.world import CELL, host_name
from zcompute.cli.up.keys import write_private
from zcompute.db.drivers import open_store
from zcompute.db.migrate import upgrade
from zcompute.db.private import PrivateMariaDB
from zcompute.db.schema import KIND_CELL
from zcompute.db.url import MariaDbTarget, parse_url
from zcompute.objects.partition import PARTITIONS

NATIVE, PORTABLE, SINGLE, ORM = "native", "portable", "single_update", "orm"
SERVER_OPTIONS = (
    "--innodb-flush-log-at-trx-commit=1", "--sync-binlog=1", "--log-bin=binlog", "--binlog-format=ROW",
    "--binlog-row-image=MINIMAL", "--server-id=1", "--innodb-log-file-size=512M",
)  # fmt: skip
AGENT_PROCESSES = 2
START_S_MAX = 60.0
BALANCED_S_MAX = 20.0
ANSWER_S_MAX = 200.0


def key_pair() -> tuple[str, str]:
    """A CURVE key pair: public, secret."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


class Cell:
    """Database, keys and agents, for as long as the benchmark lasts."""

    def __init__(self, directory: Path, instances: int, agents: int, buffer_pool_mb: int) -> None:
        self.directory = directory
        self.instances, self.agents = instances, agents
        self._agent_keys = [key_pair() for _ in range(agents)]
        self._keys = {f"conductor-{number}": key_pair() for number in (1, 2)}
        self.server = PrivateMariaDB(directory / "db", buffer_pool_mb=buffer_pool_mb, options=SERVER_OPTIONS)
        self.groups: list[Process] = []
        self.url = ""

    def start(self) -> None:
        """Server, schema, instances, agents' processes."""
        self.start_servers()
        self.url = self.server.create_database("cell")
        upgrade(self.url, KIND_CELL, CELL)
        self.seed()
        rows = [
            {"name": f"agent-{n}", "public_key": keys[0], "role": "compute", "cell": CELL, "hosts": [host_name(n)]}
            for n, keys in enumerate(self._agent_keys)
        ]
        rows += [
            {"name": name, "public_key": keys[0], "role": "conductor", "cell": CELL, "hosts": []}
            for name, keys in self._keys.items()
        ]
        rows += self.more_keys()
        write_private(self.keyring, {"revoked": [], "keys": rows})
        share = -(-self.agents // AGENT_PROCESSES)
        for first in range(0, self.agents, share):
            group = Process([sys.executable, "-m", "loadtest.ledger.agents"])
            self.groups.append(group)
            keys = self._agent_keys[first : first + share]
            group.ask(to_line(Begin(first, self.agents, self.instances, keys)))
        for group in self.groups:
            group.read(START_S_MAX)

    def start_servers(self) -> None:
        """Start the database."""
        self.server.start()

    def stop_servers(self) -> None:
        """End the database."""
        self.server.stop()

    def seed(self) -> None:
        """Fill the database."""
        seed_instances(self.target, self.instances, self.agents)

    def more_keys(self) -> list[dict[str, object]]:
        """Rows of the keyring beside those of agents and conductors."""
        return []

    def database_section(self, driver: str) -> dict[str, object]:
        """What a conductor is told of the database."""
        return {"url": self.url, "driver": driver}

    @property
    def target(self) -> MariaDbTarget:
        """Where the database is."""
        target = parse_url(self.url)
        if not isinstance(target, MariaDbTarget):
            raise SystemExit(f"expected a MariaDB database, found {self.url}")
        return target

    @property
    def keyring(self) -> Path:
        """Everybody's public keys."""
        return self.directory / "keyring.toml"

    def keys(self, service_id: str) -> tuple[str, str]:
        """A conductor's keys."""
        return self._keys[service_id]

    def ask(self, *orders: Order) -> None:
        """One order to every process of agents, or one for each."""
        for at, group in enumerate(self.groups):
            group.ask(to_line(orders[at % len(orders)]))

    def outcomes(self) -> list[Outcome]:
        """What became of the orders. Raises ContenderFailed."""
        return [to_outcome(group.read(ANSWER_S_MAX)) for group in self.groups]

    def stop(self) -> None:
        """End everything."""
        for group in self.groups:
            group.stop()
        self.stop_servers()


class Writers:
    """A contender's processes: conductors with one of our drivers, or a rival's."""

    def __init__(self, cell: Cell, kind: str, count: int, tree: Path = ROOT) -> None:
        """``tree``: the source tree whose conductors these are."""
        self.kind, self.count = kind, count
        self._tree = tree
        self.processes: list[Process] = []
        self.places: list[Place] = []
        self.owners: list[str] = []
        try:
            if kind in (NATIVE, PORTABLE):
                self._start_conductors(cell)
            else:
                self._start_rivals(cell)
        except BaseException:
            self.stop()
            raise

    def _start_conductors(self, cell: Cell) -> None:
        for number in range(1, self.count + 1):
            service_id = f"conductor-{number}"
            config = self._write_config(cell, service_id)
            process = Process([sys.executable, "-m", "loadtest.ledger.conductor", str(config)], self._tree)
            self.processes.append(process)
        for process in self.processes:
            process.read(START_S_MAX)
        wanted = {f"conductor-{number}" for number in range(1, self.count + 1)}
        deadline = time.monotonic() + BALANCED_S_MAX
        store = open_store(cell.url)
        try:
            while True:
                found = store.read_map().partition_map()
                shares = [found.owners.count(service_id) for service_id in wanted]
                if sum(shares) == PARTITIONS and min(shares) > PARTITIONS // self.count // 2:
                    break
                if time.monotonic() > deadline:
                    raise SystemExit(f"the partitions are not shared evenly after {BALANCED_S_MAX:g} s: {shares}")
                time.sleep(0.1)
        finally:
            store.close()
        self.owners = found.owners
        self.places = [
            Place(info.service_id, info.address, info.public_key)
            for info in sorted(found.conductors.values(), key=lambda info: info.service_id)
        ]

    def _write_config(self, cell: Cell, service_id: str) -> Path:
        public, secret = cell.keys(service_id)
        key_file = cell.directory / f"{service_id}.key"
        write_private(key_file, {"public_key": public, "secret_key": secret})
        state = cell.directory / service_id
        state.mkdir(exist_ok=True)
        config = cell.directory / f"{service_id}.toml"
        document = {
            "service": {"id": service_id, "cell": CELL, "state_dir": str(state)},
            "bus": {"listen": "tcp://127.0.0.1:0", "key_file": str(key_file), "keyring": str(cell.keyring)},
            "database": cell.database_section(self.kind),
            "conductor": {"allow_beside_compute": True},
            "log": {"file": str(cell.directory / f"{service_id}.log")},
        }
        write_private(config, document)
        return config

    def _start_rivals(self, cell: Cell) -> None:
        names = [f"conductor-{number}" for number in range(1, self.count + 1)]
        for name in names:
            public, secret = cell.keys(name)
            order = {"url": cell.url, "keyring": str(cell.keyring), "id": name, "public": public, "secret": secret}
            file = cell.directory / f"{name}.json"
            file.touch(mode=0o600)
            file.write_text(json.dumps(order), encoding="utf-8")
            self.processes.append(Process([sys.executable, "-m", "loadtest.ledger.rival", self.kind, str(file)]))
        for name, process in zip(names, self.processes, strict=True):
            self.places.append(Place(name, process.read(START_S_MAX), cell.keys(name)[0]))
        self.owners = [names[partition % len(names)] for partition in range(PARTITIONS)]

    def connections(self, count: int) -> None:
        """Rivals: so many connections in all."""
        for process in self.processes:
            process.ask(str(max(1, count // self.count)))
        for process in self.processes:
            process.read(START_S_MAX)

    def counts(self) -> dict[str, int]:
        """Conductors: batches committed and instances' rows in them, since their start."""
        total = {"batches": 0, "rows": 0}
        for process in self.processes:
            process.ask("counts")
        for process in self.processes:
            for name, value in json.loads(process.read(START_S_MAX)).items():
                total[name] += value
        return total

    def stop(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.stop()
