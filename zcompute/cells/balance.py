"""Which of a cell's conductors is asked: the one with fewer open questions of two drawn; one that was late rests. Pure.

Two drawn at random are nearly as good as a look at all, and many who choose at once do not all choose the same
(Mitzenmacher, "The power of two choices", 2001).
"""

from collections.abc import Hashable, Sequence
from random import Random
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

W = TypeVar("W", bound=Hashable)

REST_S_MIN = 1.0  # one that did not answer in its time is left out so long, each time twice as long
REST_S_MAX = 8.0


class _Standing:
    __slots__ = ("open", "rest_s", "rests_until_s")

    def __init__(self) -> None:
        self.open = 0
        self.rest_s = 0.0
        self.rests_until_s = 0.0


class Balance(Generic[W]):
    """Open questions by whom they are asked, and who rests."""

    def __init__(self, draw: Random | None = None) -> None:
        self._draw = draw or Random()
        self._standings: WeakKeyDictionary[W, _Standing] = WeakKeyDictionary()

    def choose(self, candidates: Sequence[W], now_s: float) -> W:
        """One of these, of which there is at least one. Those that rest come last."""
        awake = [each for each in candidates if self._of(each).rests_until_s <= now_s] or candidates
        if len(awake) == 1:
            return awake[0]
        one, other = self._draw.sample(awake, 2)
        return one if self._of(one).open <= self._of(other).open else other

    def began(self, who: W) -> None:
        """A question goes out."""
        self._of(who).open += 1

    def ended(self, who: W) -> None:
        """It is over, whatever came of it."""
        self._of(who).open -= 1

    def answered(self, who: W) -> None:
        """It does answer: nothing is held against it any more."""
        standing = self._of(who)
        standing.rest_s = standing.rests_until_s = 0.0

    def was_late(self, who: W, now_s: float) -> None:
        """It did not answer in its time. Questions that were under way together count once."""
        standing = self._of(who)
        if standing.rests_until_s <= now_s:
            standing.rest_s = min(max(REST_S_MIN, standing.rest_s * 2), REST_S_MAX)
            standing.rests_until_s = now_s + standing.rest_s

    def open_at(self, who: W) -> int:
        """Its open questions."""
        return self._of(who).open

    def _of(self, who: W) -> _Standing:
        standing = self._standings.get(who)
        if standing is None:
            standing = self._standings[who] = _Standing()
        return standing
