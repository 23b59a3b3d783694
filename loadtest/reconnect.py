"""Reconnect: thousands of CURVE agents of one conductor that is killed and started again at the same address.

    python -m loadtest.reconnect --json r.json [--quick] [--agents 5000] [--rounds 3] [--strict]

`all_back_s` counts from the moment the new conductor listens until the last agent is welcomed, the worst of the rounds.
Exit status 1 when an agent did not come back; with ``--strict`` also when a target is missed.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

from loadtest.bus.contender import Process, cpu_s
from loadtest.fanin import pair
from loadtest.report import Target, parser, publish

AGENTS, AGENTS_QUICK = 5_000, 500
AGENTS_PER_PROCESS = 1_250  # six descriptors each
ROUNDS = 3
UP_DEADLINE_S = 150.0
BACK_S_MAX = 10.0


def start_agents(keys: dict[str, list[list[str]]], first: int, address: str) -> Process:
    """A process with its share of the agents."""
    group = Process([sys.executable, "-m", "loadtest.reconnect_agents"])
    share = keys["agents"][first : first + AGENTS_PER_PROCESS]
    group.ask(json.dumps({"first": first, "keys": share, "address": address, "server_public": keys["conductor"][0]}))
    return group


class Region:
    """The conductor and its agents."""

    def __init__(self, agents: int, directory: Path) -> None:
        self._keys = {"conductor": pair(), "agents": [pair() for _ in range(agents)]}
        self._file = directory / "keys.json"
        self._file.touch(mode=0o600)
        self._file.write_text(json.dumps(self._keys), encoding="utf-8")
        self._processes: list[Process] = []
        self._groups: list[Process] = []
        try:
            self._conductor, self._address = self._start("tcp://127.0.0.1:0")
            self._start_agents(agents)
        except BaseException:
            self.close()
            raise

    def _start_agents(self, agents: int) -> None:
        for first in range(0, agents, AGENTS_PER_PROCESS):
            group = start_agents(self._keys, first, self._address)
            self._processes.append(group)
            self._groups.append(group)
        for group in self._groups:
            if (said := group.read(UP_DEADLINE_S)) != "up":
                raise SystemExit(said)

    def _start(self, address: str) -> tuple[Process, str]:
        conductor = Process([sys.executable, "-m", "loadtest.reconnect_conductor", str(self._file), address])
        self._processes.append(conductor)
        return conductor, conductor.read(UP_DEADLINE_S)

    def restart(self) -> tuple[list[float], float, float]:
        """Kill the conductor and start it again: seconds until each agent is back, until it listened, CPU it used.

        Raises SystemExit when agents are missing.
        """
        for group in self._groups:
            group.ask("again")
        for group in self._groups:
            group.read(UP_DEADLINE_S)
        killed = time.monotonic()
        os.kill(self._conductor.pid, signal.SIGKILL)
        self._conductor, _ = self._start(self._address)
        listening = time.monotonic()
        outcomes = [json.loads(group.read(UP_DEADLINE_S)) for group in self._groups]
        if not all(outcome["back"] for outcome in outcomes):
            raise SystemExit("not all agents came back")
        back = sorted(at - listening for outcome in outcomes for at in outcome["up_at"])
        return back, listening - killed, cpu_s(self._conductor.pid)

    def close(self) -> None:
        """End every process."""
        for process in reversed(self._processes):
            process.stop()


def main() -> int:
    """Run it; the exit status."""
    options = parser("reconnect", "Agents that find their conductor again after it was killed.")
    options.add_argument("--agents", type=int, default=0, help=f"how many (default {AGENTS})")
    options.add_argument("--rounds", type=int, default=0, help=f"restarts (default {ROUNDS})")
    options.add_argument("--strict", action="store_true", help="exit status 1 when a target is missed")
    given = options.parse_args()
    agents = given.agents or (AGENTS_QUICK if given.quick else AGENTS)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="zcompute-bench-") as directory:
        region = Region(agents, Path(directory))
        try:
            rounds = [region.restart() for _ in range(given.rounds or (1 if given.quick else ROUNDS))]
        finally:
            region.close()
    metrics = {
        "agents": float(agents),
        "all_back_s": round(max(back[-1] for back, _, _ in rounds), 2),
        "half_back_s": round(max(back[len(back) // 2] for back, _, _ in rounds), 2),
        "conductor_away_s": round(max(away for _, away, _ in rounds), 2),
        "conductor_cpu_s": round(max(cpu for _, _, cpu in rounds), 2),
    }
    reached = publish("reconnect", metrics, given.json, (Target("all_back_s", at_most=BACK_S_MAX),))
    return 0 if reached or not given.strict else 1


if __name__ == "__main__":
    sys.exit(main())
