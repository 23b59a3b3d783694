"""How many answers a second, and what each costs whom."""

from loadtest.reads.orders import Order
from loadtest.reads.scene import Measured, Scene
from loadtest.reads.world import PROJECTS, newest, uuid_of

GETS = 1_000  # servers asked for in turn
PAGE = 100
Metrics = dict[str, float]


def gets(scene: Scene, instances: int, seconds: float) -> Order:
    """Single servers by their ids."""
    numbers = range(0, instances, max(1, instances // GETS))
    return scene.order(
        [f"/v2.1/servers/{uuid_of(number)}" for number in numbers], uuids=[[uuid_of(number)] for number in numbers],
        seconds=seconds, status="ACTIVE",
    )  # fmt: skip


def lists(scene: Scene, instances: int, seconds: float, *, details: bool) -> Order:
    """The first page of each project, by its own users."""
    pages = [newest(instances, PAGE, share) for share in range(PROJECTS)]
    path = "/v2.1/servers/detail" if details else "/v2.1/servers"
    return scene.order(
        [f"{path}?limit={PAGE}"] * PROJECTS, tokens=scene.tokens, uuids=pages, rows=PAGE, seconds=seconds,
        status="ACTIVE" if details else "",
    )  # fmt: skip


def measure(scene: Scene, instances: int, seconds: float, metrics: Metrics, prefix: str = "") -> None:
    """Every kind of read once."""
    orders = {
        "get": gets(scene, instances, seconds),
        f"list_{PAGE}": lists(scene, instances, seconds, details=False),
        f"detail_{PAGE}": lists(scene, instances, seconds, details=True),
    }
    for name, order in orders.items():
        found = told(f"{prefix}{name}", scene.run(order))
        metrics[f"{prefix}{name}_per_second"] = round(found.per_second, 1)
        metrics[f"{prefix}{name}_p50_ms"] = round(found.outcome.p50_ms, 2)
        metrics[f"{prefix}{name}_p99_ms"] = round(found.outcome.p99_ms, 2)
        for kind, ms in found.cpu_ms.items():
            metrics[f"{prefix}{name}_cpu_ms_{kind}"] = round(ms, 3)


def told(name: str, found: Measured) -> Measured:
    """Print a line of it."""
    cpu = ", ".join(f"{kind} {ms:.3f}" for kind, ms in found.cpu_ms.items())
    outcome = found.outcome
    print(
        f"{name}: {found.per_second:.0f}/s, p50 {outcome.p50_ms:.1f} ms, p99 {outcome.p99_ms:.1f} ms, "
        f"{outcome.bytes_each} bytes, {outcome.read_whole} compared whole; CPU ms a request: {cpu}",
        flush=True,
    )
    return found
