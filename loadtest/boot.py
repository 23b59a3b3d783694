"""Boot throughput: a whole region on a private MariaDB, 20 boots in flight, from POST to ACTIVE.

    python -m loadtest.boot --json r.json [--quick]

What is measured is ``zcompute up``'s own boots: every server must end ACTIVE, and the audit must hold afterwards.
Exit status 1 when one of these fails; ``--strict`` also when a target is missed.
"""

from gevent import monkey

monkey.patch_all()

import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402

from loadtest.report import Target, parser, publish  # noqa: E402
from zcompute.cli.up.boots import Booter, BootRun  # noqa: E402
from zcompute.cli.up.databases import MARIADB, SQLITE  # noqa: E402
from zcompute.cli.up.region import Region  # noqa: E402
from zcompute.cli.up.report import boot_metrics  # noqa: E402

IN_FLIGHT = 20
WARM_UP_BOOTS = 100
WARM_UP_BOOTS_QUICK = 60
BOOTS = 900
BOOTS_QUICK = 300
AUDIT_DEADLINE_S = 60
TARGETS = (Target("boots_per_second", at_least=30), Target("cpu_ms_per_boot", at_most=60))


def require_all_active(run: BootRun) -> None:
    """A benchmark of boots that failed would measure something else."""
    failed = [boot for boot in run.boots if boot.status != "ACTIVE"]
    if failed:
        first = failed[0]
        raise SystemExit(f"{len(failed)} of {len(run.boots)} boots failed; {first.name}: {first.status} {first.fault}")


def require_audit(region: Region) -> None:
    """Run the audit command on the living region."""
    command = [sys.executable, "-m", "zcompute.cli.main", "audit", "--state-dir", str(region.paths.state_dir)]
    done = subprocess.run(command, capture_output=True, timeout=AUDIT_DEADLINE_S, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the audit does not hold:\n{done.stdout.decode()}{done.stderr.decode()}")


def measure(region: Region, warm_up: int, count: int, in_flight: int) -> dict[str, float]:
    """Boot the warm-up, then the measured servers; their metrics."""
    require_all_active(Booter(region, warm_up, in_flight).run())
    before = region.cpu_ms()
    run = Booter(region, count, in_flight).run()
    after = region.cpu_ms()
    require_all_active(run)
    return boot_metrics(run, before, after)


def main() -> int:
    """Run the benchmark; the exit status."""
    options = parser("boot", "Boot throughput of a whole region.")
    options.add_argument("--in-flight", type=int, default=IN_FLIGHT, help=f"boots in flight (default {IN_FLIGHT})")
    options.add_argument("--boots", type=int, default=0, help="measured boots")
    options.add_argument("--database", default=MARIADB, choices=[MARIADB, SQLITE])
    options.add_argument("--strict", action="store_true", help="exit status 1 when a target is missed")
    given = options.parse_args()
    count = given.boots or (BOOTS_QUICK if given.quick else BOOTS)
    with tempfile.TemporaryDirectory(prefix="zcompute-bench-") as directory:
        region = Region.create(f"{directory}/region", given.database, api_port=0)
        region.on_unexpected_end = print
        try:
            region.start(print)
            warm_up = WARM_UP_BOOTS_QUICK if given.quick else WARM_UP_BOOTS
            metrics = measure(region, warm_up, count, given.in_flight)
            require_audit(region)
        finally:
            region.stop()
    reached = publish("boot", metrics, given.json, TARGETS)
    return 0 if reached or not given.strict else 1


if __name__ == "__main__":
    sys.exit(main())
