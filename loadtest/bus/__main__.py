"""The bus against raw pyzmq, oslo.messaging over RabbitMQ, zerorpc and NATS: calls, casts, latency, CPU.

    python -m loadtest.bus --json r.json [--quick] [--peers raw,oslo,zerorpc,nats]

CURVE and every check on for us, plain for the peers; all alternate in one run. `make bench-peers` brings the peers.
Exit status 1 when a contender fails; with ``--strict`` also when a target is missed.
"""

import contextlib
import sys
import time
from pathlib import Path

from loadtest.bus import peers
from loadtest.bus.brokers import BrokerFailed
from loadtest.bus.charts import draw
from loadtest.bus.contender import Contender, ContenderFailed
from loadtest.bus.rounds import OURS, PLAIN, curve_keys, metrics, orders, run
from loadtest.report import Target, parser, publish

CONCURRENCY = (1, 4, 16, 64, 256, 1024)
CONCURRENCY_QUICK = (1, 64, 256)
ROUNDS, ROUNDS_QUICK = 5, 3
ORDER_S, ORDER_S_QUICK = 1.0, 0.4
PACED_S, PACED_S_QUICK = 3.0, 1.0

TARGETS = {
    OURS: (Target("call_cpu_us_64", at_most=25), Target("curve_cost_ratio", at_most=1.35)),
    "raw": (
        Target("calls_64_ratio_raw", at_least=0.7),
        Target("calls_1_ratio_raw", at_least=0.7),
        Target("casts_big_ratio_raw", at_least=0.4),
        Target("p99_over_raw_ms", at_most=1),
    ),
    "oslo": (
        Target("calls_64_ratio_oslo", at_least=80),
        Target("calls_1_ratio_oslo", at_least=15),
        Target("casts_big_ratio_oslo", at_least=60),
    ),
    "zerorpc": (Target("calls_64_ratio_zerorpc", at_least=12), Target("calls_1_ratio_zerorpc", at_least=5)),
    "nats": (
        Target("calls_64_ratio_nats", at_least=2.5),
        Target("calls_1_ratio_nats", at_least=2),
        Target("casts_big_ratio_nats", at_least=2),
    ),
}


def main() -> int:
    """Run the benchmark; the exit status."""
    options = parser("bus", "The bus against what its users could pick instead.")
    options.add_argument("--peers", default="raw,blocking", help=f"of {','.join(peers.KNOWN)} (default %(default)s)")
    options.add_argument("--rounds", type=int, default=0, help="alternating rounds")
    options.add_argument("--strict", action="store_true", help="exit status 1 when a target is missed")
    given = options.parse_args()
    wanted = [name for name in given.peers.split(",") if name]
    unknown = sorted(set(wanted) - set(peers.KNOWN))
    if unknown:
        options.error(f"--peers: expected some of {','.join(peers.KNOWN)}, found {','.join(unknown)}")
    if given.quick:
        work = orders(ORDER_S_QUICK, PACED_S_QUICK, CONCURRENCY_QUICK)
    else:
        work = orders(ORDER_S, PACED_S, CONCURRENCY)
    rounds = given.rounds or (ROUNDS_QUICK if given.quick else ROUNDS)
    started = time.monotonic()
    with contextlib.ExitStack() as ends:
        contenders = []
        try:
            for name, module, keys in ((OURS, "ours", curve_keys()), (PLAIN, "ours", "{}")):
                contenders.append(Contender(name, module, keys))
                ends.callback(contenders[-1].stop)
            contenders += [peers.start(name, ends) for name in wanted]
            results = run(contenders, work, rounds, print)
        except (BrokerFailed, ContenderFailed, peers.PeerMissing) as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    found = metrics(results)
    found["run_seconds"] = round(time.monotonic() - started, 1)
    targets = tuple(target for name in (OURS, *wanted) for target in TARGETS.get(name, ()))
    reached = publish("bus", found, given.json, targets)
    if given.json:
        draw(results, Path(given.json), print)
    return 0 if reached or not given.strict else 1


if __name__ == "__main__":
    sys.exit(main())
