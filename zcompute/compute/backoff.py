"""Waits between two tries."""

import random


class Backoff:
    """Doubles from ``min_ms`` to ``max_ms``, with jitter: each wait is between half of it and the whole."""

    def __init__(self, min_ms: int, max_ms: int) -> None:
        self._min_ms = min_ms
        self._max_ms = max_ms
        self._next_ms = min_ms

    def next_s(self) -> float:
        """Seconds to wait before the next try."""
        wait_ms = self._next_ms
        self._next_ms = min(self._max_ms, 2 * wait_ms)
        return wait_ms * random.uniform(0.5, 1.0) / 1000

    def reset(self) -> None:
        """After a success."""
        self._next_ms = self._min_ms
