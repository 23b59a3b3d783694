"""What one lane's batches cost: two clock readings a batch, counters, and a ring of the last ones."""

import time
from bisect import bisect_left
from collections import deque

from zcompute.objects.conductor_stat import COMMIT_MS_BOUNDS

BATCHES_KEPT = 256


class LaneMeter:
    """``began`` and ``ended`` round each batch, retries included; ``failed`` at each try that did not go through."""

    __slots__ = (
        "began_at_s",
        "busy_s",
        "by_bound",
        "decisions",
        "failing_since_s",
        "flying",
        "lost_since_s",
        "recent",
        "reconnects",
        "retries",
        "rows",
    )

    def __init__(self) -> None:
        self.rows = 0
        self.decisions = 0
        self.retries = 0
        self.reconnects = 0
        self.busy_s = 0.0  # with a batch at the database, those that have ended
        self.began_at_s = 0.0  # 0.0: none is
        self.flying = 0
        self.failing_since_s = 0.0
        self.lost_since_s = 0.0
        self.by_bound = [0] * (len(COMMIT_MS_BOUNDS) + 1)
        self.recent: deque[tuple[int, int, float]] = deque(maxlen=BATCHES_KEPT)  # rows, decisions, ms

    def began(self, decisions: int) -> None:
        self.flying = decisions
        self.began_at_s = time.monotonic()

    def ended(self, rows: int) -> None:
        """The batch of these rows has committed."""
        took_s = time.monotonic() - self.began_at_s
        decisions, self.flying = self.flying, 0
        self.began_at_s = self.failing_since_s = self.lost_since_s = 0.0
        self.busy_s += took_s
        self.rows += rows
        self.decisions += decisions
        took_ms = took_s * 1000
        self.by_bound[bisect_left(COMMIT_MS_BOUNDS, took_ms)] += 1
        self.recent.append((rows, decisions, took_ms))

    def refused(self) -> None:
        """The batch was rolled back for its data, or the life ends: it did not commit."""
        if self.began_at_s:
            self.busy_s += time.monotonic() - self.began_at_s
        self.flying = 0
        self.began_at_s = self.failing_since_s = self.lost_since_s = 0.0

    def failed(self, *, lost: bool) -> None:
        """The database did not take the batch: it will be sent again."""
        self.retries += 1
        self.reconnects += lost
        now_s = time.monotonic()
        self.failing_since_s = self.failing_since_s or now_s
        if lost:
            self.lost_since_s = self.lost_since_s or now_s

    def lost_ms(self) -> int:
        """For how long the database has been out of reach, as far as the batch under way knows; 0: it is not."""
        return int((time.monotonic() - self.lost_since_s) * 1000) if self.lost_since_s else 0

    def last_ms(self) -> float:
        """What the last batch took; 0.0 before the first."""
        return self.recent[-1][2] if self.recent else 0.0

    def busy_until_s(self, now_s: float) -> float:
        """Seconds with a batch at the database, the one there now included."""
        return self.busy_s + (now_s - self.began_at_s if self.began_at_s else 0.0)


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of these sorted values lie; 0.0 for none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0
