"""One child process: started to die with its parent, its CPU time read from /proc, its end noticed."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LOG_TAIL_BYTES = 4096


def cpu_ms(pid: int) -> float | None:
    """CPU time of a process so far, user and system, all threads, in ms; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / _TICKS_PER_S


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")


class ServiceProcess:
    """A service's process. It gets SIGKILL when this process dies, however it dies."""

    def __init__(self, service_id: str, arguments: Sequence[str], log_path: Path) -> None:
        self.service_id = service_id
        self.log_path = log_path
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None
        self._cpu_ms = 0.0
        self.end_expected = False

    @property
    def pid(self) -> int:
        """The process id of the latest start, 0 before any."""
        return self._process.pid if self._process is not None else 0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs or was never started; negative: the signal that ended it."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Start it (again). Its output is appended to its log."""
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)

        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self.end_expected = False  # not before: whoever looks meanwhile sees the end of the former life

    def send(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        if self.alive and self._process is not None:
            self.sample_cpu_ms()
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
                self.end_expected = True
            self._process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False when it still runs."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout=max(timeout_s, 0.001))
        except subprocess.TimeoutExpired:
            return False
        return True

    def sample_cpu_ms(self) -> float:
        """CPU time of its present life; the last sample once it has ended."""
        if self.alive:
            self._cpu_ms = cpu_ms(self.pid) or self._cpu_ms
        return self._cpu_ms
