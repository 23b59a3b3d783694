"""Mixed tasks on the fake driver while conductors are killed: what is stuck, doubled, leaked; how fast tasks resume.

    python -m loadtest.tasks --json FILE [--quick] [--kills N] [--seed S]

A cell of three conductors on MariaDB, two agents with ten hosts, 10 ms a step; each of many servers is asked for one
thing after the other that its state allows, moves as often as all else, so that over a hundred tasks are under way.
Before that, without kills: what a move costs of CPU, all processes together. Exit status 1 when anything was stuck, on
two hosts, leaked or odd, members of a server group where its policy does not allow them, or images not made.
"""

from gevent import monkey

monkey.patch_all()

import random  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402

from loadtest.report import Target, parser, publish  # noqa: E402
from loadtest.tasks.hosts import on_two_hosts, read_lines  # noqa: E402
from loadtest.tasks.looking import Looking  # noqa: E402
from loadtest.tasks.making import images_wrong  # noqa: E402
from loadtest.tasks.members import Members  # noqa: E402
from loadtest.tasks.walking import IMAGE_NAME, MAKE_IMAGE, MOVES, Walkers  # noqa: E402
from zcompute.cli.up.boots import Booter  # noqa: E402
from zcompute.cli.up.databases import MARIADB  # noqa: E402
from zcompute.cli.up.layout import CONDUCTOR, Shape  # noqa: E402
from zcompute.cli.up.region import Region  # noqa: E402

CELL = "c1"
SHAPE = Shape(cells=(CELL,), conductors=3, computes=2, hosts_per_compute=5, step_ms=10, host_vcpus=200)
REST_S = 60.0
AUDIT_S = 90.0
NOVA_BOOT_CPU_MS = 760.0
SHOWN_MAX = 20
TARGETS = (
    Target("stuck", at_most=0),
    Target("on_two_hosts", at_most=0),
    Target("claims_leaked", at_most=0),
    Target("odd", at_most=0),
    Target("groups_broken", at_most=0),
    Target("images_wrong", at_most=0),
    Target("under_way_p50", at_least=100),
    Target("resume_p99_s", at_most=2.0),
    Target("cpu_ms_move", at_most=NOVA_BOOT_CPU_MS / 3),
)


Metrics = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """How much: servers, server groups besides, seconds without kills, kills and the pause after each."""

    servers: int = 250
    groups: int = 12  # of each policy
    calm_s: float = 15.0
    kills: int = 30
    pause_s: tuple[float, float] = (0.8, 2.0)


FULL = Plan()
QUICK = Plan(servers=60, groups=3, calm_s=4.0, kills=3)


def measure(directory: Path, plan: Plan, seed: int) -> tuple[Metrics, list[str]]:
    """The metrics, and what was odd."""
    region = Region.create(directory / "s", MARIADB, api_port=0, shape=SHAPE)
    try:
        region.start()
        servers = [boot.uuid for boot in Booter(region, plan.servers, 20).run().boots if boot.status == "ACTIVE"]
        members = Members(region, plan.groups)
        servers += members.servers
        looking = Looking(region.database_url(CELL))
        members.watch(looking)
        walkers = Walkers(region, looking, seed)
        metrics: Metrics = {"servers": len(servers), "members": len(members.servers), "seed": seed}
        try:
            _run(region, looking, walkers, servers, plan, seed, metrics)
        finally:
            looking.stop()
        lines = on_two_hosts(read_lines(region.paths.hosts))
        metrics["on_two_hosts"] = len(lines)
        audit = _audit(region)
        metrics["claims_leaked"] = sum("claim" in line for line in audit)
        metrics["audit_findings"] = len(audit)
        metrics["groups_broken"] = len(members.broken)
        metrics["images_made"], wrong = images_wrong(region.client(), IMAGE_NAME, walkers.asked[MAKE_IMAGE], REST_S)
        metrics["images_wrong"] = len(wrong)
        return metrics, [*lines, *audit, *members.broken, *wrong, *walkers.odd]
    finally:
        region.stop()


