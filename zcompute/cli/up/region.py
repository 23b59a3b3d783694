"""Class Region: an embedded region as a library: created or loaded, started, looked at, hurt, stopped."""

import os
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gevent
from gevent.pool import Pool

from zcompute.cli.client import ApiClient, ApiFailed
from zcompute.cli.exits import CommandError, TooLate, UsageRefused
from zcompute.cli.up import statedir
from zcompute.cli.up.databases import AUTO, SQLITE, Databases, choose
from zcompute.cli.up.keys import KeyPair, key_pair, token, write_keyring, write_private
from zcompute.cli.up.layout import (
    API_HOST,
    CONDUCTOR,
    OPERATOR,
    PROJECT_ID,
    USER_ID,
    Paths,
    RegionFile,
    ServicePlan,
    Shape,
    cells_of,
    config_document,
    database_names,
    keyring_document,
    operator_document,
    services_of,
)
from zcompute.cli.up.process import ServiceProcess, cpu_ms, last_line
from zcompute.config import load
from zcompute.db.failover.finding import primary_url
from zcompute.db.private import PrivateMariaDB
from zcompute.db.private_replicas import PrivateReplicas

READY_DEADLINE_S = 60.0
READY_POLL_S = 0.1
STOP_SERVICES_S = 2.5
KILLED_S = 1.0
DEFAULT_API_PORT = 8774

Said = Callable[[str], None]


def _silent(text: str) -> None:
    """Progress that nobody wants to see."""


