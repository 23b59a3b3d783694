"""One list over many cells: beside the same rows in one, with every cell late, and with one that does not answer."""

import http.client
import signal
import time
from pathlib import Path

from loadtest.reads.orders import Order
from loadtest.reads.rates import Metrics, told
from loadtest.reads.scene import LateRegion, Scene, scene
from loadtest.reads.world import PROJECTS, uuid_of
from zcompute.api.servers import MISSING_HEADER
from zcompute.api.settings import LIMITS
from zcompute.cli.up.layout import Shape

PAGE = 1_000
CELLS = 10


def measure(directory: Path, instances: int, seconds: float, metrics: Metrics) -> None:
    """All of it, many cells first."""
    for count in (CELLS, 1):
        names = tuple(f"c{number:02d}" for number in range(1, count + 1))
        shape = Shape(cells=names, conductors=1, schedulers=0, computes=0)
        with scene(directory / f"{count}-cells", shape, LateRegion) as found:
            # Every cell has servers of every project.
            shares = {
                name: [n for n in range(instances) if n // PROJECTS % count == at] for at, name in enumerate(names)
            }
            found.seed(shares)
            page = _page(found, instances, seconds)
            plain = told(f"page of {PAGE} of {instances}, {count} cells", found.run(page))
            # What each cell's services spend without any request is no part of a page's cost, and is told beside it.
            idle = found.idle_ms(seconds)
            metrics[f"cells_{count}_idle_cpu_ms_a_second"] = round(idle, 1)
            metrics[f"cells_{count}_page_cpu_ms"] = round(plain.served_ms - idle / plain.per_second, 2)
            metrics[f"cells_{count}_page_ms"] = round(plain.outcome.p50_ms, 1)
            _toggle(found)
            late = told(f"the same, each {LateRegion.late_ms} ms late", found.run(page))
            metrics[f"cells_{count}_late_page_ms"] = round(late.outcome.p50_ms, 1)
            _toggle(found)
            if count > 1:
                metrics["silent_cell_over_deadline_ms"] = round(_silent(found, names[-1]), 1)
    metrics["cells_late_ratio"] = round(metrics[f"cells_{CELLS}_late_page_ms"] / metrics["cells_1_late_page_ms"], 2)
    metrics["cells_cpu_ratio"] = round(metrics[f"cells_{CELLS}_page_cpu_ms"] / metrics["cells_1_page_cpu_ms"], 2)


def _page(found: Scene, instances: int, seconds: float) -> Order:
    newest = [uuid_of(number) for number in range(instances - 1, instances - 1 - PAGE, -1)]
    target = f"/v2.1/servers?all_tenants=1&limit={PAGE}"
    return found.order([target], uuids=[newest], rows=PAGE, seconds=seconds, connections=1)


def _toggle(found: Scene) -> None:
    for cell in found.region.file.shape.cells:
        for service_id in found.region.conductors(cell):
            found.region.kill(service_id, signal.SIGUSR1)


def _silent(found: Scene, cell: str) -> float:
    """How much later than at its deadline a list comes while a cell is stopped, ms. Raises SystemExit when the answer
    does not name the cell."""
    (service_id,) = found.region.conductors(cell)
    found.region.kill(service_id, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", found.region.file.api_port, timeout=60)
        connection.request("GET", "/v2.1/servers?all_tenants=1&limit=100", headers={"X-Auth-Token": found.region.token})
        answer = connection.getresponse()
        body = answer.read()
        took_ms = (time.monotonic() - began_s) * 1000
    finally:
        found.region.kill(service_id, signal.SIGCONT)
    missing = answer.getheader(MISSING_HEADER)
    if answer.status != 200 or missing != cell or b'"servers":[{' not in body:
        raise SystemExit(f"expected servers and {cell} to be missing, found {answer.status}, {missing}, {body[:200]!r}")
    print(f"{cell} stopped: answered after {took_ms:.0f} ms, missing {missing}", flush=True)
    return took_ms - LIMITS.list_ms_max
