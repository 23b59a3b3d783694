"""A region under reads: its databases filled, its API asked over HTTP, the CPU of everybody meanwhile."""

import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from loadtest.bus.contender import Process, cpu_s
from loadtest.reads.orders import Order, Outcome
from loadtest.reads.seeding import seed_cell, seed_root
from loadtest.reads.world import PROJECTS, project_of
from zcompute.cli.up.databases import DATABASE_NAME, MARIADB
from zcompute.cli.up.keys import write_private
from zcompute.cli.up.layout import API, CONDUCTOR, PROJECT_ID, USER_ID, ServicePlan, Shape
from zcompute.cli.up.process import ServiceProcess
from zcompute.cli.up.region import Region
from zcompute.db.private import PrivateMariaDB
from zcompute.objects.cell import ROOT_CELL

CLIENT_S_MAX = 120.0
TOKEN_CHARS = 32


@dataclass(frozen=True)
class Measured:
    """An order as it went: answers a second, CPU ms a request by kind of process, latencies.

    ``interval_ms``: of the time over which the CPU was counted, the part of one request.
    """

    per_second: float
    cpu_ms: dict[str, float]
    outcome: Outcome
    interval_ms: float = 0.0

    @property
    def served_ms(self) -> float:
        """CPU ms a request of all that serve it: the load generator is no part of that."""
        return sum(ms for kind, ms in self.cpu_ms.items() if kind != "client")


class Scene:
    """A region with servers in it, and the load generator."""

    def __init__(self, region: Region, client: Process, tokens: Sequence[str]) -> None:
        self.region = region
        self.tokens = list(tokens)
        self._client = client

    def seed(self, cells: Mapping[str, Sequence[int]]) -> None:
        """Fill the cells with the servers of these numbers, and the root with where they are."""
        for cell, numbers in cells.items():
            seed_cell(self.servers(cell), DATABASE_NAME, numbers)
        seed_root(self.servers(ROOT_CELL), DATABASE_NAME, dict(cells))

    def servers(self, cell: str) -> list[PrivateMariaDB]:
        """A cell's database servers, the primary first."""
        try:
            return list(self.region.database_servers(cell).servers)
        except KeyError:
            return [self.region.database_server(cell)]

    def order(self, targets: Sequence[str], **more: object) -> Order:
        """An order to this region's API, as an administrator unless tokens are given."""
        given = {"tokens": [self.region.token], "connections": 10, "seconds": 2.0, "warm_up_s": 0.5, **more}
        return msgspec.convert({"port": self.region.file.api_port, "targets": list(targets), **given}, Order)

    def run(self, order: Order) -> Measured:
        """Carry it out. Raises SystemExit when an answer was not right."""
        self._client.ask(msgspec.json.encode(order).decode())
        # What is spent before the measured seconds begin is part of the warm-up's answers, and is told apart by share.
        before, began_s = self.cpu_s(), time.monotonic()
        outcome = msgspec.json.decode(self._client.read(CLIENT_S_MAX), type=Outcome)
        if outcome.wrong or not outcome.answers:
            raise SystemExit(f"{order.targets[0]}: {outcome.wrong or 'no answer'}")
        spent = {kind: after - before[kind] for kind, after in self.cpu_s().items()}
        share = 1000 / max(1, outcome.all_answers)
        cpu_ms = {kind: seconds * share for kind, seconds in spent.items()}
        cpu_ms["client"] = outcome.cpu_s * 1000 / outcome.answers
        return Measured(
            outcome.answers / outcome.seconds, cpu_ms, outcome, interval_ms=(time.monotonic() - began_s) * share
        )

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds that everybody but the load generator has used, by kind of process."""
        found = {"api": 0.0, "conductors": 0.0, "primary": 0.0, "replicas": 0.0, "root": 0.0}
        for service_id, process in self.region.processes.items():
            plan = self.region.plans[service_id]
            if plan.kind == API:
                found["api"] += _with_children_s(process.pid)
            elif plan.kind == CONDUCTOR:
                found["root" if plan.cell == ROOT_CELL else "conductors"] += cpu_s(process.pid)
        for cell in self.region.cells:
            primary, *replicas = [cpu_s(server.pid) for server in self.servers(cell) if server.pid]
            found["root" if cell == ROOT_CELL else "primary"] += primary
            found["root" if cell == ROOT_CELL else "replicas"] += sum(replicas)
        return found


class LateRegion(Region):
    """A region whose cells' conductors can be made late by SIGUSR1."""

    late_ms = 50

    def _start_process(self, plan: ServicePlan) -> None:
        if plan.kind != CONDUCTOR or plan.cell == ROOT_CELL:
            super()._start_process(plan)
            return
        command = [sys.executable, "-m", "loadtest.reads.conductor", str(self.late_ms)]
        command += ["conductor", "--config", str(self.paths.config(plan.id))]
        self.processes.setdefault(plan.id, ServiceProcess(plan.id, command, self.paths.log(plan.id))).start()


@contextmanager
def scene(directory: Path, shape: Shape, kind: type[Region] = Region) -> Iterator[Scene]:
    """A region that runs, and ends with the block."""
    region = kind.create(directory, MARIADB, api_port=0, shape=shape)
    tokens = _tokens(region)
    client: Process | None = None
    region.on_unexpected_end = print
    try:
        region.start()
        client = Process([sys.executable, "-m", "loadtest.reads.client"])
        yield Scene(region, client, tokens)
    finally:
        if client is not None:
            client.stop()
        region.stop()


def _with_children_s(pid: int) -> float:
    return cpu_s(pid) + sum(cpu_s(child.pid) for child in psutil.Process(pid).children())


def _tokens(region: Region) -> list[str]:
    """The administrator's token first in the file, then one of each project, which are returned."""
    if region.paths.tokens.exists():
        rows = tomllib.loads(region.paths.tokens.read_text(encoding="utf-8"))["tokens"][1:]
        return [str(row["token"]) for row in rows]
    administrator = {"token": "a" * TOKEN_CHARS, "project_id": PROJECT_ID, "user_id": USER_ID, "is_admin": True}
    rows = [
        {"token": f"{share}" * TOKEN_CHARS, "project_id": project_of(share), "user_id": USER_ID, "is_admin": False}
        for share in range(PROJECTS)
    ]
    write_private(region.paths.tokens, {"tokens": [administrator, *rows]})
    return [str(row["token"]) for row in rows]
