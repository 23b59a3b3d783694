"""Named places in the code where a test can end or stop the process: a facility for tests, off in production.

``ZCOMPUTE_FAILPOINTS`` arms them, read once when the process starts: ``NAME=ACTION[@N][,NAME=ACTION[@N]...]``. ACTION
is ``kill`` (SIGKILL of this very process: nothing is flushed or said) or ``stop`` (SIGSTOP: it is a zombie until
somebody sends SIGCONT); ``@N`` means the N-th time that the place is passed (1). ``ZCOMPUTE_FAILPOINTS_GATE`` names a
file: passes count only while it is there, and it is deleted by the point that acts, so that a process which is started
again with the same environment goes on.

Off, which is what a process without the variable is, a place costs one call of an empty function, and nothing can arm
it any more. The names are listed in docs/reliability.md.
"""

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

ENVIRONMENT = "ZCOMPUTE_FAILPOINTS"
GATE = "ZCOMPUTE_FAILPOINTS_GATE"
ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
POINTS_MAX = 64

Failpoint = Callable[[str], None]


@dataclass
class _Point:
    signal_number: int
    passes_left: int


class Armed:
    """The points of one process. Called with a name at each place; acts when that name's turn has come."""

    def __init__(self, points: Mapping[str, _Point], gate: str, act: Callable[[int, int], None] = os.kill) -> None:
        self._points = dict(points)
        self._gate = gate
        self._act = act

    def __call__(self, name: str) -> None:
        point = self._points.get(name)
        if point is None or (self._gate and not os.path.exists(self._gate)):
            return
        point.passes_left -= 1
        if point.passes_left:
            return
        if self._gate:
            with suppress(FileNotFoundError):
                os.unlink(self._gate)
        self._act(os.getpid(), point.signal_number)


def _off(name: str) -> None:
    """Production: nothing is armed."""


def armed_by(environment: Mapping[str, str], act: Callable[[int, int], None] = os.kill) -> Failpoint:
    """The failpoints that this environment arms. Raises ValueError for a text that cannot be read: a test that arms
    nothing by mistake would prove nothing."""
    text = environment.get(ENVIRONMENT, "")
    if not text:
        return _off
    items = text.split(",")
    if len(items) > POINTS_MAX:
        raise ValueError(f"{ENVIRONMENT}: {len(items)} points, at most {POINTS_MAX}")
    return Armed(dict(map(_point, items)), environment.get(GATE, ""), act)


def _point(item: str) -> tuple[str, _Point]:
    name, _, rest = item.partition("=")
    action, _, count = rest.partition("@")
    if not name or action not in ACTIONS or not (count or "1").isdigit() or int(count or 1) < 1:
        raise ValueError(f"{ENVIRONMENT}: expected NAME=kill|stop[@N], found {item!r}")
    return name, _Point(ACTIONS[action], int(count or 1))


failpoint = armed_by(os.environ)