class Region:
    """A region in a state directory. ``load`` only reads; ``create`` (or ``create`` again) may start it."""

    def __init__(self, paths: Paths, region: RegionFile, lock: int | None = None) -> None:
        self.paths = paths
        self.file = region
        self.plans: dict[str, ServicePlan] = {plan.id: plan for plan in services_of(region.shape)}
        self.processes: dict[str, ServiceProcess] = {}
        self.on_unexpected_end: Said = _silent
        self._lock = lock
        self._databases = Databases(region.database, paths, region.shape, region.database_ports)
        self._watcher: gevent.Greenlet | None = None

    # -- making ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        state_dir: str | Path,
        database: str = AUTO,
        *,
        api_port: int = DEFAULT_API_PORT,
        shape: Shape | None = None,
    ) -> "Region":
        """Take the state directory (a new one, or one that holds a region) for starting. Raises CommandError's tree.

        ``shape`` counts for a new directory only. ``api_port`` 0 takes a free one.
        """
        paths = Paths(Path(state_dir).expanduser().resolve())
        statedir.check_version(paths, create=True)
        lock = statedir.take_lock(paths)
        try:
            known = statedir.read_region(paths) if paths.version.exists() else None
            kind = choose(database, known.database if known else None)
            region = known or RegionFile(database=kind, shape=shape or Shape())
            if region.shape.replicas and region.database == SQLITE:
                raise UsageRefused("SQLite has no replicas: use --database mariadb, or --replicas 0")
            if api_port:
                statedir.require_free(api_port)
            names = [plan.id for plan in services_of(region.shape) if plan.kind == CONDUCTOR]
            region.bus_ports = statedir.free_ports(names, region.bus_ports)
            servers = [name for cell in cells_of(region.shape) for name in database_names(region.shape, cell)]
            region.database_ports = statedir.free_ports(servers, region.database_ports)
            region.api_port = api_port or statedir.free_ports(["api"], {"api": region.api_port})["api"]
            statedir.write_region(paths, region)
        except BaseException:
            os.close(lock)
            raise
        return cls(paths, region, lock)

    @classmethod
    def load(cls, state_dir: str | Path) -> "Region":
        """Read a region for looking at it, whether it runs or not. Raises CommandError's tree."""
        paths = Paths(Path(state_dir).expanduser().resolve())
        statedir.check_version(paths, create=False)
        return cls(paths, statedir.read_region(paths))

    # -- looking --------------------------------------------------------------------------------------------------

    @property
    def api_url(self) -> str:
        return f"http://{API_HOST}:{self.file.api_port}"

    @property
    def token(self) -> str:
        """The administrator's token of project PROJECT_ID."""
        return token(self.paths.tokens, PROJECT_ID, USER_ID)

    @property
    def cells(self) -> tuple[str, ...]:
        """All cells, the root first."""
        return cells_of(self.file.shape)

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(host for plan in self.plans.values() for host in plan.hosts)

    def database_url(self, cell: str) -> str:
        """Where the database of a cell is, as its conductors' configuration says."""
        plan = next(plan for plan in self.plans.values() if plan.kind == CONDUCTOR and plan.cell == cell)
        document = tomllib.loads(self.paths.config(plan.id).read_text(encoding="utf-8"))
        return str(document["database"]["url"])

    def primary_url(self, cell: str) -> str:
        """The URL of the cell's primary, which may be another than the configuration's first after a promotion.

        Raises PrimaryNotFound.
        """
        plan = next(plan for plan in self.plans.values() if plan.kind == CONDUCTOR and plan.cell == cell)
        database = load(self.paths.config(plan.id)).database
        if database is None:
            raise CommandError(f"{plan.id}: expected a section [database] in its configuration")
        return primary_url(database, cell)

    def database_server(self, cell: str) -> PrivateMariaDB:
        """The cell's primary, while the region runs. Raises KeyError for SQLite."""
        return self._databases.server(cell)

    def database_servers(self, cell: str) -> PrivateReplicas:
        """The cell's primary with its replicas, while the region runs. Raises KeyError where there are none."""
        return self._databases.replicated(cell)

    def client(self, timeout_s: float = 30.0) -> ApiClient:
        """A new connection to the API with the administrator's token."""
        return ApiClient(self.api_url, self.token, timeout_s)

    def conductors(self, cell: str) -> list[str]:
        """Service ids of a cell's conductors whose processes live."""
        return [
            plan.id
            for plan in self.plans.values()
            if plan.kind == CONDUCTOR and plan.cell == cell and self.processes[plan.id].alive
        ]

    def pids(self) -> list[int]:
        """Every living process of the region, databases included."""
        services = [process.pid for process in self.processes.values() if process.alive]
        return services + list(self._databases.pids().values())

    def cpu_ms(self) -> dict[str, float]:
        """CPU time so far by kind of service, ``database`` and ``client`` (this process), in ms."""
        total = dict.fromkeys(("api", "conductor", "scheduler", "compute", "database"), 0.0)
        for service_id, process in self.processes.items():
            total[self.plans[service_id].kind] += process.sample_cpu_ms()
        for pid in self._databases.pids().values():
            total["database"] += cpu_ms(pid) or 0.0
        total["client"] = cpu_ms(os.getpid()) or 0.0
        return total

    # -- living ---------------------------------------------------------------------------------------------------

    def start(self, said: Said = _silent, deadline_s: float = READY_DEADLINE_S) -> None:
        """Start everything and wait until every host is up. On failure everything is stopped again.

        Raises TooLate, CommandError (a service ended; with the last line of its log).
        """
        try:
            said(f"starting databases: {self.file.database}")
            self._databases.start()
            for path in self._databases.set_aside:
                said(f"a database server was replaced by a promotion: it begins anew, what it held is kept in {path}")
            self._write_files()
            said(f"starting {len(self.plans)} services")
            for plan in self.plans.values():
                self._start_process(plan)
            self.wait_ready(deadline_s)
            self._watcher = gevent.spawn(self._watch)
        except BaseException:
            self.stop()
            raise

    def _write_files(self) -> None:
        keys: dict[str, KeyPair] = {name: key_pair(self.paths.key(name)) for name in (*self.plans, OPERATOR)}
        for cell in self.cells:
            write_keyring(self.paths.keyring(cell), keyring_document(cell, self.file.shape, keys))
        write_private(self.paths.config(OPERATOR), operator_document(self.file, self.paths, keys))
        self.paths.hosts.mkdir(exist_ok=True)
        token(self.paths.tokens, PROJECT_ID, USER_ID)
        for plan in self.plans.values():
            self.paths.service(plan.id).mkdir(parents=True, exist_ok=True)
            url = self._databases.urls[plan.cell] if plan.kind == CONDUCTOR else ""
            replicas = self._databases.replica_urls(plan.cell) if plan.kind == CONDUCTOR else []
            document = config_document(plan, self.file, self.paths, keys, url, replicas)
            write_private(self.paths.config(plan.id), document)

    def _start_process(self, plan: ServicePlan) -> None:
        arguments = [sys.executable, "-m", "zcompute.cli.main", plan.kind, "--config", str(self.paths.config(plan.id))]
        process = self.processes.setdefault(plan.id, ServiceProcess(plan.id, arguments, self.paths.log(plan.id)))
        process.start()

    def wait_ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        """Until the API is healthy and shows every host up. Raises TooLate, CommandError."""
        deadline = time.monotonic() + deadline_s
        missing = "the API does not answer"
        while time.monotonic() < deadline:
            self._raise_if_ended()
            missing = self._missing()
            if not missing:
                return
            time.sleep(READY_POLL_S)
        raise TooLate(f"the region did not come up within {deadline_s:.0f} s: {missing}; logs in {self._logs}")

    @property
    def _logs(self) -> Path:
        return self.paths.log("x").parent

    def _missing(self) -> str:
        """What is missing until the region is ready, "" for nothing."""
        client = self.client(timeout_s=5.0)
        try:
            client.get("/healthz")
            services = client.get("/v2.1/os-services")["services"]
        except ApiFailed as error:
            return str(error)
        finally:
            client.close()
        up = {row["host"] for row in services if row["binary"] == "nova-compute" and row["state"] == "up"}
        down = sorted(set(self.hosts) - up)
        return f"{len(down)} hosts are not up: {', '.join(down[:5])}" if down else ""

    def _raise_if_ended(self) -> None:
        for process in self.processes.values():
            if process.exit_code is not None and not process.end_expected:
                raise CommandError(self._obituary(process))

    def _obituary(self, process: ServiceProcess) -> str:
        line = last_line(process.log_path)
        return f"{process.service_id} ended with code {process.exit_code}: {line or 'its log is empty'}"

    def _watch(self) -> None:
        told: set[tuple[str, int]] = set()
        while True:
            for process in self.processes.values():
                mark = (process.service_id, process.pid)
                if process.exit_code is not None and not process.end_expected and mark not in told:
                    told.add(mark)
                    self.on_unexpected_end(self._obituary(process))
            gevent.sleep(READY_POLL_S)

    # -- hurting --------------------------------------------------------------------------------------------------

    def kill(self, service_id: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a service (SIGKILL: and wait for its end); its pid."""
        process = self.processes[service_id]
        pid = process.pid
        process.send(number)
        if number == signal.SIGKILL and not process.wait(KILLED_S):
            raise CommandError(f"{service_id} (pid {pid}) is still there {KILLED_S} s after SIGKILL")
        return pid

    def restart(self, service_id: str) -> int:
        """Start a service that has ended; its new pid."""
        process = self.processes[service_id]
        if process.alive:
            raise CommandError(f"{service_id} (pid {process.pid}) still runs")
        process.start()
        return process.pid

    # -- ending ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop services, then databases, within 5 s in all; what does not end is killed. Gives up the lock."""
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher = None
        living = [process for process in self.processes.values() if process.alive]
        for process in living:
            process.send(signal.SIGTERM)
            process.send(signal.SIGCONT)
        deadline = time.monotonic() + STOP_SERVICES_S
        for process in living:
            if not process.wait(deadline - time.monotonic()):
                process.send(signal.SIGKILL)
        Pool(len(living) or 1).map(lambda process: process.wait(KILLED_S), living)
        self._databases.stop()
        if self._lock is not None:
            with suppress(OSError):
                os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Delete the state directory of a stopped region."""
        shutil.rmtree(self.paths.state_dir)
