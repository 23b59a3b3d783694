"""The reports that a conductor has handed on and that are unanswered: bounded, and told apart. Pure."""

from collections import Counter, OrderedDict
from dataclasses import dataclass

from zcompute.bus import Link


@dataclass(frozen=True)
class RelayLimits:
    """What one conductor does for hosts that are others' to serve. Beyond it the sender is told Busy.

    ``reports_of_link_max`` is what one agent may have under way here; ``answer_ms_max`` after which a report counts as
    unanswered and its sender is told to come again. ``commands_at_once_max`` and ``begins_at_once_max`` leave most of
    the workers of the pool ``calls`` to this conductor's own work.
    """

    reports_max: int = 4_000
    bytes_max: int = 16 * 1024 * 1024
    reports_of_link_max: int = 200
    answer_ms_max: int = 10_000
    sweep_ms: int = 500
    retry_ms: int = 200
    held_max: int = 2_000  # reports whose epoch is just being checked at the primary
    beats_gather_ms: int = 100
    beat_hosts_max: int = 1_000
    commands_at_once_max: int = 64
    begins_at_once_max: int = 32
    find_hosts_max: int = 1_000


@dataclass(frozen=True, eq=False)
class Handed:
    """One report on its way: ``link`` and ``seq`` are its sender's, ``way`` is the link with the owner."""

    link: Link
    key: str
    seq: int
    number: int
    size: int
    way: Link
    at: float


class RelayWindow:
    """Handed reports by number. A number is used once."""

    def __init__(self, limits: RelayLimits) -> None:
        self._limits = limits
        self._handed: OrderedDict[int, Handed] = OrderedDict()
        self._by_link: Counter[Link] = Counter()
        self._by_way: Counter[Link] = Counter()
        self._last = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._handed)

    def full_for(self, link: Link, size: int) -> str:
        """Which limit keeps one more report of this sender out, "" for none."""
        if len(self._handed) >= self._limits.reports_max:
            return "reports_max"
        if self.bytes + size > self._limits.bytes_max:
            return "bytes_max"
        if self._by_link[link] >= self._limits.reports_of_link_max:
            return "reports_of_link_max"
        return ""

    def next_number(self) -> int:
        """A number for a report that is about to be handed on."""
        self._last += 1
        return self._last

    def add(self, handed: Handed) -> None:
        """It is on its way."""
        self._handed[handed.number] = handed
        self._by_link[handed.link] += 1
        self._by_way[handed.way] += 1
        self.bytes += handed.size

    def answered(self, number: int, key: str, way: Link) -> Handed | None:
        """Whose the verdict is that came on this link; None when nobody waits for it (any more)."""
        handed = self._handed.get(number)
        if handed is None or handed.key != key or handed.way is not way:
            return None
        self._remove(number)
        return handed

    def way_lost(self, way: Link) -> list[Handed]:
        """The link with an owner is down: these will not be answered in time."""
        if way not in self._by_way:
            return []
        return [self._remove(number) for number, handed in list(self._handed.items()) if handed.way is way]

    def sender_lost(self, link: Link) -> list[Handed]:
        """Nobody waits for these any more: the sender reports them again, here or elsewhere."""
        if link not in self._by_link:
            return []
        return [self._remove(number) for number, handed in list(self._handed.items()) if handed.link is link]

    def expired(self, now: float) -> list[Handed]:
        """Those that waited longer than they may; they count as unanswered."""
        late = []
        while self._handed:
            number, handed = next(iter(self._handed.items()))
            if now - handed.at < self._limits.answer_ms_max / 1000:
                break
            late.append(self._remove(number))
        return late

    def _remove(self, number: int) -> Handed:
        handed = self._handed.pop(number)
        self.bytes -= handed.size
        for count, link in ((self._by_link, handed.link), (self._by_way, handed.way)):
            count[link] -= 1
            if not count[link]:
                del count[link]
        return handed
