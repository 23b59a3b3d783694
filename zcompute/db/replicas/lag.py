"""How far a replica is behind, without a wall clock: positions of the primary with the monotonic time of the question.

A position that was the primary's when it was asked at ``at_s`` holds all that had committed before. A replica that has
applied it is therefore at most ``now - at_s`` old. Pure: the times are passed in.
"""

from collections import deque

from zcompute.db.replicas.position import Position

SAMPLES_MAX = 600
SAMPLE_GAP_S = 0.05  # so SAMPLES_MAX are half a minute at least: what is older is as lost as older still


class Samples:
    """The primary's positions of late. What the primary was asked later covers what it was asked before."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Position]] = deque(maxlen=SAMPLES_MAX)

    def clear(self) -> None:
        """Another server is the primary now."""
        self._samples.clear()

    @property
    def newest(self) -> Position | None:
        return self._samples[-1][1] if self._samples else None

    @property
    def newest_at_s(self) -> float:
        """When the newest was asked for; 0.0 for never."""
        return self._samples[-1][0] if self._samples else 0.0

    def add(self, at_s: float, position: Position) -> None:
        """The primary, asked at ``at_s``, was at ``position``. Asked more often than SAMPLE_GAP_S, one stands for two:
        the newest always stays."""
        samples = self._samples
        if samples and at_s <= samples[-1][0]:
            return
        if len(samples) >= 2 and samples[-1][0] - samples[-2][0] < SAMPLE_GAP_S:
            samples.pop()
        samples.append((at_s, position))

    def age_s(self, applied: Position, now_s: float) -> float | None:
        """At most so old is what a replica shows that has applied this; None when it is older than every sample."""
        for at_s, position in reversed(self._samples):
            if applied.covers(position):
                return max(0.0, now_s - at_s)
        return None

    def behind_s(self, applied: Position, now_s: float) -> float:
        """For how long something has been committed that the replica has not applied, as far as is known: 0.0 where
        it has all of the newest sample."""
        since_s: float | None = None
        for at_s, position in reversed(self._samples):
            if applied.covers(position):
                break
            since_s = at_s
        return 0.0 if since_s is None else max(0.0, now_s - since_s)
