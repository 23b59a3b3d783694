"""A cell far away: what its distance costs, and what a cut of its line does.

    python -m loadtest.wan [--json FILE] [--quick]

Root, API and cell c1 are in one place, cell c2 in another: every link between the two goes through a wire of
loadtest.chaos.wires (a proxy that delays each direction, stalls as TCP does when a packet is lost, and can be cut).
"""

from gevent import monkey

monkey.patch_all()

import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402
import msgspec  # noqa: E402

from loadtest.chaos import wires  # noqa: E402
from loadtest.report import parser, publish  # noqa: E402
from zcompute.cli.exits import CommandError  # noqa: E402
from zcompute.cli.up.boots import Booter, percentile  # noqa: E402
from zcompute.cli.up.databases import AUTO  # noqa: E402
from zcompute.cli.up.layout import API, CONDUCTOR, ServicePlan, Shape  # noqa: E402
from zcompute.cli.up.process import ServiceProcess  # noqa: E402
from zcompute.cli.up.region import Region  # noqa: E402
from zcompute.cli.up.statedir import free_ports  # noqa: E402
from zcompute.objects.cell import ROOT_CELL  # noqa: E402

NEAR, FAR = "c1", "c2"
CUT_S = 12.0
BACK_S_MAX = 40.0
POLL_S = 0.05


