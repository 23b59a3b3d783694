"""The ledger under reads: durable updates at a fixed rate, with lists at the replicas or the primary, and without.

The rate is a share of the best that the whole cell sustains: what the primary takes in while its replicas fall behind
is no rate that anybody could run at. ``busy_cores``: of the machine, whoever used them, while the rate was held.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import psutil

from loadtest.bus.contender import Process
from loadtest.ledger.cell import NATIVE, Cell, Writers, key_pair
from loadtest.ledger.measuring import Bench, Measured
from loadtest.ledger.readback import read_back
from loadtest.ledger.seeding import seed_instances
from loadtest.reads.lister import SERVICE_ID, Listed, Readers, Span
from loadtest.reads.rates import Metrics
from zcompute.cli.up.statedir import free_ports
from zcompute.db.private import ADMINISTRATOR
from zcompute.db.private_replicas import PrivateReplicas
from zcompute.db.url import MariaDbTarget, parse_url

SHARE_OF_BEST = 0.4
LISTS_PER_SECOND = 200
REPLICAS = 2
CONDUCTORS = 2
WARM_UP_S = 1.0
ANSWER_S_MAX = 60.0
START_S_MAX = 60.0
SERVING_S_MAX = 30.0
LOOK_S = 0.5  # of lists, to see who serves them
AT_PRIMARY_MAX = 0.05  # of the rows that lists read, once replicas serve: conductors have reads of their own
SCANNED = ("Handler_read_next", "Handler_read_prev")  # rows read along an index: lists do, updates by key do not
RELAXED = ("SET GLOBAL sync_binlog = 0", "SET GLOBAL innodb_flush_log_at_trx_commit = 2")
OPTIONS = ("--innodb-flush-log-at-trx-commit=1", "--innodb-log-file-size=256M")


@dataclass(frozen=True)
class Sizes:
    """How large and how long; ``rate`` 0: SHARE_OF_BEST of the best that is sustained."""

    instances: int
    agents: int
    rounds: int
    seconds: float
    rate: float = 0.0
    buffer_pool_mb: int = 256


class ReplicatedCell(Cell):
    """The ledger's cell with replicas, of which its conductors are told or not."""

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        super().__init__(directory, sizes.instances, sizes.agents, sizes.buffer_pool_mb)
        names = [f"server-{number}" for number in range(REPLICAS + 1)]
        ports = list(free_ports(names, dict.fromkeys(names, 0)).values())
        self.servers = PrivateReplicas(
            directory / "servers", ports, buffer_pool_mb=sizes.buffer_pool_mb, options=OPTIONS
        )  # fmt: skip
        self.server = self.servers.primary
        self.reader_keys = key_pair()
        self.tell_replicas = True

    def start_servers(self) -> None:
        """Replicas flush once a second: elsewhere they have disks of their own, here their flushes would make the
        primary's wait, lists or not."""
        self.servers.start()
        for replica in self.servers.replicas:
            replica.administer(*RELAXED)

    def stop_servers(self) -> None:
        self.servers.stop()

    def seed(self) -> None:
        """The same rows everywhere, past the logs."""
        self.servers.wait_caught_up()
        super().seed()
        for replica in self.servers.replicas:
            target = parse_url(replica.url("cell"))
            if isinstance(target, MariaDbTarget):
                seed_instances(replace(target, user=ADMINISTRATOR), self.instances, self.agents)

    def more_keys(self) -> list[dict[str, object]]:
        return [{"name": SERVICE_ID, "public_key": self.reader_keys[0], "role": "api", "cell": "c1", "hosts": []}]

    def database_section(self, driver: str) -> dict[str, object]:
        section = super().database_section(driver)
        if self.tell_replicas:
            section["replicas"] = [{"url": replica.url("cell")} for replica in self.servers.replicas]
        return section


def measure(directory: Path, sizes: Sizes, metrics: Metrics) -> None:
    """With replicas first, then the same conductors without."""
    place = directory / "cell"
    place.mkdir(parents=True)
    cell = ReplicatedCell(place, sizes)
    bench = Bench(cell)
    try:
        cell.start()
        rate = sizes.rate
        for name, told in (("", True), ("no_replicas_", False)):
            cell.tell_replicas = told
            writers = Writers(cell, NATIVE, CONDUCTORS)
            try:
                bench.connect(writers)
                bench.sweep(writers)
                if not rate:
                    rate = SHARE_OF_BEST * _sustained(bench, writers, sizes.seconds, metrics)
                metrics["ledger_rate_per_second"] = round(rate)
                _rounds(bench, writers, sizes, rate, metrics, name)
            finally:
                bench.leave(writers)
        found = read_back(bench)
        metrics["ledger_lost"], metrics["ledger_repeated"] = found.lost, found.repeated
    finally:
        cell.stop()


def _sustained(bench: Bench, writers: Writers, seconds: float, metrics: Metrics) -> float:
    """The best rate, counted until the last replica has applied the last update."""
    servers = _replicated(bench.cell).servers
    servers.wait_caught_up()
    found = bench.closed(writers, seconds, WARM_UP_S)
    ended_s = time.monotonic()
    servers.wait_caught_up()
    late_s = time.monotonic() - ended_s
    metrics["ledger_best_at_primary_per_second"] = round(found.updates_per_second)
    metrics["ledger_best_replicas_late_s"] = round(late_s, 2)
    sustained = found.updates_per_second * (seconds + WARM_UP_S) / (seconds + WARM_UP_S + late_s)
    metrics["ledger_best_per_second"] = round(sustained)
    return sustained


