"""Credit per lane: what a sender of reports knows of the receiver's lanes, and what a receiver owes by lane. No I/O.

A lane is a queue of the receiver's that may stall by itself (a writer with a connection of its own). Its number is the
receiver's affair and may change for a key at any time; 0 stands for all keys whose lane the sender does not know.
"""

from collections import Counter
from collections.abc import Iterable

from zcompute.bus.limits import Limits

UNKNOWN = 0


class SenderLanes:
    """Unacknowledged reports by lane, each counted where its key is now believed to be.

    With `lane_credit` a lane, and half of the link's credit for the unknown, lanes that stall hold at most all of the
    credit together when they are `report_credit / (2 * lane_credit)` (see `Limits.lane_credit`): then one that works
    always has its own.
    """

    def __init__(self, limits: Limits) -> None:
        self._keys_max = limits.lane_keys_max
        self.credit = 0  # 0: the receiver has no lanes
        self._unknown_credit = 0
        self._lane_of: dict[str, int] = {}
        self._unacked_of: dict[str, int] = {}
        self.unacked: Counter[int] = Counter()

    def open(self, lane_credit: int, report_credit: int, keys: Iterable[str], *, same_peer: bool) -> None:
        """A link number begins, with these keys of unacknowledged reports. Another incarnation has other lanes."""
        if not same_peer:
            self._lane_of.clear()
        self.credit = min(lane_credit, report_credit)
        self._unknown_credit = max(self.credit, report_credit // 2)
        self._unacked_of.clear()
        self.unacked.clear()
        if self.credit:
            for key in keys:
                self._count(key)

    def lane_of(self, key: str) -> int:
        """The lane that the receiver last named for this key."""
        return self._lane_of.get(key, UNKNOWN)

    def room(self, lane: int) -> int:
        """How many more reports of this lane may go, as far as lanes are concerned. Only for a receiver with lanes."""
        limit = self.credit if lane else self._unknown_credit
        return max(0, limit - self.unacked[lane])

    def take(self, key: str) -> bool:
        """Count one more report of this key; False when its lane has no room."""
        if not self.credit:
            return True
        if self.room(self.lane_of(key)) == 0:
            return False
        self._count(key)
        return True

    def _count(self, key: str) -> None:
        self._unacked_of[key] = self._unacked_of.get(key, 0) + 1
        self.unacked[self.lane_of(key)] += 1

    def give_back(self, key: str) -> None:
        """One report of this key is answered."""
        if not self.credit:
            return
        left = self._unacked_of.get(key, 0) - 1
        if left > 0:
            self._unacked_of[key] = left
        else:
            self._unacked_of.pop(key, None)
        self._lower(self.lane_of(key), 1)

    def learn(self, key: str, lane: int) -> None:
        """The receiver named a key's lane. What of it is unacknowledged is counted there from now on."""
        if not self.credit or not lane or self._lane_of.get(key) == lane:
            return
        if key not in self._lane_of and len(self._lane_of) >= self._keys_max:
            oldest = next(iter(self._lane_of))
            self._move(oldest, UNKNOWN)
            del self._lane_of[oldest]
        self._move(key, lane)
        self._lane_of[key] = lane

    def _move(self, key: str, lane: int) -> None:
        count = self._unacked_of.get(key, 0)
        if count:
            self._lower(self.lane_of(key), count)
            self.unacked[lane] += count

    def _lower(self, lane: int, count: int) -> None:
        self.unacked[lane] -= count
        if self.unacked[lane] <= 0:
            del self.unacked[lane]


class ReceiverLanes:
    """Reports of one link that the application has taken and not answered, by lane, whatever life of the link."""

    def __init__(self, limits: Limits) -> None:
        self._credit = limits.lane_credit
        self.owed: dict[int, int] = {}

    def admit(self, lane: int) -> bool:
        """Take one more report for this lane; False when so many are owed already: answer that it come later."""
        owed = self.owed.get(lane, 0)
        if self._credit and owed >= self._credit:
            return False
        self.owed[lane] = owed + 1
        return True

    def settle(self, lane: int) -> None:
        """One that was admitted is answered, or will never be."""
        left = self.owed.get(lane, 0) - 1
        if left > 0:
            self.owed[lane] = left
        else:
            self.owed.pop(lane, None)
