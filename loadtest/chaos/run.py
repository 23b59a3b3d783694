"""One run: cluster, traffic and faults, rest, validation."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from loadtest.chaos import tasks
from loadtest.chaos.check import FAILED, Violation, check
from loadtest.chaos.clients import Clients
from loadtest.chaos.cluster import Cluster
from loadtest.chaos.faults import REPLICATED_KINDS, UNPLUG, Faults
from loadtest.chaos.history import Event, read_history
from loadtest.chaos.quota import LimitedProject
from loadtest.chaos.rest import read_final, rest
from zcompute.cli.exits import CommandError
from zcompute.cli.up.layout import Shape
from zcompute.db.durability import REPLICATED

SHAPE = Shape(cells=("c1",), build_ms=30, delete_ms=20)
REPLICAS = 2
KEPT = 100
KEPT_IN_FLIGHT = 20
BOOTERS = 2
READERS = 2
PER_SECOND = 200.0  # of each of the two agents
CLIENTS_S = 70.0
SABOTAGED_S = 5.0
AUDIT_S = 90.0
WARM_UP_S, SABOTAGED_WARM_UP_S = 1.5, 0.5


@dataclass(frozen=True)
class Plan:
    """What to run. ``prefix``: the module, with its arguments, that runs every service (the tests' saboteur);
    ``sabotaged``: violations are wanted, and a cluster that does not come to rest is no reason to give up.
    ``traffic``: "" for agents whose machines change all the time, or tasks.TRAFFIC with so many ``walkers``."""

    faults: tuple[str, ...]
    seconds: float
    seed: int
    kills_max: int = 0
    per_second: float = PER_SECOND
    kept: int = KEPT
    booters: int = BOOTERS
    shape: Shape = SHAPE
    prefix: tuple[str, ...] = ()
    audited: bool = True
    kept_always: bool = False
    traffic: str = ""
    walkers: int = tasks.WALKERS
    sabotaged: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    events: list[Event]
    violations: list[Violation]
    kept_at: Path | None = field(default=None)
    metrics: dict[str, float] = field(default_factory=dict)


def run(plan: Plan, said: Callable[[str], None], act: Callable[[Cluster, Faults], None] | None = None) -> Outcome:
    """Run it. ``act`` does the faults instead of the plan's. With violations the state directory is kept.

    Raises CommandError when the cluster does not come up, or does not become whole again after a fault.
    """
    place = Path(tempfile.mkdtemp(prefix="zchaos-"))
    cluster = Cluster.make(
        place / "s", shape_of(plan), plan.per_second, wired=UNPLUG in plan.faults, prefix=plan.prefix
    )
    cluster.on_unexpected_end = said
    cluster.plain_agents = plan.traffic == tasks.TRAFFIC
    measured = (
        plan.sabotaged or cluster.plain_agents or plan.kills_max
    )  # what a fault costs is measured with the traffic that it ever had
    limited = None if measured else LimitedProject(cluster)
    whole = False
    counted: dict[str, float] = {}
    try:
        cluster.start(said)
        if cluster.plain_agents:
            violations, counted = tasks.live(cluster, plan, said, act)
            violations += audit(cluster)
        else:
            violations = _live(cluster, plan, said, act, limited)
        events = read_history(cluster.history)
        whole = plan.sabotaged or not (violations or plan.kept_always)
    finally:
        cluster.stop()
        if whole:
            shutil.rmtree(place, ignore_errors=True)
        else:
            said(f"kept: {place}")
    return Outcome(events, violations, None if whole else place, counted)


def shape_of(plan: Plan) -> Shape:
    """The plan's, with the databases that its faults need; that of tasks has many agents, to move between."""
    shape = tasks.SHAPE if plan.traffic == tasks.TRAFFIC and plan.shape is SHAPE else plan.shape
    if not set(plan.faults) & set(REPLICATED_KINDS):
        return shape
    return msgspec.structs.replace(shape, replicas=REPLICAS, durability=REPLICATED)


def _live(
    cluster: Cluster,
    plan: Plan,
    said: Callable[[str], None],
    act: Callable[[Cluster, Faults], None] | None,
    limited: LimitedProject | None,
) -> list[Violation]:
    clients = Clients(cluster, plan.seed)
    faults = Faults(cluster, list(plan.faults), plan.seed, said)
    cluster.wait_whole(CLIENTS_S)
    said(f"booting {plan.kept} servers that stay")
    clients.keep(plan.kept, KEPT_IN_FLIGHT)
    clients.start(plan.booters, READERS)
    if limited is not None:
        limited.start()
    time.sleep(SABOTAGED_WARM_UP_S if plan.sabotaged else WARM_UP_S)
    if act is None:
        faults.run(time.monotonic() + plan.seconds, plan.kills_max)
    else:
        act(cluster, faults)
    passed: list[Violation] = []
    try:
        if limited is not None:
            limited.stop(CLIENTS_S)
            said(f"quota: created={limited.created} refused={limited.refused} most at once={limited.seen_max}")
            passed = limited.check()
        clients.stop(SABOTAGED_S if plan.sabotaged else CLIENTS_S)
        rest(cluster)
    except CommandError as error:
        if not plan.sabotaged:
            raise
        said(f"not at rest: {error}")
    store = cluster.store()
    try:
        final = read_final(store)
    finally:
        store.close()
    clients.close()
    faults.close()
    found = [*check(read_history(cluster.history), final), *passed]
    return found + (audit(cluster) if plan.audited else [])


def audit(cluster: Cluster) -> Sequence[Violation]:
    """What ``zcompute audit`` finds in the region at rest."""
    command = [sys.executable, "-m", "zcompute.cli.main", "audit", "--state-dir", str(cluster.paths.state_dir)]
    done = subprocess.run(command, capture_output=True, timeout=AUDIT_S, check=False, text=True)
    return [Violation(FAILED, "audit", done.stdout + done.stderr)] if done.returncode else []
