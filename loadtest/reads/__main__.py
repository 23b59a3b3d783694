"""Reads of servers over HTTP.

python -m loadtest.reads --json r.json [--quick] [--only PARTS] [--strict]
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402

from loadtest.reads.plan import FULL, PARTS, QUICK, TARGETS, run  # noqa: E402
from loadtest.report import parser, publish  # noqa: E402


def main() -> int:
    """Run the benchmark; the exit status."""
    options = parser("reads", "Reads of servers over HTTP: rates, costs, cells, lag, and beside writes.")
    options.add_argument("--strict", action="store_true", help="exit status 1 when a target is missed")
    options.add_argument("--only", default="", help=f"only these parts, by commas: {', '.join(PARTS)}")
    options.add_argument("--keep", default="", metavar="DIR", help="work in this directory, and leave its logs")
    options.add_argument(
        "--rate", type=float, default=0.0, help="updates a second in the part ledger; 0: 40 %% of the best rate found"
    )
    options.add_argument("--rounds", type=int, default=0, help="pairs of rounds in the part ledger; 0: the plan's")
    given = options.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zcompute-bench-") as directory:
        place = Path(given.keep or directory)
        plan = QUICK if given.quick else FULL
        plan = replace(plan, ledger=replace(plan.ledger, rate=given.rate, rounds=given.rounds or plan.ledger.rounds))
        metrics = run(plan, place, [name for name in given.only.split(",") if name])
    metrics["run_seconds"] = round(time.monotonic() - began, 1)
    wanted = tuple(target for target in TARGETS if target.metric in metrics)
    reached = publish("reads", metrics, given.json, wanted)
    return 0 if reached or not given.strict else 1


if __name__ == "__main__":
    sys.exit(main())
