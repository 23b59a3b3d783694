"""The turn of a reader: what a frame brings about is done with the frame, not in a later round of the loop.

gevent's `run_callback` gives the same order, but its callbacks run only after the reader has gone back to the loop, and
each send then costs one more read of EVENTS. While a turn is open, what is due soon is kept here, and done in the order
in which it was asked for once the frame has been taken in.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import gevent

log = logging.getLogger(__name__)

STEPS_PER_TURN_MAX = 512


class Turn:
    """Runs functions soon, in the hub: at the end of the open turn, else in the loop's next round."""

    def __init__(self) -> None:
        self.open = False
        self._loop = gevent.get_hub().loop
        self._steps: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def soon(self, step: Callable[..., object], *args: Any) -> None:
        """Run `step(*args)` soon; it must not block."""
        if self.open:
            self._steps.append((step, args))
        else:
            self._loop.run_callback(step, *args)

    def begin(self) -> None:
        """Open the turn. Only for a reader, in the hub, which ends it."""
        self.open = True

    def end(self) -> None:
        """Do what was asked for since `begin`, and what that asks for.

        What a turn does not end with STEPS_PER_TURN_MAX steps is left to the loop, so that others have theirs. A step
        may switch to a greenlet, which comes back when it waits.
        """
        steps = self._steps
        try:
            for _ in range(STEPS_PER_TURN_MAX):
                if not steps:
                    break
                step, args = steps.popleft()
                try:
                    step(*args)
                except Exception:
                    log.exception("a step of a turn failed")
        finally:
            self.open = False
            while steps:
                step, args = steps.popleft()
                self._loop.run_callback(step, *args)
