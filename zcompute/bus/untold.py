"""Links whose peers wait for word of what was received, by when it is due. No I/O, no clock reads.

Under load every link of a listener owes such a word nearly always, and nearly always an ack brings it in time: looked
at with every tick, a thousand links cost more than reading their frames.
"""

from typing import Generic, TypeVar

SLOT_S = 0.025
"""Links are kept together that are due within this time, a tick's: putting one there compares no times."""

LinkT = TypeVar("LinkT")


class Untold(Generic[LinkT]):
    """Each link is here once at most, until `take` gives it, at its time or up to `SLOT_S` later."""

    def __init__(self) -> None:
        self._slots: dict[int, list[LinkT]] = {}
        self._links: set[LinkT] = set()

    def __len__(self) -> int:
        return len(self._links)

    def add(self, link: LinkT, due: float) -> None:
        """Look at the link at this time, unless it is to be looked at already."""
        if link not in self._links:
            self._links.add(link)
            slot = int(due / SLOT_S) + 1
            together = self._slots.get(slot)
            if together is None:
                self._slots[slot] = [link]
            else:
                together.append(link)

    def take(self, now: float) -> list[LinkT]:
        """The links to look at now."""
        last = int(now / SLOT_S)
        slots = sorted(slot for slot in self._slots if slot <= last)
        due = [link for slot in slots for link in self._slots.pop(slot)]
        self._links.difference_update(due)
        return due

    def clear(self) -> None:
        """Forget all."""
        self._slots.clear()
        self._links.clear()
