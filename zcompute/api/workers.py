"""Several API processes behind one listening socket.

One socket for all, not SO_REUSEPORT: there a stopped process keeps its share of new connections hanging, and one that
ends loses those that wait in its queue. Here whoever is free accepts. The first process only listens and watches over
the others; it serves nothing and dials nobody.
"""

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import gevent
from gevent.event import Event

from zcompute.api.settings import LIMITS
from zcompute.api.wsgi import listen
from zcompute.config import Config

log = logging.getLogger(__name__)

WATCH_S = 0.1
RESTART_S_MIN = 0.2
RESTART_S_MAX = 5.0
LONG_LIFE_S = 10.0  # a life of so long resets the pause before the next
STOP_S_MAX = 3.0

Start = Callable[[int, int], "subprocess.Popen[bytes]"]


@dataclass
class _Worker:
    number: int
    process: "subprocess.Popen[bytes]"
    began_s: float
    pause_s: float = RESTART_S_MIN
    starts_at_s: float = field(default=0.0)  # once it has ended


def worker_command(config_path: str, number: int, listener_fd: int) -> list[str]:
    """How worker ``number`` (from 1) is started."""
    command = [sys.executable, "-m", "zcompute.cli.main", "api", "--config", config_path]
    return [*command, "--worker", str(number), "--listener-fd", str(listener_fd)]


class Workers:
    """Listens, starts ``config.api.workers`` processes, and starts those anew that end."""

    def __init__(self, config: Config, config_path: str, start: Start | None = None) -> None:
        self._config = config
        self._config_path = config_path
        self._start = start or self._spawn
        self._listener: socket.socket | None = None
        self._workers: list[_Worker] = []
        self._stopping = Event()
        self._watching: gevent.Greenlet | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where all listen."""
        if self._listener is None:
            return self._config.api.host, self._config.api.port
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def pids(self) -> list[int]:
        """The living workers."""
        return [each.process.pid for each in self._workers if each.process.poll() is None]

    def start(self) -> None:
        """Listen, and start all. Raises OSError when the address cannot be had."""
        api = self._config.api
        listener = self._listener = listen(api.host, api.port, LIMITS.backlog)
        listener.set_inheritable(True)
        for number in range(1, api.workers + 1):
            self._workers.append(_Worker(number, self._start(number, listener.fileno()), time.monotonic()))
        self._watching = gevent.spawn(self._watch)
        log.info("listening address=%s:%d workers=%d", *self.address, api.workers)

    def stop(self) -> None:
        """Tell all to end, and kill what has not within STOP_S_MAX."""
        self._stopping.set()
        if self._watching is not None:
            self._watching.join()
        if self._listener is not None:
            self._listener.close()
        living = [each.process for each in self._workers if each.process.poll() is None]
        for process in living:
            process.terminate()
        ends_at_s = time.monotonic() + STOP_S_MAX
        for process in living:
            try:
                process.wait(timeout=max(0.0, ends_at_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("worker killed pid=%d: not ended within stop_s_max=%g", process.pid, STOP_S_MAX)
                process.kill()
                process.wait()

    def _spawn(self, number: int, listener_fd: int) -> "subprocess.Popen[bytes]":
        command: Sequence[str] = worker_command(self._config_path, number, listener_fd)
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[listener_fd])

    def _watch(self) -> None:
        while not self._stopping.wait(WATCH_S):
            for each in self._workers:
                if each.process.poll() is not None:
                    self._revive(each, time.monotonic())

    def _revive(self, each: _Worker, now_s: float) -> None:
        """It has ended: it is started anew after a pause that doubles while its lives are short."""
        if not each.starts_at_s:
            long_life = now_s - each.began_s >= LONG_LIFE_S
            each.pause_s = RESTART_S_MIN if long_life else min(each.pause_s * 2, RESTART_S_MAX)
            each.starts_at_s = now_s + each.pause_s
            log.error("worker ended number=%d pid=%d code=%s", each.number, each.process.pid, each.process.returncode)
        elif now_s >= each.starts_at_s and self._listener is not None:
            each.process, each.began_s = self._start(each.number, self._listener.fileno()), now_s
            each.starts_at_s = 0.0