class FarRegion(Region):
    """A region whose cell FAR is behind wires."""

    wires: dict[str, wires.Wire]
    proxy: "subprocess.Popen[bytes] | None" = None

    def table(self, service_id: str) -> Path:
        """Where this service's dials go instead."""
        return self.paths.config(service_id).with_suffix(".wires")

    def _write_files(self) -> None:
        super()._write_files()
        ports = self.file.bus_ports
        far = [plan.id for plan in self.plans.values() if (plan.kind, plan.cell) == (CONDUCTOR, FAR)]
        root = [plan.id for plan in self.plans.values() if (plan.kind, plan.cell) == (CONDUCTOR, ROOT_CELL)]
        apis = [plan.id for plan in self.plans.values() if plan.kind == API]
        pairs = [(one, other) for one in far for other in root] + [(one, other) for one in apis for other in far]
        names = [f"{one}>{other}" for one, other in pairs]
        taken = free_ports([*ports, *names], dict(ports))
        self.wires = {
            name: wires.Wire(name, f"tcp://127.0.0.1:{taken[name]}", f"tcp://127.0.0.1:{ports[name.partition('>')[2]]}")
            for name in names
        }
        for plan in self.plans.values():
            table = {w.target: w.listen for w in self.wires.values() if w.name.partition(">")[0] == plan.id}
            self.table(plan.id).write_bytes(msgspec.json.encode(table))
        self.proxy = subprocess.Popen(
            [sys.executable, "-m", "loadtest.chaos.wires"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.say(wires.Order(lay=list(self.wires.values())))

    def _start_process(self, plan: ServicePlan) -> None:
        words = [plan.kind, "--config", str(self.paths.config(plan.id))]
        arguments = [sys.executable, "-m", "loadtest.chaos.service", str(self.table(plan.id)), *words]
        self.processes.setdefault(plan.id, ServiceProcess(plan.id, arguments, self.paths.log(plan.id))).start()

    def say(self, order: wires.Order) -> None:
        """Have the wires obey."""
        process = self.proxy
        if process is None or process.stdin is None or process.stdout is None:
            raise CommandError("the wires are not laid")
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        process.stdin.flush()
        if process.stdout.readline().strip() != b"done":
            raise CommandError("the wires have ended")

    def lengthen(self, one_way_ms: float, loss: float) -> None:
        """How far away FAR is from now on."""
        self.say(wires.Order(lengthen=list(self.wires), one_way_ms=one_way_ms, loss=loss))

    def cut(self, *, cut: bool) -> None:
        """Cut, or mend, every wire."""
        self.say(wires.Order(**{"cut" if cut else "mend": list(self.wires)}))

    def stop(self) -> None:
        super().stop()
        if self.proxy is not None:
            self.proxy.kill()
            self.proxy.wait()
            self.proxy = None


def timed_ms(act: Callable[[], Any]) -> float:
    """How long it took."""
    begun = time.monotonic()
    act()
    return (time.monotonic() - begun) * 1000


def expect(answer: tuple[int, Any], *statuses: int) -> Any:
    """The body of an answer with one of these. Raises CommandError."""
    status, body = answer
    if status not in statuses:
        raise CommandError(f"expected {statuses}, found {status}: {body}")
    return body


def measure(region: FarRegion, name: str, boots: int) -> dict[str, float]:
    """Boots over both cells, then shows, lists and deletes of servers that are far away."""
    run = Booter(region, boots, 20).run()
    client = region.client()
    rows = expect(client.request("GET", "/v2.1/servers/detail?limit=1000"), 200)["servers"]
    far = [row["id"] for row in rows if (row["OS-EXT-SRV-ATTR:host"] or "").startswith(FAR)]

    def asked_ms(method: str, path: str, status: int) -> float:
        return timed_ms(lambda: expect(client.request(method, path), status))

    shows = sorted(asked_ms("GET", f"/v2.1/servers/{uuid}", 200) for uuid in far[:30])
    lists = sorted(asked_ms("GET", "/v2.1/servers?limit=50", 200) for _ in range(20))
    deletes = sorted(asked_ms("DELETE", f"/v2.1/servers/{uuid}", 204) for uuid in far[:15])
    client.close()
    times = run.times_ms()
    return {
        f"{name}_boots_per_second": round(run.boots_per_second, 2),
        f"{name}_boots_failed": len(run.boots) - run.count("ACTIVE"),
        f"{name}_boot_p50_ms": round(percentile(times, 50), 1),
        f"{name}_boot_p99_ms": round(percentile(times, 99), 1),
        f"{name}_far_servers": len(far),
        f"{name}_show_p50_ms": round(percentile(shows, 50), 1),
        f"{name}_show_p99_ms": round(percentile(shows, 99), 1),
        f"{name}_list_p50_ms": round(percentile(lists, 50), 1),
        f"{name}_list_p99_ms": round(percentile(lists, 99), 1),
        f"{name}_delete_p50_ms": round(percentile(deletes, 50), 1),
    }


def measure_cut(region: FarRegion, boots: int) -> dict[str, float]:
    """The line is cut for CUT_S while servers are created: where they go, what a list says; and back again."""
    region.cut(cut=True)
    cut_at = time.monotonic()
    gevent.sleep(6.0)  # capacity of a cell that says nothing counts for 5 s
    run = Booter(region, boots, 10, deadline_s=60.0).run()
    client = region.client()
    list_ms = timed_list(region)
    gevent.sleep(max(0.0, CUT_S - (time.monotonic() - cut_at)))
    region.cut(cut=False)
    mended = time.monotonic()
    while time.monotonic() - mended < BACK_S_MAX:
        fresh = Booter(region, 6, 6, deadline_s=60.0).run()
        if fresh.count("ACTIVE") == 6 and any(host.startswith(FAR) for host in _new_hosts(client, fresh)):
            break
        gevent.sleep(POLL_S)
    back_s = time.monotonic() - mended
    client.close()
    return {
        "cut_boots_active": run.count("ACTIVE"),
        "cut_boots_failed": len(run.boots) - run.count("ACTIVE"),
        "cut_boot_p99_ms": round(percentile(run.times_ms(), 99), 1),
        "cut_list_ms": round(list_ms, 1),
        "mended_far_again_s": round(back_s, 2),
    }


def timed_list(region: FarRegion) -> float:
    """A list while the cell does not answer."""
    client = region.client(timeout_s=40.0)
    took = timed_ms(lambda: expect(client.request("GET", "/v2.1/servers?limit=50"), 200))
    client.close()
    return took


def _new_hosts(client: Any, run: Any) -> list[str]:
    uuids = {boot.uuid for boot in run.boots}
    rows = expect(client.request("GET", "/v2.1/servers/detail?limit=1000"), 200)["servers"]
    return [row["OS-EXT-SRV-ATTR:host"] or "" for row in rows if row["id"] in uuids]


WEATHER: dict[str, tuple[float, float]] = {"near": (0.0, 0.0), "rtt100": (50.0, 0.0), "rtt100_loss1": (50.0, 0.01)}


def main() -> int:
    """Exit code 0; figures, no targets."""
    options = parser("wan", "a cell that is far away").parse_args()
    boots = 40 if options.quick else 120
    metrics: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        shape = Shape(cells=(NEAR, FAR), computes=1, hosts_per_compute=5)
        region = FarRegion.create(Path(directory) / "s", AUTO, api_port=0, shape=shape)
        if not isinstance(region, FarRegion):
            raise TypeError("expected a FarRegion")
        try:
            region.start()
            for name, (one_way_ms, loss) in WEATHER.items():
                region.lengthen(one_way_ms, loss)
                metrics.update(measure(region, name, boots))
            region.lengthen(50.0, 0.01)
            metrics.update(measure_cut(region, 20))
        finally:
            region.stop()
    return 0 if publish("wan", metrics, options.json) else 1


if __name__ == "__main__":
    sys.exit(main())
