"""Whether a replica takes reads, and when it is looked at again. Pure: the times are passed in."""

from enum import StrEnum

RETRY_S_MIN = 0.2
RETRY_S_MAX = 5.0
LAG_BACK_SHARE = 0.5  # one that fell out for its lag is back below this share of the limit


class State(StrEnum):
    """As operators see it."""

    NEW = "new"  # not looked at yet
    SERVING = "serving"
    LAGGING = "lagging"
    REFUSED = "refused"  # it answers, and is not a replica of this primary
    AWAY = "away"  # it does not answer


class Standing:
    """One replica's. ``reason`` says why it takes no reads."""

    def __init__(self, behind_s_max: float) -> None:
        self._behind_s_max = behind_s_max
        self.state = State.NEW
        self.reason = "not looked at yet"
        self.since_s = 0.0
        self.look_at_s = 0.0
        self._retry_s = RETRY_S_MIN

    @property
    def takes_reads(self) -> bool:
        return self.state is State.SERVING

    def passed(self, now_s: float) -> None:
        """It answers, and is what it should be."""
        self._retry_s = RETRY_S_MIN
        if self.state is not State.LAGGING:
            self._be(State.SERVING, "", now_s)

    def refused(self, reason: str, now_s: float) -> None:
        """It answers, and must not be read."""
        self._be(State.REFUSED, reason, now_s)
        self._later(now_s)

    def lost(self, reason: str, now_s: float) -> None:
        """It does not answer."""
        self._be(State.AWAY, reason, now_s)
        self._later(now_s)

    def measured(self, behind_s: float, now_s: float) -> None:
        """How far it is behind now."""
        if self.state is State.SERVING and behind_s > self._behind_s_max:
            self._be(State.LAGGING, f"more than {self._behind_s_max * 1000:.0f} ms behind", now_s)
        elif self.state is State.LAGGING and behind_s <= LAG_BACK_SHARE * self._behind_s_max:
            self._be(State.SERVING, "", now_s)

    def _be(self, state: State, reason: str, now_s: float) -> None:
        if state is not self.state:
            self.since_s = now_s
        self.state, self.reason = state, reason

    def _later(self, now_s: float) -> None:
        self.look_at_s = now_s + self._retry_s
        self._retry_s = min(RETRY_S_MAX, 2 * self._retry_s)