def _run(
    region: Region,
    looking: Looking,
    walkers: Walkers,
    servers: list[str],
    plan: Plan,
    seed: int,
    metrics: dict[str, float],
) -> None:
    walkers.start(servers)
    before = sum(region.cpu_ms().values()) - region.cpu_ms()["client"]
    gevent.sleep(plan.calm_s)
    spent = sum(region.cpu_ms().values()) - region.cpu_ms()["client"] - before
    done = sum(walkers.ended.values())
    metrics["tasks_per_second"] = round(done / plan.calm_s, 1)
    metrics["cpu_ms_task"] = round(spent / max(1, done), 1)
    moves = sum(count for name, count in walkers.ended.items() if name in MOVES)
    metrics["cpu_ms_move"] = round(spent / max(1, moves), 1)  # as if all else had cost nothing
    looking.gathering = True
    metrics["kills"] = _kill(region, plan, seed)
    walkers.stop(REST_S)
    ends_at_s = time.monotonic() + REST_S
    while looking.found.tasks and time.monotonic() < ends_at_s:
        gevent.sleep(0.1)
    found = looking.found
    metrics["stuck"] = len(found.tasks) + sum(row.task_state is not None for row in found.servers.values())
    metrics["asked"], metrics["ended"] = sum(walkers.asked.values()), sum(walkers.ended.values())
    for name, count in sorted(walkers.ended.items()):
        metrics[f"ended_{name}"] = count
    metrics["refused"] = sum(walkers.refused.values())
    metrics["odd"] = len(walkers.odd)
    under_way = sorted(found.under_way) or [0]
    metrics["under_way_p50"] = under_way[len(under_way) // 2]
    metrics["steps_seen"] = len(found.steps)
    resumes = sorted(found.resumes_s)
    metrics["resumed"], metrics["never_resumed"] = len(resumes), looking.waiting()
    for share, name in ((0.5, "resume_p50_s"), (0.99, "resume_p99_s")):
        metrics[name] = round(resumes[min(len(resumes) - 1, int(len(resumes) * share))], 3) if resumes else 0.0


def _kill(region: Region, plan: Plan, seed: int) -> int:
    """SIGKILL of one conductor of the cell after the other; each is back when the next goes."""
    chance = random.Random(seed)
    conductors = [each.id for each in region.plans.values() if each.kind == CONDUCTOR and each.cell == CELL]
    for _ in range(plan.kills):
        victim = chance.choice(conductors)
        region.kill(victim)
        gevent.sleep(chance.uniform(*plan.pause_s))
        region.restart(victim)
        gevent.sleep(chance.uniform(*plan.pause_s))
    return plan.kills


def _audit(region: Region) -> list[str]:
    command = [sys.executable, "-m", "zcompute.cli.main", "audit", "--state-dir", str(region.paths.state_dir)]
    done = subprocess.run(command, capture_output=True, timeout=AUDIT_S, check=False, text=True)
    return (done.stdout + done.stderr).splitlines() if done.returncode else []


def main() -> int:
    """Run it; the exit status."""
    options = parser("tasks", "Tasks under way while their conductors are killed.")
    options.add_argument("--kills", type=int, default=0, help="of conductors (default: the plan's)")
    options.add_argument("--seed", type=int, default=0, help="of what is asked for and who is killed")
    given = options.parse_args()
    plan = QUICK if given.quick else FULL
    if given.kills:
        plan = replace(plan, kills=given.kills)
    seed = given.seed or random.SystemRandom().randrange(1, 2**31)
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="zcompute-bench-") as directory:
        metrics, odd = measure(Path(directory), plan, seed)
    for line in odd[:SHOWN_MAX]:
        print(line)
    targets = [target for target in TARGETS if not (given.quick and target.metric == "under_way_p50")]
    publish("tasks", metrics, given.json, tuple(targets))
    wrong = ("stuck", "on_two_hosts", "audit_findings", "groups_broken", "images_wrong", "odd")
    return 1 if any(metrics[name] for name in wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
