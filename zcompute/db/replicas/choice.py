"""Which replica a read goes to. Pure: the draw is passed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

BEHIND_S_MAX = 0.1  # further behind: only for lack of others
READ_S = 0.002  # what one read in flight there is taken to cost the next


class Candidate(Protocol):
    """What is known of a replica at this moment."""

    @property
    def in_flight(self) -> int:
        """Reads of ours that are there now."""

    @property
    def behind_s(self) -> float:
        """For how long something is known to be committed that it has not applied."""


@dataclass(frozen=True)
class Weighed:
    """A candidate as plain values."""

    in_flight: int
    behind_s: float


def cost_s(candidate: Candidate) -> float:
    """What a read is expected to wait there."""
    return candidate.behind_s + candidate.in_flight * READ_S


def choose(candidates: Sequence[Candidate], draw: Random) -> int | None:
    """The index of the better of two drawn at random (Mitzenmacher, "The power of two choices", 2001), among those
    that are hardly behind, if there are any; None for no candidate."""
    near = [at for at, one in enumerate(candidates) if one.behind_s <= BEHIND_S_MAX] or list(range(len(candidates)))
    if not near:
        return None
    if len(near) == 1:
        return near[0]
    first, second = draw.sample(near, 2)
    return first if cost_s(candidates[first]) <= cost_s(candidates[second]) else second
