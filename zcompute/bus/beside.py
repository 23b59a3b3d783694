"""libzmq's I/O thread runs on the processor on which its loop runs.

Each frame has the loop wake the I/O thread, or the I/O thread wake the loop; one then mostly waits for the other. On
two processors such a wake-up crosses to another one, and takes it from whoever works there; on one it is a switch (see
docs/decisions/0006). An I/O thread that has a lot to do itself (large payloads, thousands of handshakes) is let go, and
so is that of an endpoint with many peers (while one of them waits, it works for the others) or with one that floods it
with what is refused: the loop would keep the thread from the neighbours' frames.
"""

import ctypes
import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from zcompute.bus.limits import Limits

log = logging.getLogger(__name__)

CALM_LOOKS = 3  # in turn, before it is put beside the loop: whoever has just begun may have many handshakes to make
FINDS_MAX = 60  # looks, one a second: the thread exists from the first socket on, which dialling or binding makes

_TASKS = Path("/proc/self/task")
_numbers = itertools.count(1)


def _processor() -> Callable[[], int] | None:
    """The C library's question on which processor this thread runs; None where there is no such thing."""
    asked: Callable[[], int] | None = getattr(ctypes.CDLL(None), "sched_getcpu", None)
    return asked if hasattr(os, "sched_setaffinity") else None


class IoThread:
    """Keeps the I/O thread of one context beside the loop, as `tick` finds it. Belongs to the loop's thread."""

    def __init__(self, context: "zmq.Context[Any]", limits: Limits) -> None:
        number = next(_numbers)
        context.set(zmq.THREAD_NAME_PREFIX, number)
        self._name = f"{number}/ZMQbg/IO/0"[:15]  # what the kernel keeps of it
        self._busy_max = limits.io_beside_share_max
        self._peers_max = limits.io_beside_peers_max
        self._refusals_max = limits.io_beside_refusals_max
        self._refused = 0
        self._processor = _processor() if self._busy_max else None
        self._thread = 0
        self._finds_left = FINDS_MAX
        self._at = -1  # the processor it was put on; -1: any
        self._allowed: set[int] = set()
        self._looked_at = 0.0
        self._calm_looks = 0
        self._used_s = 0.0

    def tick(self) -> None:
        """Follow the loop to the processor on which it runs now. Cheap: asked at every tick of the endpoint."""
        if self._thread and self._at >= 0 and self._processor is not None:
            here = self._processor()
            if here != self._at:
                self._put({here}, here)

    def look(self, now: float, peers: int, refused: int) -> None:
        """Once a second: find the thread; let it go while its own work is a large part of a processor's, there are many
        peers, or much is refused (``refused``: in all until now)."""
        flooded, self._refused = refused - self._refused > self._refusals_max, refused
        if self._processor is None:
            return
        try:
            if not self._thread:
                self._find()
                return
            ran_ns, waited_ns = (_TASKS / str(self._thread) / "schedstat").read_text().split()[:2]
        except (OSError, ValueError) as error:
            self._give_up(error)
            return
        used_s = (int(ran_ns) + int(waited_ns)) / 1e9  # what it had to wait for its processor is work, too
        share = (used_s - self._used_s) / max(now - self._looked_at, 1e-3)
        self._used_s, self._looked_at = used_s, now
        crowded = flooded or peers > self._peers_max
        self._calm_looks = self._calm_looks + 1 if share < self._busy_max / 2 and not crowded else 0
        if self._at >= 0 and (crowded or share > self._busy_max):
            self._put(self._allowed, -1)
        elif self._at < 0 and self._calm_looks >= CALM_LOOKS:
            here = self._processor()
            self._put({here}, here)

    def _find(self) -> None:
        self._finds_left -= 1
        if self._finds_left < 0:
            self._give_up("no thread of its name")
            return
        for task in _TASKS.iterdir():
            if (task / "comm").read_text().strip() == self._name:
                self._allowed = os.sched_getaffinity(0)
                self._thread = int(task.name)

    def _put(self, processors: set[int], at: int) -> None:
        try:
            os.sched_setaffinity(self._thread, processors)
        except OSError as error:
            self._give_up(error)
            return
        self._at = at

    def _give_up(self, error: object) -> None:
        """A kernel or a sandbox without it: the thread runs where it is put."""
        log.info("io thread not kept beside its loop error=%s", error)
        self._processor = None
