"""`python -m tests.fuzz.bus --mutations N --seed S`: the decoder, dialogs of cores, a dialler, a listener, in turn."""

import argparse
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict

from tests.fuzz.bus import decoder, dialled, dialogs, live

RSS_GROWTH_MB_MAX = 50.0
P99_RATIO_MAX = 2.0


def own_rss_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def timed(name: str, run: Callable[[int, int], Counter[str]], mutations: int, seed: int) -> dict[str, object]:
    """One of the targets without I/O."""
    before, started = own_rss_mb(), time.monotonic()
    outcomes = run(mutations, seed)
    seconds = time.monotonic() - started
    print(f"{name}: {mutations} mutations in {seconds:.1f} s, {dict(outcomes.most_common())}", flush=True)
    return {"seconds": seconds, "rss_growth_mb": own_rss_mb() - before, "outcomes": dict(outcomes)}


def main() -> int:
    """0 when nothing was found and the bounds hold, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.bus", description=__doc__)
    parser.add_argument("--mutations", type=int, default=100_000, help="of each target")
    parser.add_argument("--seed", type=int, default=1, help="repeats a run; targets without I/O repeat exactly")
    parser.add_argument("--targets", default="decoder,dialogs,dialled,live")
    parser.add_argument("--frames-per-second", type=int, default=0, help="of the live target; 0: as many as it takes")
    parser.add_argument("--barring", action="store_true", help="the live target bars keys that flood, as services do")
    parser.add_argument("--json", metavar="FILE")
    chosen = parser.parse_args()
    results: dict[str, object] = {}
    good = True
    try:
        for name, run in (("decoder", decoder.run), ("dialogs", dialogs.run), ("dialled", dialled.run)):
            if name in chosen.targets.split(","):
                results[name] = timed(name, run, chosen.mutations, chosen.seed)
        if "live" in chosen.targets.split(","):
            outcome = live.run(chosen.mutations, chosen.seed, chosen.frames_per_second, barring=chosen.barring)
            results["live"] = asdict(outcome)
            print(f"live: {json.dumps(asdict(outcome), indent=1)}")
            good = outcome.rss_growth_mb <= RSS_GROWTH_MB_MAX and outcome.calls_failed == 0
            if outcome.p99_ratio > P99_RATIO_MAX:
                print(f"the neighbour's p99 is {outcome.p99_ratio:.2f} times its own, expected {P99_RATIO_MAX} at most")
                good = False
    except decoder.FindingError as found:
        print(f"found: {found}")
        good = False
    if chosen.json:
        with open(chosen.json, "w", encoding="utf-8") as file:
            json.dump({"seed": chosen.seed, "mutations": chosen.mutations, **results}, file, indent=1)
    return 0 if good else 1


sys.exit(main())
