"""Chaos of conductor loss, in the manner of etcd's robustness tests.

    python -m loadtest.chaos --faults kill,stop,restart,unplug,agent,database,promote --minutes M --seed S --json FILE
    python -m loadtest.chaos --traffic tasks --faults kill,stop,restart,agent,database,host --minutes M

A whole region with two conductors a cell; agents whose machines change all the time, boots, deletes and reads through
the API; faults one at a time; then the history that the clients wrote is checked against a model (check.py).
Exit status 1 when there is a violation; ``--strict`` also when a target is missed.
"""

from gevent import monkey

monkey.patch_all()

import random  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from loadtest.chaos import chart  # noqa: E402
from loadtest.chaos.faults import KINDS, REPLICATED_KINDS, TASK_KINDS  # noqa: E402
from loadtest.chaos.measure import metrics  # noqa: E402
from loadtest.chaos.run import PER_SECOND, Plan, run  # noqa: E402
from loadtest.chaos.tasks import TRAFFIC  # noqa: E402
from loadtest.report import Target, parser, publish  # noqa: E402

MINUTES, MINUTES_QUICK, MINUTES_OF_KILLS = 2.0, 0.3, 10.0
SHOWN_MAX = 20
ALL_KINDS = (*KINDS, *TASK_KINDS, *REPLICATED_KINDS)
REPORTS = "reports"
TARGETS = (
    Target("violations", at_most=0),
    Target("stall_p50_s_kill", at_most=0.3),
    Target("stall_p99_s_kill", at_most=1.0),
    Target("stall_p99_s_stop", at_most=2.0),
    Target("stall_p99_s_unplug", at_most=3.0),
    Target("stall_p99_s_restart", at_most=0.2),
)


def main() -> int:
    """Run it; the exit status."""
    options = parser("chaos", "Chaos of conductor loss.")
    options.add_argument(
        "--faults", default="kill,stop,restart", help=f"of {','.join(ALL_KINDS)} (default %(default)s)"
    )
    options.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help=f"of faults, at most (default {MINUTES:g}; {MINUTES_OF_KILLS:g} with --kills)",
    )
    options.add_argument("--kills", type=int, default=0, help="end after so many SIGKILLs of conductors")
    options.add_argument("--seed", type=int, default=0, help="of the order and pauses of the faults")
    options.add_argument("--per-second", type=float, default=PER_SECOND, help="changes of each agent (%(default)s)")
    options.add_argument("--strict", action="store_true", help="exit status 1 when a target is missed")
    options.add_argument("--keep", action="store_true", help="keep logs and histories without a violation too")
    options.add_argument(
        "--traffic",
        default=REPORTS,
        choices=(REPORTS, TRAFFIC),
        help="machines that change all the time, or servers led through actions and moves (default %(default)s)",
    )
    given = options.parse_args()
    kinds = tuple(kind for kind in given.faults.split(",") if kind)
    if not kinds or not set(kinds) <= set(ALL_KINDS):
        options.error(f"--faults: expected some of {','.join(ALL_KINDS)}, found {given.faults}")
    if set(kinds) & set(TASK_KINDS) and given.traffic != TRAFFIC:
        options.error(f"--faults {','.join(TASK_KINDS)}: only with --traffic {TRAFFIC}")
    seed = given.seed or random.SystemRandom().randrange(1, 2**31)
    minutes = given.minutes or (MINUTES_OF_KILLS if given.kills else MINUTES_QUICK if given.quick else MINUTES)
    print(f"seed {seed}")
    traffic = TRAFFIC if given.traffic == TRAFFIC else ""
    plan = Plan(
        kinds, minutes * 60, seed, kills_max=given.kills, per_second=given.per_second, kept_always=given.keep,
        traffic=traffic,
    )  # fmt: skip
    outcome = run(plan, lambda text: print(text, flush=True))
    measured = outcome.metrics if traffic else metrics(outcome.events)
    found = {"violations": float(len(outcome.violations)), **measured, "seed": float(seed)}
    for violation in outcome.violations[:SHOWN_MAX]:
        print(f"violation: {violation.kind} {violation.subject}: {violation.detail}")
    reached = publish("chaos", found, given.json, tuple(one for one in TARGETS if one.metric in found))
    if given.json and not traffic:
        chart.draw(outcome.events, Path(given.json).with_suffix(".png"), print)
    return 1 if outcome.violations or (given.strict and not reached) else 0


if __name__ == "__main__":
    sys.exit(main())
