"""What memory an agent with many instances on one host takes.

    python -m loadtest.agent_memory --json FILE [--quick]

An embedded region on MariaDB with one agent that serves one fake host; servers are booted over HTTP, then each is
stopped and started again, so that the agent has its whole state of them: records, grants, reports. RSS as the kernel
counts it, of the agent's process alone.
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import uuid  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
import psutil  # noqa: E402
from gevent.pool import Pool  # noqa: E402

from loadtest.report import Target, parser, publish  # noqa: E402
from zcompute.cli.exits import CommandError  # noqa: E402
from zcompute.cli.up.boots import Booter  # noqa: E402
from zcompute.cli.up.databases import MARIADB  # noqa: E402
from zcompute.cli.up.layout import COMPUTE, Shape  # noqa: E402
from zcompute.cli.up.region import Region  # noqa: E402

INSTANCES, INSTANCES_QUICK = 2_000, 200
SHAPE = Shape(
    cells=("c1",), conductors=1, computes=1, hosts_per_compute=1, host_vcpus=5_000, host_memory_mb=4_000_000,
    host_disk_gb=10_000,
)  # fmt: skip
IN_FLIGHT = 20
ANSWER_S = 60.0
POLL_S = 0.1
TARGETS = (Target("instances_rss_mb", at_most=150),)


def measure(directory: Path, instances: int) -> dict[str, float]:
    """The metrics. Raises CommandError when a server does not come up, or does not do what it is told."""
    region = Region.create(directory / "s", MARIADB, api_port=0, shape=SHAPE)
    try:
        region.start()
        agent = next(plan.id for plan in region.plans.values() if plan.kind == COMPUTE)
        process = psutil.Process(region.processes[agent].pid)
        metrics = {"instances": float(instances), "idle_rss_mb": _rss_mb(process)}
        boots = Booter(region, instances, IN_FLIGHT).run().boots
        failed = [boot for boot in boots if boot.status != "ACTIVE"]
        if failed:
            raise CommandError(f"{len(failed)} of {instances} boots failed, the first: {failed[0]}")
        metrics["booted_rss_mb"] = _rss_mb(process)
        servers = [boot.uuid for boot in boots]
        for action, status in (("os-stop", "SHUTOFF"), ("os-start", "ACTIVE")):
            _tell_all(region, servers, action)
            _wait_all(region, instances, status)
        metrics["instances_rss_mb"] = _rss_mb(process)
        return metrics
    finally:
        region.stop()


def _tell_all(region: Region, servers: list[str], action: str) -> None:
    clients = [region.client() for _ in range(IN_FLIGHT)]

    def tell(server: str) -> None:
        client = clients.pop()
        key = {"Idempotency-Key": str(uuid.uuid4())}
        path = f"/v2.1/servers/{server}/action"
        status, answer = client.repeated(
            "POST", path, {action: None}, deadline=time.monotonic() + ANSWER_S, headers=key
        )
        clients.append(client)
        if status != 202:
            raise CommandError(f"{action} of {server}: status {status}: {answer}")

    Pool(IN_FLIGHT).map(tell, servers)
    for client in clients:
        client.close()


def _wait_all(region: Region, instances: int, status: str) -> None:
    client = region.client()
    ends_at_s = time.monotonic() + ANSWER_S
    while True:
        found = client.get(f"/v2.1/servers?status={status}&limit=1&with_count=1")["count"]
        if found == instances:
            client.close()
            return
        if time.monotonic() > ends_at_s:
            raise CommandError(f"expected {instances} servers in {status}, found {found}")
        gevent.sleep(POLL_S)


def _rss_mb(process: psutil.Process) -> float:
    return float(round(process.memory_info().rss / 2**20, 1))


def main() -> int:
    """Run it; the exit status."""
    given = parser("agent_memory", "What memory an agent with many instances takes.").parse_args()
    with tempfile.TemporaryDirectory(prefix="zcompute-bench-") as directory:
        metrics = measure(Path(directory), INSTANCES_QUICK if given.quick else INSTANCES)
    reached = publish("agent_memory", metrics, given.json, TARGETS)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
