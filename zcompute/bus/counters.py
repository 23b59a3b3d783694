"""Counters of an endpoint, and log lines that a hostile peer cannot multiply."""

import logging
import time

log = logging.getLogger(__name__)

REFUSAL_LOG_INTERVAL_S = 1.0


class Counters(dict[str, int]):
    """Plain map of counter name to value; an unknown name counts from zero."""

    def __missing__(self, name: str) -> int:
        return 0


class Refusals:
    """Counts every refusal as `refused_<reason>` and logs each reason at most once a second."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._next_log: dict[str, float] = {}

    def count(self, reason: str, peer: str, detail: str = "") -> None:
        """Count one refusal. `reason` comes from our code, never from the wire (it bounds the number of counters)."""
        name = f"refused_{reason}"
        self._counters[name] += 1
        now = time.monotonic()
        if now >= self._next_log.get(reason, 0.0):
            self._next_log[reason] = now + REFUSAL_LOG_INTERVAL_S
            log.warning("refused reason=%s peer=%s total=%d detail=%s", reason, peer, self._counters[name], detail)