def _rounds(bench: Bench, writers: Writers, sizes: Sizes, rate: float, metrics: Metrics, name: str) -> None:
    """Without and with lists, in turn; each pair begins with the other of the two, for the sake of drifts."""
    cell = _replicated(bench.cell)
    readers = _readers(cell, writers)
    alone: list[Measured] = []
    under: list[Measured] = []
    lists: list[Listed] = []
    scanned = [0, 0]
    cores: dict[str, list[float]] = {"alone": [], "under_reads": []}

    def without() -> None:
        with _busy_cores(cores["alone"]):
            alone.append(bench.paced(writers, rate, sizes.seconds, WARM_UP_S))

    def with_lists() -> None:
        before = _scanned(cell)
        _ask(readers, sizes.seconds + 2 * WARM_UP_S)
        with _busy_cores(cores["under_reads"]):
            under.append(bench.paced(writers, rate, sizes.seconds, WARM_UP_S))
        lists.append(_listed(readers))
        scanned[:] = [
            total + after - former for total, after, former in zip(scanned, _scanned(cell), before, strict=True)
        ]

    try:
        readers.read(START_S_MAX)
        if cell.tell_replicas:
            _wait_serving(cell, readers)
        for number in range(sizes.rounds):
            first, second = (with_lists, without) if number % 2 else (without, with_lists)
            first()
            second()
    finally:
        readers.stop()
    for kind, found in (("alone", alone), ("under_reads", under)):
        metrics[f"{name}primary_us_row_{kind}"] = round(_median(found, "mariadbd_us"), 1)
        metrics[f"{name}ack_p50_ms_{kind}"] = round(_median(found, "p50_ms"), 2)
        metrics[f"{name}ack_p99_ms_{kind}"] = round(_median(found, "p99_ms"), 2)
        metrics[f"{name}busy_cores_{kind}"] = round(statistics.median(cores[kind]), 2)
        each = ", ".join(f"{one.p99_ms:.0f}" for one in found)
        print(f"{name}{kind}: ack p99 ms of each round {each}", flush=True)
    metrics[f"{name}lists"] = sum(one.answers for one in lists)
    metrics[f"{name}list_p99_ms"] = round(statistics.median(one.p99_ms for one in lists), 1)
    metrics[f"{name}list_rows_at_primary_share"] = round(scanned[0] / max(1, sum(scanned)), 4)
    metrics[f"{name}ratio_primary_cpu_under_reads"] = _ratio(under, alone, "mariadbd_us")
    metrics[f"{name}ratio_ack_p99_under_reads"] = _ratio(under, alone, "p99_ms")


@contextmanager
def _busy_cores(found: list[float]) -> Iterator[None]:
    """How many of the machine's cores worked meanwhile, on the mean."""
    before, began_s = psutil.cpu_times(), time.monotonic()
    yield
    after, took_s = psutil.cpu_times(), time.monotonic() - began_s
    idle_s = after.idle + after.iowait - before.idle - before.iowait
    found.append(float((psutil.cpu_count() or 1) - idle_s / took_s))


def _ask(readers: Process, seconds: float) -> None:
    now_s = time.monotonic()
    readers.ask(msgspec.json.encode(Span(LISTS_PER_SECOND, now_s, now_s + seconds)).decode())


def _listed(readers: Process) -> Listed:
    return msgspec.json.decode(readers.read(ANSWER_S_MAX), type=Listed)


def _wait_serving(cell: ReplicatedCell, readers: Process) -> None:
    """Ask for lists until replicas answer them. Raises SystemExit."""
    ends_at_s = time.monotonic() + SERVING_S_MAX
    while True:
        before = _scanned(cell)
        _ask(readers, LOOK_S)
        _listed(readers)
        primary, replicas = [after - former for after, former in zip(_scanned(cell), before, strict=True)]
        if primary <= AT_PRIMARY_MAX * replicas:
            return
        if time.monotonic() > ends_at_s:
            raise SystemExit(
                f"expected replicas to serve lists within {SERVING_S_MAX:g} s, found {primary} rows read at the "
                f"primary, {replicas} at replicas"
            )


def _scanned(cell: ReplicatedCell) -> list[int]:
    """Rows read along an index so far: at the primary, and at its replicas together."""
    wanted = ", ".join(f"'{name}'" for name in SCANNED)
    counts = [
        sum(int(row["Value"]) for row in server.administer(f"SHOW GLOBAL STATUS WHERE Variable_name IN ({wanted})"))
        for server in cell.servers.servers
    ]
    return [counts[0], sum(counts[1:])]


def _replicated(cell: Cell) -> ReplicatedCell:
    if not isinstance(cell, ReplicatedCell):
        raise TypeError(f"expected a cell with replicas, found {cell}")
    return cell


def _readers(cell: ReplicatedCell, writers: Writers) -> Process:
    file = cell.directory / "readers.json"
    file.touch(mode=0o600)
    file.write_bytes(msgspec.json.encode(Readers(*cell.reader_keys, writers.places)))
    return Process([sys.executable, "-m", "loadtest.reads.lister", str(file)])


def _median(rounds: list[Measured], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in rounds))


def _ratio(under: list[Measured], alone: list[Measured], name: str) -> float:
    """The median of the rounds' own ratios."""
    pairs = zip(under, alone, strict=True)
    return round(statistics.median(getattr(one, name) / getattr(other, name) for one, other in pairs), 2)
