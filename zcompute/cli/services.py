"""``zcompute api|conductor|scheduler|compute --config FILE``: one service each, until SIGTERM or SIGINT."""

import ctypes
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import click
import gevent
from gevent.event import Event
from msgspec.structs import replace

from zcompute import log as logs
from zcompute.cli import beside
from zcompute.cli.exits import CommandError, HostsTaken, PortInUse, UsageRefused
from zcompute.cli.state_dump import StateDumper
from zcompute.config import Config, ConfigError, MetricsConfig, load
from zcompute.measure import Measured

log = logging.getLogger(__name__)

STOP_DEADLINE_S = 4.0
SCHEMA_CHECK_S = 5.0
_PR_SET_PDEATHSIG = 1


class Service(Protocol):
    """What an entry point runs: start() returns when the service works, stop() ends it."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


@runtime_checkable
class Ending(Protocol):
    """A service that ends by itself when another has taken its place: it calls ``on_superseded`` with the reason."""

    on_superseded: Callable[[str], None]


def _read(path: str) -> Config:
    try:
        return load(path)
    except ConfigError as error:
        raise UsageRefused(str(error)) from error


def _start(service: Service, kind: str, config: Config) -> None:
    try:
        if config.metrics.listen:
            from zcompute import metrics

            if isinstance(service, Measured):
                metrics.serve(kind, config, service.measures)
            else:
                metrics.serve(kind, config)
        service.start()
    except ConfigError as error:
        raise UsageRefused(f"{config.service.id}: {error}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"{config.service.id} cannot listen: {error}") from error
        raise CommandError(f"{config.service.id} cannot start: {error}") from error
    except Exception as error:
        log.exception("start failed")
        raise CommandError(f"{config.service.id} cannot start: {type(error).__name__}: {error}") from error


def run(kind: str, config: Config, make: Callable[[Config], Service]) -> None:
    """Run a service until it is told to end; stop() has STOP_DEADLINE_S. SIGUSR2 dumps its state.

    Raises HostsTaken when another agent has taken all its hosts, and what ``_start`` raises.
    """
    logs.setup(config.log, config.service.id)
    wanted = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, wanted.set)
    gevent.signal_handler(signal.SIGUSR2, StateDumper(config))
    service = make(config)
    taken: list[str] = []
    if isinstance(service, Ending):

        def superseded(reason: str) -> None:
            taken.append(reason)
            wanted.set()

        service.on_superseded = superseded
    _start(service, kind, config)
    log.info("started kind=%s cell=%s", kind, config.service.cell)
    wanted.wait()
    log.info("stopping")
    with gevent.Timeout(STOP_DEADLINE_S, False):
        service.stop()
        log.info("stopped")
    if taken:
        raise HostsTaken(f"{config.service.id}: {taken[0]}")


_config_option = click.option(
    "--config", "config_path", required=True, metavar="FILE", help="TOML file (see `zcompute config sample`)."
)


@click.command()
@_config_option
@click.option("--workers", type=click.IntRange(1, 64), help="Processes that serve; instead of [api] workers.")
@click.option("--worker", "number", type=int, default=0, hidden=True)
@click.option("--listener-fd", type=int, default=-1, hidden=True)
def api(config_path: str, workers: int | None, number: int, listener_fd: int) -> None:
    """Run one API service, of one process or several behind one address."""
    from zcompute.api.server import ApiService
    from zcompute.api.workers import Workers

    config = _read(config_path)
    if number:
        die_with_parent()
        listener = socket.socket(fileno=listener_fd)
        run("api", config_of_worker(config, number), lambda given: ApiService(given, listener))
        return
    if workers is not None:
        config = replace(config, api=replace(config.api, workers=workers))
    if config.api.workers == 1:
        run("api", config, ApiService)
        return
    run("api", replace(config, metrics=MetricsConfig()), lambda given: Workers(given, config_path))


def config_of_worker(config: Config, number: int) -> Config:
    """A worker's own: a service id, and a place for its metrics: the next port, or the path with its number."""
    service = replace(config.service, id=f"{config.service.id}.{number}")
    place = config.metrics.listen
    if place.startswith("unix:"):
        place = f"{place}.{number}"
    elif place:
        host, _, port = place.rpartition(":")
        place = f"{host}:{int(port) + number - 1 if port != '0' else 0}"
    return replace(config, service=service, metrics=replace(config.metrics, listen=place))


def die_with_parent() -> None:
    """SIGTERM when the process that started this one ends, however it does."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent or parent == 1:
        raise CommandError("the process that listens has ended")


def run_conductor(config_path: str) -> None:
    """Run one conductor. Refuses to start beside a compute of the same host, unless allow_beside_compute is set."""
    config = _read(config_path)
    if not config.conductor.allow_beside_compute and beside.compute_runs_here(beside.lock_path()):
        raise UsageRefused(
            f"{config.service.id}: a compute runs on this host, and a conductor holds the database's credentials: "
            "run it elsewhere, or set allow_beside_compute = true in [conductor]"
        )
    _check_schema(config)
    from zcompute.conductor.service import ConductorService

    run("conductor", config, lambda given: ConductorService(given, lambda: load(config_path)))


def _check_schema(config: Config) -> None:
    """A schema that this release cannot work on is refused; a database that is away is waited for by the service."""
    if config.database is None:
        return
    from zcompute.db import migrate
    from zcompute.db.errors import SchemaMismatch, StoreError
    from zcompute.db.failover.finding import primary_url
    from zcompute.db.schema import KIND_CELL, KIND_ROOT
    from zcompute.objects.cell import ROOT_CELL

    cell = config.service.cell
    try:
        with gevent.Timeout(SCHEMA_CHECK_S, False):  # one that hangs is waited for by the service too
            url = primary_url(config.database, cell)
            migrate.check(url, KIND_ROOT if cell == ROOT_CELL else KIND_CELL, cell)
    except SchemaMismatch as error:
        raise CommandError(f"{config.service.id}: {error}") from error
    except StoreError as error:
        log.info("schema not checked error=%s", error)


@click.command()
@_config_option
def scheduler(config_path: str) -> None:
    """Run one scheduler."""
    from zcompute.scheduler.service import SchedulerService

    run("scheduler", _read(config_path), SchedulerService)


@click.command()
@_config_option
def compute(config_path: str) -> None:
    """Run one compute agent."""
    config = _read(config_path)
    beside.hold_as_compute(beside.lock_path())
    from zcompute.compute.service import ComputeService

    run("compute", config, ComputeService)
