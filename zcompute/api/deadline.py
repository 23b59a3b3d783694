"""The deadline of one request, in monotonic time."""

import time

from zcompute.bus.errors import DeadlineExceeded


class Deadline:
    """When the client must have its answer."""

    __slots__ = ("at_s",)

    def __init__(self, timeout_ms: int) -> None:
        self.at_s = time.monotonic() + timeout_ms / 1000

    @property
    def left_ms(self) -> int:
        """Milliseconds left, never below 0."""
        return max(0, int((self.at_s - time.monotonic()) * 1000))

    def left_at_most(self, ms_max: int) -> int:
        """Milliseconds left, ``ms_max`` at most. Raises DeadlineExceeded when none is."""
        left_ms = self.left_ms
        if left_ms <= 0:
            raise DeadlineExceeded("the request's deadline has passed")
        return min(left_ms, ms_max)
