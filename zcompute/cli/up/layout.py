"""What an embedded region consists of: services, hosts, files and configuration. Pure: nothing is written here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from zcompute.cli.up.keys import KeyPair
from zcompute.db.durability import LOCAL
from zcompute.objects.cell import ROOT_CELL
from zcompute.objects.quota import UNLIMITED

CONDUCTOR, SCHEDULER, COMPUTE, API = "conductor", "scheduler", "compute", "api"
OPERATOR = "operator"  # no service: the key and configuration of the commands that ask over the bus
START_ORDER = (CONDUCTOR, SCHEDULER, COMPUTE, API)
API_HOST = "127.0.0.1"
PROJECT_ID = "demo"
USER_ID = "admin"


class Shape(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How large a region is. The defaults: 20 hosts of 100 m1.tiny each, on 2 cells."""

    cells: tuple[str, ...] = ("c1", "c2")
    conductors: int = 2
    schedulers: int = 1
    computes: int = 2
    hosts_per_compute: int = 5
    host_vcpus: int = 100
    host_memory_mb: int = 51200
    host_disk_gb: int = 100
    build_ms: int = 0
    delete_ms: int = 0
    step_ms: int = 0  # of any other change of a domain
    api_workers: int = 1
    replicas: int = 0  # of each cell's database, the root's too; MariaDB only
    durability: str = LOCAL  # of each cell's; REPLICATED needs replicas


class RegionFile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """region.toml: what a later start must find again."""

    database: str
    shape: Shape = Shape()
    api_port: int = 0
    bus_ports: dict[str, int] = {}
    database_ports: dict[str, int] = {}  # of databases with replicas: these follow their primary over TCP


@dataclass(frozen=True)
class ServicePlan:
    """One process: its id, which service it is, its cell, and the hosts of a compute."""

    id: str
    kind: str
    cell: str
    hosts: tuple[str, ...] = ()


def cells_of(shape: Shape) -> tuple[str, ...]:
    """All cells, the root first."""
    return (ROOT_CELL, *shape.cells)


def services_of(shape: Shape) -> tuple[ServicePlan, ...]:
    """Every process of the region, in starting order."""
    plans = [
        ServicePlan(f"{cell}-conductor-{number}", CONDUCTOR, cell)
        for cell in cells_of(shape)
        for number in range(1, shape.conductors + 1)
    ]
    for cell in shape.cells:
        plans += [ServicePlan(f"{cell}-scheduler-{n}", SCHEDULER, cell) for n in range(1, shape.schedulers + 1)]
        for number in range(1, shape.computes + 1):
            first = (number - 1) * shape.hosts_per_compute + 1
            hosts = tuple(f"{cell}-host-{n:02d}" for n in range(first, first + shape.hosts_per_compute))
            plans.append(ServicePlan(f"{cell}-compute-{number}", COMPUTE, cell, hosts))
    plans.append(ServicePlan("api-1", API, ROOT_CELL))
    return tuple(sorted(plans, key=lambda plan: START_ORDER.index(plan.kind)))


def database_names(shape: Shape, cell: str) -> list[str]:
    """The servers of a cell's replicated database, the primary first; none where there are no replicas."""
    if not shape.replicas:
        return []
    return [f"{cell}-primary", *(f"{cell}-replica-{number}" for number in range(1, shape.replicas + 1))]


def cell_of_host(shape: Shape, host: str) -> str:
    """Which cell a host of this region is in, "" for none."""
    return next((plan.cell for plan in services_of(shape) if host in plan.hosts), "")


@dataclass(frozen=True)
class Paths:
    """Where everything is in a state directory."""

    state_dir: Path

    @property
    def version(self) -> Path:
        return self.state_dir / "version"

    @property
    def lock(self) -> Path:
        return self.state_dir / "lock"

    @property
    def region(self) -> Path:
        return self.state_dir / "region.toml"

    @property
    def tokens(self) -> Path:
        return self.state_dir / "tokens.toml"

    @property
    def hosts(self) -> Path:
        return self.state_dir / "hosts"

    def key(self, service_id: str) -> Path:
        return self.state_dir / "keys" / f"{service_id}.toml"

    def keyring(self, cell: str) -> Path:
        return self.state_dir / "keys" / f"keyring-{cell}.toml"

    def config(self, service_id: str) -> Path:
        return self.state_dir / "config" / f"{service_id}.toml"

    def database(self, cell: str) -> Path:
        return self.state_dir / "db" / cell

    @property
    def logs(self) -> Path:
        return self.state_dir / "logs"

    def log(self, service_id: str) -> Path:
        return self.logs / f"{service_id}.log"

    def service(self, service_id: str) -> Path:
        return self.state_dir / "state" / service_id


