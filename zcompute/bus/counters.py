"""Counters of an endpoint, and log lines that a hostile peer cannot multiply."""

import logging
import time

log = logging.getLogger(__name__)

REFUSAL_LOG_INTERVAL_S = 1.0
PEERS_KEPT_MAX = 1_000
OTHERS = "others"
"""Stands for the peers whose refusals are not kept apart any more."""


class Counters(dict[str, int]):
    """Plain map of counter name to value; an unknown name counts from zero."""

    def __missing__(self, name: str) -> int:
        return 0


class Refusals:
    """Counts every refusal as `refused_<reason>`, keeps them apart by peer, and logs a reason at most once a second.

    At most PEERS_KEPT_MAX peers are kept apart: the one that was first refused longest ago joins OTHERS.
    """

    def __init__(self, counters: Counters) -> None:
        self.total = 0
        self._counters = counters
        self._next_log: dict[tuple[str, int], float] = {}
        self._by_peer: dict[str, Counters] = {}

    def count(self, reason: str, peer: str, detail: str = "", level: int = logging.WARNING) -> None:
        """Count one refusal. `reason` comes from our code, never from the wire (it bounds the number of counters)."""
        name = f"refused_{reason}"
        self.total += 1
        self._counters[name] += 1
        self._of(peer)[reason] += 1
        now = time.monotonic()
        if now >= self._next_log.get((reason, level), 0.0):
            self._next_log[(reason, level)] = now + REFUSAL_LOG_INTERVAL_S
            log.log(level, "refused reason=%s peer=%s total=%d detail=%s", reason, peer, self._counters[name], detail)

    def of(self, peer: str) -> dict[str, int]:
        """Refusals of one peer (the name of its link, or its address) by reason."""
        return dict(self._by_peer.get(peer, {}))

    def by_peer(self) -> dict[str, dict[str, int]]:
        """Refusals by peer and reason."""
        return {peer: dict(reasons) for peer, reasons in self._by_peer.items()}

    def _of(self, peer: str) -> Counters:
        reasons = self._by_peer.get(peer)
        if reasons is None:
            if len(self._by_peer) >= PEERS_KEPT_MAX:
                oldest = next(name for name in self._by_peer if name != OTHERS)
                others = self._by_peer.setdefault(OTHERS, Counters())
                for reason, count in self._by_peer.pop(oldest).items():
                    others[reason] += count
            reasons = self._by_peer[peer] = Counters()
        return reasons
