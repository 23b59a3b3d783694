"""Fan-in: thousands of CURVE agents on one conductor, one acknowledged report a second each.

    python -m loadtest.fanin --json r.json [--quick] [--agents 1000,5000,10000]

Measured at the conductor's process, its I/O thread included: share of a core, memory an agent; and the p99 of the
durable ack as the agents see it. No database: the conductor acknowledges at once. Exit status 1 when reports or links
are lost (by the conductor's own count); with ``--strict`` also when a target is missed.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import psutil
import zmq

from loadtest.bus.contender import Process, cpu_s
from loadtest.report import Target, parser, publish
from zcompute.bus import Limits

AGENTS, AGENTS_QUICK = "1000,5000", "1000"
AGENTS_PER_PROCESS = 2_500
DESCRIPTORS_SPARE = 512
WARM_UP_S, SECONDS, SECONDS_QUICK = 3.0, 15.0, 8.0
UP_DEADLINE_S = 150.0
TARGETS = {
    5_000: (
        Target("conductor_cpu_percent_5000", at_most=25),
        Target("kb_per_agent_5000", at_most=60),
        Target("ack_p99_ms_5000", at_most=50),
    ),
    10_000: (Target("conductor_cpu_percent_10000", at_most=50), Target("kb_per_agent_10000", at_most=60)),
}


def pair() -> list[str]:
    """A CURVE key pair."""
    return [key.decode() for key in zmq.curve_keypair()]


def measure(agents: int, seconds: float, directory: Path) -> dict[str, float]:
    """One size. Raises SystemExit when no report was acknowledged."""
    keys = {"conductor": pair(), "agents": [pair() for _ in range(agents)]}
    file = directory / f"keys-{agents}.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(keys), encoding="utf-8")
    processes: list[Process] = []
    try:
        conductor = Process([sys.executable, "-m", "loadtest.fanin_conductor", str(file)])
        processes.append(conductor)
        address = conductor.read(UP_DEADLINE_S)
        idle = psutil.Process(conductor.pid).memory_info().rss
        began = time.monotonic()
        groups = [start_agents(keys, first, address, seconds) for first in range(0, agents, AGENTS_PER_PROCESS)]
        processes += groups
        for group in groups:
            group.read(UP_DEADLINE_S)
        up_s = time.monotonic() - began
        before = counters_of(conductor)
        for group in groups:
            group.ask("go")
        time.sleep(WARM_UP_S)
        io, cpu, clock = io_thread_cpu_s(conductor.pid), cpu_s(conductor.pid), time.monotonic()
        time.sleep(seconds - 1)
        lasted = time.monotonic() - clock
        share = (cpu_s(conductor.pid) - cpu) / lasted
        io_share = (io_thread_cpu_s(conductor.pid) - io) / lasted
        grown = psutil.Process(conductor.pid).memory_info().rss - idle
        outcomes = [json.loads(group.read(seconds + UP_DEADLINE_S)) for group in groups]
        counters = counters_of(conductor)
    finally:
        for process in reversed(processes):
            process.stop()
    taken = sorted(value for outcome in outcomes for value in outcome["taken_ms"])
    silences = sorted(silence for outcome in outcomes for silence in outcome["silences_ms"])
    unacked = sum(outcome["unacked"] for outcome in outcomes)
    if not taken:
        raise SystemExit(f"{agents} agents: {unacked} reports were never acknowledged, none was")
    return {
        f"conductor_cpu_percent_{agents}": round(share * 100, 1),
        f"of_that_io_thread_{agents}": round(io_share * 100, 1),
        f"kb_per_agent_{agents}": round(grown / agents / 1024, 1),
        f"ack_p50_ms_{agents}": round(taken[len(taken) // 2], 2),
        f"ack_p99_ms_{agents}": round(taken[len(taken) * 99 // 100], 2),
        f"all_up_s_{agents}": round(up_s, 1),
        f"reports_acked_{agents}": len(taken),
        f"reports_unacked_{agents}": unacked,
        f"links_lost_{agents}": counters.get("links_down", 0) - before.get("links_down", 0),
        f"peers_silent_{agents}": counters.get("peers_silent", 0) - before.get("peers_silent", 0),
        f"conductor_late_ms_max_{agents}": counters["late_ms_max"],
        f"agents_late_ms_max_{agents}": round(max(outcome["late_ms_max"] for outcome in outcomes)),
        f"links_lost_seen_by_agents_{agents}": len(silences),
        f"lost_after_own_silence_ms_min_{agents}": round(min(silences, default=0)),
        f"lost_after_own_silence_ms_p50_{agents}": round(silences[len(silences) // 2]) if silences else 0,
    }


def tell_lost(metrics: dict[str, float], agents: int) -> bool:
    """Say loudly that links or reports were lost, and whose doing it was; whether there were any."""
    unacked = int(metrics[f"reports_unacked_{agents}"])
    if unacked:
        print(f"{agents} agents: {unacked} REPORTS WERE NEVER ACKNOWLEDGED")
    lost = int(metrics[f"links_lost_{agents}"])
    if lost:
        print(
            f"{agents} agents: {lost} LINKS WERE LOST, {metrics[f'peers_silent_{agents}']} of them cut as silent. By "
            f"their own clocks those agents had said nothing for {metrics[f'lost_after_own_silence_ms_min_{agents}']} "
            f"ms at least (median {metrics[f'lost_after_own_silence_ms_p50_{agents}']}), and reports were up to "
            f"{metrics[f'agents_late_ms_max_{agents}']} ms late: beyond {Limits().silence_ms_max} ms they were starved "
            "of processors, below it the bus is at fault"
        )
    return lost > 0 or unacked > 0


def counters_of(conductor: Process) -> dict[str, int]:
    """What the conductor has counted, and `late_ms_max`: how late its hub was since it was asked last."""
    conductor.ask("counters")
    counters: dict[str, int] = json.loads(conductor.read(UP_DEADLINE_S))
    return counters


def io_thread_cpu_s(pid: int) -> float:
    """CPU seconds of a process' other threads than its first: libzmq's."""
    return sum(float(one.user_time + one.system_time) for one in psutil.Process(pid).threads() if one.id != pid)


def start_agents(keys: dict[str, list[list[str]]], first: int, address: str, seconds: float) -> Process:
    """A process with its share of the agents."""
    group = Process([sys.executable, "-m", "loadtest.fanin_agents"])
    order = {
        "first": first,
        "keys": keys["agents"][first : first + AGENTS_PER_PROCESS],
        "address": address,
        "server_public": keys["conductor"][0],
        "warm_up_s": WARM_UP_S,
        "seconds": seconds,
    }
    group.ask(json.dumps(order))
    return group


def main() -> int:
    """Run the benchmark; the exit status."""
    options = parser("fanin", "Agents on one conductor, one acknowledged report a second each.")
    options.add_argument("--agents", default="", help=f"sizes, by commas (default {AGENTS})")
    options.add_argument("--strict", action="store_true", help="exit status 1 when a target is missed")
    given = options.parse_args()
    sizes = [int(size) for size in (given.agents or (AGENTS_QUICK if given.quick else AGENTS)).split(",")]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    metrics: dict[str, float] = {}
    lost = False
    with tempfile.TemporaryDirectory(prefix="zcompute-bench-") as directory:
        for size in sizes:
            if size + DESCRIPTORS_SPARE > hard:
                print(f"skipped: {size} agents need as many file descriptors, the limit is {hard}")
                continue
            print(f"{size} agents")
            metrics |= measure(size, SECONDS_QUICK if given.quick else SECONDS, Path(directory))
            lost = tell_lost(metrics, size) or lost
    targets = tuple(target for size in sizes for target in TARGETS.get(size, ()) if target.metric in metrics)
    reached = publish("fanin", metrics, given.json, targets)
    return 1 if lost or (given.strict and not reached) else 0


if __name__ == "__main__":
    sys.exit(main())
