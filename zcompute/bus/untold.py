"""Links whose peers wait for word of what was received, by when it is due. No I/O, no clock reads.

Under load every link of a listener owes such a word nearly always, and nearly always an ack brings it in time: looked
at with every tick, a thousand links cost more than reading their frames.
"""

import heapq
from itertools import count
from typing import Generic, TypeVar

LinkT = TypeVar("LinkT")


class Untold(Generic[LinkT]):
    """Each link is here once at most, until `take` gives it."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, LinkT]] = []
        self._links: set[LinkT] = set()
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._links)

    def add(self, link: LinkT, due: float) -> None:
        """Look at the link at this time, unless it is to be looked at already."""
        if link not in self._links:
            self._links.add(link)
            heapq.heappush(self._due, (due, next(self._numbers), link))

    def take(self, now: float) -> list[LinkT]:
        """The links to look at now."""
        due: list[LinkT] = []
        while self._due and self._due[0][0] <= now:
            link = heapq.heappop(self._due)[2]
            self._links.discard(link)
            due.append(link)
        return due

    def clear(self) -> None:
        """Forget all."""
        self._due.clear()
        self._links.clear()
