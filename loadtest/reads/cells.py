"""One list over many cells: beside the same rows in one, with every cell late, and with one that does not answer."""

import http.client
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.reads.orders import Order
from loadtest.reads.page_cost import IN_FLIGHT, PageCost, page_costs, ratio
from loadtest.reads.rates import Metrics, told
from loadtest.reads.scene import LateRegion, Scene, scene
from loadtest.reads.world import PROJECTS, uuid_of
from zcompute.api.servers import MISSING_HEADER
from zcompute.api.settings import LIMITS
from zcompute.cli.up.layout import Shape

PAGE = 1_000
CELLS = 10
ROUNDS = 3
LIST, DETAIL = "list", "detail"


def measure(directory: Path, instances: int, seconds: float, metrics: Metrics) -> None:
    """All of it, with many cells and with one in turn: both regions are there all the time."""
    with _region(directory, CELLS, instances) as many, _region(directory, 1, instances) as one:
        for count, found in ((CELLS, many), (1, one)):
            page = _page(found, instances, seconds)
            alone = told(f"page of {PAGE} of {instances}, {count} cells", found.run(page))
            metrics[f"cells_{count}_page_ms"] = round(alone.outcome.p50_ms, 1)
            _toggle(found)
            late = told(f"the same, each cell {LateRegion.late_ms} ms late", found.run(page))
            metrics[f"cells_{count}_late_page_ms"] = round(late.outcome.p50_ms, 1)
            _toggle(found)
        metrics["cells_late_ratio"] = round(metrics[f"cells_{CELLS}_late_page_ms"] / metrics["cells_1_late_page_ms"], 2)
        for kind in (LIST, DETAIL):
            orders = [(found, _page(found, instances, seconds, kind, IN_FLIGHT)) for found in (many, one)]
            costs = page_costs(orders, ROUNDS, seconds / 2)
            for count, cost in zip((CELLS, 1), costs, strict=True):
                _tell(kind, count, cost, metrics)
            metrics[f"cells_{kind}_cpu_ratio"] = round(ratio(*costs), 2)
        metrics["silent_cell_over_deadline_ms"] = round(_silent(many, _names(CELLS)[-1]), 1)


@contextmanager
def _region(directory: Path, count: int, instances: int) -> Iterator[Scene]:
    """A region of so many cells, each with servers of every project."""
    shape = Shape(cells=_names(count), conductors=1, schedulers=0, computes=0)
    with scene(directory / f"{count}-cells", shape, LateRegion) as found:
        found.seed(
            {
                name: [n for n in range(instances) if n // PROJECTS % count == at]
                for at, name in enumerate(_names(count))
            }
        )
        yield found


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"c{number:02d}" for number in range(1, count + 1))


def _tell(kind: str, count: int, cost: PageCost, metrics: Metrics) -> None:
    """What a page costs, by kind of process."""
    print(f"{kind} of {PAGE}, {count} cells, {IN_FLIGHT} in flight: {cost}", flush=True)
    metrics[f"cells_{count}_idle_cpu_ms_a_second"] = round(cost.idle_ms, 1)
    metrics[f"cells_{count}_{kind}_cpu_ms"] = round(sum(cost.median.values()), 2)
    for process, ms in cost.median.items():
        metrics[f"cells_{count}_{kind}_cpu_ms_{process}"] = round(ms, 2)


def _page(found: Scene, instances: int, seconds: float, kind: str = LIST, connections: int = 1) -> Order:
    newest = [uuid_of(number) for number in range(instances - 1, instances - 1 - PAGE, -1)]
    path, status = ("/v2.1/servers/detail", "ACTIVE") if kind == DETAIL else ("/v2.1/servers", "")
    return found.order(
        [f"{path}?all_tenants=1&limit={PAGE}"], uuids=[newest], rows=PAGE, seconds=seconds, connections=connections,
        status=status,
    )  # fmt: skip


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
