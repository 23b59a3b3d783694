"""The ledger under load: agents on the real bus, real conductors, MariaDB with every commit flushed and logged.

    python -m loadtest.ledger --json r.json [--quick] [--strict]

A counted update is one changed instance row with its own durable acknowledgement; every fifth is a state transition
with its history row and notification. Contenders run behind the same bus with the same mix and verdicts. At the end
everything is read back; exit status 1 when anything is lost or repeated, with ``--strict`` also for a missed target.
"""

from gevent import monkey

monkey.patch_all()

import resource  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from loadtest.ledger.plan import FULL, QUICK, TARGETS, TARGETS_FULL, TINY, Plan, run  # noqa: E402
from loadtest.report import parser, publish  # noqa: E402


def main() -> int:
    """Run the benchmark; the exit status."""
    options = parser("ledger", "Durable updates a second through conductors, and what else could be had.")
    options.add_argument("--strict", action="store_true", help="exit status 1 when a target is missed")
    options.add_argument("--tiny", action="store_true", help="a few seconds: whether it works at all")
    options.add_argument("--only", default="", help="only these parts, by commas (see loadtest/ledger/plan.py)")
    options.add_argument("--keep", default="", metavar="DIR", help="work in this directory, and leave its logs")
    given = options.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    plan: Plan = TINY if given.tiny else QUICK if given.quick else FULL
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zcompute-bench-") as directory:
        place = Path(given.keep or directory)
        place.mkdir(parents=True, exist_ok=True)
        metrics = run(plan, place, frozenset(name for name in given.only.split(",") if name))
    metrics["run_seconds"] = round(time.monotonic() - began, 1)
    wanted = TARGETS if plan is not FULL else (*TARGETS, *TARGETS_FULL)
    reached = publish("ledger", metrics, given.json, tuple(one for one in wanted if one.metric in metrics))
    if metrics["lost"] or metrics["repeated"]:
        print("updates were lost or repeated", file=sys.stderr)
        return 1
    return 0 if reached or not given.strict else 1


if __name__ == "__main__":
    sys.exit(main())
