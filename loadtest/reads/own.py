"""One's own writes: clients create and delete servers, and look at once through another process, replicas late."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gevent

from loadtest.late_replica import late
from loadtest.reads.apart import Answer, Client, clients
from loadtest.reads.rates import Metrics
from loadtest.reads.scene import Scene, scene
from zcompute.cli.operator import Operator, conductors_of, operator_config
from zcompute.cli.up.layout import Shape
from zcompute.objects.conductor_stat import ConductorReadStat, ConductorStatRequest
from zcompute.objects.methods import CONDUCTOR_STAT

LAG_S = 0.5
CLIENTS = 4
API_WORKERS = 3
STAT_MS_MAX = 5_000
SERVING_S_MAX = 30.0
SHAPE = Shape(
    cells=("c1",), conductors=2, computes=1, hosts_per_compute=2, replicas=2, api_workers=API_WORKERS
)  # fmt: skip
TASK_STATE = "OS-EXT-STS:task_state"


@dataclass
class Tally:
    """What the clients found."""

    writes: int = 0
    checks: int = 0
    misses: list[str] = field(default_factory=list)
    taken_ms: list[float] = field(default_factory=list)

    def check(self, what: str, answer: Answer, right: bool) -> None:
        """Count one look at what was just written."""
        self.checks += 1
        self.taken_ms.append(answer.took_ms)
        if not right:
            self.misses.append(f"{what}: {answer.status} {str(answer.body)[:300]}")


def measure(directory: Path, seconds: float, metrics: Metrics) -> None:
    """All of it."""
    with scene(directory, SHAPE) as found, _connected(found) as connected:
        _wait_serving(found)
        before = _reads(found)
        tally = Tally()
        with ExitStack() as held:
            for cell in found.region.cells:
                servers = found.region.database_servers(cell)
                held.enter_context(late(servers, servers.replicas, LAG_S))
            ends_at_s = time.monotonic() + seconds
            running = [gevent.spawn(_client, number, each, tally, ends_at_s) for number, each in enumerate(connected)]
            gevent.joinall(running, raise_error=True)
            after = _reads(found)
        put_off = sum(client.put_off for each in connected for client in each)
    _tell(tally, [many - few for few, many in zip(before, after, strict=True)], put_off, metrics)


def _tell(tally: Tally, counted: list[int], put_off: int, metrics: Metrics) -> None:
    for miss in tally.misses[:10]:
        print(f"missed: {miss}", flush=True)
    reads, at_primary = counted
    taken = sorted(tally.taken_ms)
    metrics["own_writes"] = tally.writes
    metrics["own_write_checks"] = tally.checks
    metrics["own_write_misses"] = len(tally.misses)
    metrics["own_write_put_off"] = put_off
    metrics["own_write_check_p50_ms"] = round(taken[len(taken) // 2], 1)
    metrics["own_write_check_p99_ms"] = round(taken[len(taken) * 99 // 100], 1)
    metrics["row_reads"] = reads
    metrics["row_reads_at_primary"] = at_primary
    metrics["row_reads_at_primary_share"] = round(at_primary / max(1, reads), 4)


def _client(number: int, processes: list[Client], tally: Tally, ends_at_s: float) -> None:
    """One client: each request goes to the next of the API's processes."""
    turn = number
    made = 0

    def ask(method: str, target: str, body: object = None) -> Answer:
        nonlocal turn
        turn += 1
        return processes[turn % len(processes)].ask(method, target, body)

    while time.monotonic() < ends_at_s:
        made += 1
        name = f"own-{number}-{made}"
        server = {"name": name, "flavorRef": "1", "imageRef": "i", "networks": "auto"}
        created = ask("POST", "/v2.1/servers", {"server": server})
        if created.status != 202:
            raise SystemExit(f"creating {name}: expected 202, found {created.status} {created.body}")
        uuid = created.body["server"]["id"]
        shown = ask("GET", f"/v2.1/servers/{uuid}")
        tally.check(f"{name} shown", shown, shown.status == 200 and shown.body["server"]["name"] == name)
        listed = ask("GET", "/v2.1/servers")
        tally.check(f"{name} listed", listed, listed.status == 200 and uuid in _by_id(listed))
        deleted = ask("DELETE", f"/v2.1/servers/{uuid}")
        if deleted.status != 204:
            raise SystemExit(f"deleting {name}: expected 204, found {deleted.status} {deleted.body}")
        shown = ask("GET", f"/v2.1/servers/{uuid}")
        gone = shown.status == 404 or (shown.status == 200 and _leaves(shown.body["server"]))
        tally.check(f"{name} shown after its deletion", shown, gone)
        listed = ask("GET", "/v2.1/servers/detail")
        row = _by_id(listed).get(uuid) if listed.status == 200 else {}
        tally.check(f"{name} listed after its deletion", listed, row is None or _leaves(row))
        tally.writes += 2


def _by_id(answer: Answer) -> dict[str, dict[str, object]]:
    return {str(each["id"]): each for each in answer.body["servers"]}


def _leaves(server: dict[str, object]) -> bool:
    """Whether a server's own row says that it is being deleted."""
    return server.get(TASK_STATE) == "deleting" or server.get("status") == "DELETED"


@contextmanager
def _connected(found: Scene) -> Iterator[list[list[Client]]]:
    """Each client's connections, one to each process of the API."""
    made = [clients(found.region, found.region.token) for _ in range(CLIENTS)]
    try:
        yield made
    finally:
        for each in made:
            for client in each:
                client.close()


def _stats(found: Scene) -> list[ConductorReadStat]:
    config = operator_config(None, str(found.region.paths.state_dir))
    with Operator(config, STAT_MS_MAX) as operator:
        operator.wait_links(STAT_MS_MAX // 2)
        peers = [peer.id for peer in conductors_of(config)]
        answers, missing = operator.ask_each(peers, CONDUCTOR_STAT, ConductorStatRequest())
    if missing:
        raise SystemExit(f"expected every conductor's counters, found none of {missing}")
    return [each.reads for each in answers]


def _reads(found: Scene) -> tuple[int, int]:
    """Reads of clients so far, and those of them that read rows at a primary, the root's too."""
    stats = _stats(found)
    return sum(sum(one.by_need.values()) for one in stats), sum(sum(one.at_primary.values()) for one in stats)


def _wait_serving(found: Scene) -> None:
    """Until every replica takes reads. Raises SystemExit."""
    ends_at_s = time.monotonic() + SERVING_S_MAX
    while True:
        states = [[replica.state for replica in one.replicas] for one in _stats(found)]
        if all(len(each) == SHAPE.replicas and set(each) == {"serving"} for each in states):
            return
        if time.monotonic() > ends_at_s:
            raise SystemExit(f"expected all replicas to serve within {SERVING_S_MAX:g} s, found {states}")
        gevent.sleep(0.2)
