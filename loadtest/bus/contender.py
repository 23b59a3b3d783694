"""A contender: its server and client processes (and broker), and the CPU they use together."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtest.bus.orders import Done, Order, to_line

ROOT = Path(__file__).resolve().parents[2]
PEERS_PYTHON = ROOT / "build" / "peers" / "bin" / "python"
START_DEADLINE_S = 60.0
ORDER_DEADLINE_S = 120.0
STOP_DEADLINE_S = 5.0


class ContenderFailed(RuntimeError):
    """A process of a contender did not start, ended, or did not answer in time."""


@dataclass(frozen=True)
class Measured:
    """One order as it went: a rate, the CPU microseconds a message of all processes, the latencies of paced calls."""

    per_second: float
    cpu_us: float
    p50_ms: float
    p99_ms: float


class Process:
    """A child that speaks lines; ended by its own process id."""

    def __init__(self, command: list[str], tree: Path = ROOT) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONUNBUFFERED": "1"}
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tree, env=environment
        )
        self._name = " ".join(command[2:4])
        self.pid = self._child.pid

    def ask(self, line: str) -> None:
        """Write one line to its standard input."""
        if self._child.stdin is None:
            raise ContenderFailed(f"{self._name}: no standard input")
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def read(self, deadline_s: float) -> str:
        """Its next line. A process that says nothing within the time is killed. Raises ContenderFailed."""
        watchdog = threading.Timer(deadline_s, self._child.kill)
        watchdog.start()
        try:
            line = self._child.stdout.readline() if self._child.stdout is not None else ""
        finally:
            watchdog.cancel()
        if not line:
            raise ContenderFailed(f"{self._name}: ended or said nothing in {deadline_s:g} s")
        return line.strip()

    def stop(self) -> None:
        """End it."""
        self._child.terminate()
        try:
            self._child.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(STOP_DEADLINE_S)


class Contender:
    """Starts `python -m loadtest.bus.ends.MODULE serve ...` and `drive ... ADDRESS`, and has it carry out orders."""

    def __init__(
        self, name: str, module: str, *arguments: str, python: str = sys.executable, broker_pids: tuple[int, ...] = ()
    ) -> None:
        self.name = name
        self._broker_pids = broker_pids
        command = [python, "-m", f"loadtest.bus.ends.{module}"]
        self._processes: list[Process] = []
        try:
            self._server = self._start([*command, "serve", *arguments])
            address = self._server.read(START_DEADLINE_S)
            self._client = self._start([*command, "drive", *arguments, address])
            self._client.read(START_DEADLINE_S)
        except BaseException:
            self.stop()
            raise

    def _start(self, command: list[str]) -> Process:
        process = Process(command)
        self._processes.append(process)
        return process

    def do(self, order: Order) -> Measured:
        """Carry out an order, and measure. Raises ContenderFailed."""
        before = self._cpu_s()
        self._client.ask(to_line(order))
        done = Done(**_parse(self._client.read(ORDER_DEADLINE_S)))
        spent = self._cpu_s() - before
        return Measured(done.count / done.seconds, spent * 1e6 / done.count, done.p50_ms, done.p99_ms)

    def _cpu_s(self) -> float:
        return sum(cpu_s(pid) for pid in (self._server.pid, self._client.pid, *self._broker_pids))

    def stop(self) -> None:
        """End both processes."""
        for process in reversed(self._processes):
            process.stop()


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, its ended threads included."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _parse(line: str) -> dict[str, float]:
    return dict(json.loads(line))
