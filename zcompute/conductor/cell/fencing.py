"""The fence command of the configuration: an operator's program that makes sure that a host is off.

It is the only proof but an operator's own word (Nova's ``force-down`` knows only the latter): exit 0 within its time
means that the host is off for certain. It must be repeatable, as it is run again when its outcome was lost.
"""

import logging
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import gevent
from gevent import subprocess
from gevent.event import AsyncResult

from zcompute.bus.errors import Busy
from zcompute.config import FencingConfig
from zcompute.objects.errors import FenceFailed

log = logging.getLogger(__name__)

AT_ONCE_MAX = 8
BUSY_RETRY_MS = 2000
OUTPUT_BYTES_MAX = 2000
READ_BYTES = 4096
FENCE_MS_MAX = 25_000  # of any conductor's [fencing] timeout_s: whoever hands a fence on knows only its own
END_S_MAX = 2.0  # for its output to end, once it was killed
HOST_FIELD = "{host}"


class Fencing:
    """Runs the command, AT_ONCE_MAX at once, one a host: who asks again meanwhile waits for the same outcome."""

    def __init__(self, config: FencingConfig, cell: str, conductor: str = "") -> None:
        self._config = config
        self._cell = cell
        self._conductor = conductor
        self._under_way: dict[str, AsyncResult] = {}

    def fence(self, host: str) -> None:
        """Returning: the host is off. Raises FenceFailed, Busy."""
        if not self._config.command:
            raise FenceFailed(
                f"host {host} is not fenced: no fence command is configured at its owner, conductor {self._conductor}: "
                "expected [fencing] command in each conductor of the cell",
                host=host,
            )
        running = self._under_way.get(host)
        if running is None:
            if len(self._under_way) >= AT_ONCE_MAX:
                raise Busy(f"{AT_ONCE_MAX} hosts are being fenced: try again", retry_after_ms=BUSY_RETRY_MS)
            running = self._under_way[host] = AsyncResult()
            # In a greenlet of its own: a caller that goes away, or is killed, leaves no process behind.
            gevent.spawn(self._run, host, running)
        failure: str = running.get(timeout=self._config.timeout_s + 2 * END_S_MAX)
        if failure:
            raise FenceFailed(f"host {host} is not fenced: {failure}", host=host)

    def _run(self, host: str, outcome: AsyncResult) -> None:
        begun = time.monotonic()
        failure = "its outcome is not known"
        try:
            failure = run_fence(self._config.command, host, self._cell, self._config.timeout_s)
        except OSError as error:
            failure = f"{self._config.command[0]} cannot be started: {error}"
        finally:
            del self._under_way[host]
            took_ms = int((time.monotonic() - begun) * 1000)
            log.warning("audit: fence command host=%s took_ms=%s outcome=%s", host, took_ms, failure or "done")
            outcome.set(failure)


def run_fence(command: Sequence[str], host: str, cell: str, timeout_s: float) -> str:
    """Run the command without a shell, in a session of its own; "" when it exits with 0 within its time, else why not
    with what it wrote. Nothing of it is left running. Raises OSError when it cannot be started."""
    process = subprocess.Popen(
        [argument.replace(HOST_FIELD, host) for argument in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "ZCOMPUTE_HOST": host, "ZCOMPUTE_CELL": cell},
    )
    output = bytearray()
    reader = gevent.spawn(_read, process.stdout, output)
    try:
        code = process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _end(process)
        reader.join(END_S_MAX)
        reader.kill()
    said = output.decode(errors="replace").strip()
    wrote = f", it wrote: {said}" if said else ""
    if code is None:
        return f"the fence command did not end within {timeout_s:g} s{wrote}"
    return "" if code == 0 else f"the fence command ended with {code}{wrote}"


def _end(process: Any) -> None:
    """Whatever is left of its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    try:
        process.wait(timeout=END_S_MAX)
    except subprocess.TimeoutExpired:
        log.error("fence command cannot be killed pid=%s", process.pid)


def _read(stream: Any, output: bytearray) -> None:
    """All of it, keeping the beginning: a command that writes without end must not stand still."""
    while chunk := stream.read1(READ_BYTES):
        output.extend(chunk[: OUTPUT_BYTES_MAX - len(output)])