def keyring_cells(plan: ServicePlan, shape: Shape) -> tuple[str, ...]:
    """The cells whose conductors let this service in: its own; cell conductors also dial the root, the api all."""
    if plan.kind == API:
        return cells_of(shape)
    if plan.kind == CONDUCTOR and plan.cell != ROOT_CELL:
        return (ROOT_CELL, plan.cell)
    return (plan.cell,)


def keyring_document(cell: str, shape: Shape, keys: dict[str, KeyPair]) -> dict[str, Any]:
    """The keyring file of a cell's conductors: who may connect, as what."""
    rows = [
        {
            "name": plan.id,
            "public_key": keys[plan.id].public_key,
            "role": plan.kind,
            "cell": plan.cell,
            "hosts": list(plan.hosts),
        }
        for plan in services_of(shape)
        if cell in keyring_cells(plan, shape)
    ]
    operator = {"name": OPERATOR, "public_key": keys[OPERATOR].public_key, "role": OPERATOR, "cell": ROOT_CELL}
    return {"keys": [*rows, operator]}


def operator_document(region: RegionFile, paths: Paths, keys: dict[str, KeyPair]) -> dict[str, Any]:
    """The configuration of the operator's commands: it dials every conductor of the region."""
    cells = region.shape.cells
    return {
        "service": {"id": OPERATOR, "cell": ROOT_CELL, "state_dir": str(paths.service(OPERATOR))},
        "bus": {
            "key_file": str(paths.key(OPERATOR)),
            "conductors": [row for cell in cells for row in _conductors(cell, region, keys)],
            "root": _conductors(ROOT_CELL, region, keys),
        },
    }


def config_document(
    plan: ServicePlan,
    region: RegionFile,
    paths: Paths,
    keys: dict[str, KeyPair],
    database_url: str,
    replica_urls: Sequence[str] = (),
) -> dict[str, Any]:
    """The configuration file of one service, absolute paths throughout."""
    document: dict[str, Any] = {
        "service": {"id": plan.id, "cell": plan.cell, "state_dir": str(paths.service(plan.id))},
        "bus": _bus_section(plan, region, paths, keys),
        "log": {"dump_dir": str(paths.logs)},
    }
    shape = region.shape
    if plan.kind == CONDUCTOR:
        document["database"] = {"url": database_url}
        if replica_urls:
            document["database"]["replicas"] = [{"url": url} for url in replica_urls]
            document["database"]["durability"] = shape.durability
        document["conductor"] = {"allow_beside_compute": True}
        if plan.cell == ROOT_CELL:
            # Nova's default of ten servers would end every demonstration and benchmark; projects may be limited.
            names = ("instances", "cores", "ram_mb", "server_groups", "server_group_members")
            document["quota"] = dict.fromkeys(names, UNLIMITED)
    elif plan.kind == COMPUTE:
        document["compute"] = {
            "fake_dir": str(paths.hosts),
            "build_ms": shape.build_ms,
            "delete_ms": shape.delete_ms,
            "step_ms": shape.step_ms,
            "hosts": [
                {
                    "name": host,
                    "vcpus": shape.host_vcpus,
                    "memory_mb": shape.host_memory_mb,
                    "disk_gb": shape.host_disk_gb,
                }
                for host in plan.hosts
            ],
        }
    elif plan.kind == API:
        document["api"] = {"host": API_HOST, "port": region.api_port, "token_file": str(paths.tokens)}
        document["api"]["workers"] = shape.api_workers
    return document


def _conductors(cell: str, region: RegionFile, keys: dict[str, KeyPair]) -> list[dict[str, str]]:
    return [
        {
            "id": plan.id,
            "address": f"tcp://127.0.0.1:{region.bus_ports[plan.id]}",
            "public_key": keys[plan.id].public_key,
        }
        for plan in services_of(region.shape)
        if plan.kind == CONDUCTOR and plan.cell == cell
    ]


def _bus_section(plan: ServicePlan, region: RegionFile, paths: Paths, keys: dict[str, KeyPair]) -> dict[str, Any]:
    section: dict[str, Any] = {"key_file": str(paths.key(plan.id))}
    if plan.kind == CONDUCTOR:
        section["listen"] = f"tcp://127.0.0.1:{region.bus_ports[plan.id]}"
        section["keyring"] = str(paths.keyring(plan.cell))
    if plan.kind != API:
        section["conductors"] = _conductors(plan.cell, region, keys)
    if plan.kind == API or (plan.kind == CONDUCTOR and plan.cell != ROOT_CELL):
        section["root"] = _conductors(ROOT_CELL, region, keys)
    return section
