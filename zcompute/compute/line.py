"""The reports of one instance, in order, of which one at a time is on its way."""

from bisect import insort
from dataclasses import dataclass, field

from zcompute.compute.outbox import Entry


@dataclass
class Frame:
    """What was sent at once to one lane of one owner: the sequences that are unanswered."""

    seqs: set[int]
    sent_at: float


@dataclass(eq=False)
class Line:
    """Entries of one key. The first of ``waiting`` is the only one that may be sent, and then the only one unanswered:
    so whoever refuses it for now (busy, not_owner) cannot have taken a later one, and what comes meanwhile folds into
    what waits. ``parked`` ones (not_yet) let the others pass: it may be these that bring the grant."""

    key: str
    owner: str
    waiting: list[int] = field(default_factory=list)  # rising
    parked: dict[int, float] = field(default_factory=dict)  # until when
    sent: int = 0  # unanswered; it may have been folded since
    peer: str = ""  # to whom it was sent: the owner, or a relay
    sent_times: int = 0  # since the last answer
    frame: Frame | None = None  # with which it was sent
    lane: int = 0  # to which it was sent, or for which it is queued
    queued: bool = False
    due: float | None = None  # sent: it goes again then; otherwise the line waits until then
    refused_times: int = 0

    def add(self, seq: int) -> None:
        """One more, or one that is parked no longer."""
        insort(self.waiting, seq)

    def remove(self, seq: int) -> None:
        """It is owed no more."""
        if self.parked.pop(seq, None) is None:
            self.waiting.remove(seq)

    @property
    def ready(self) -> bool:
        """Whether its first may be sent."""
        return bool(self.waiting) and not self.sent and self.due is None

    @property
    def over(self) -> bool:
        """Whether nothing of it is owed or unanswered."""
        return not self.waiting and not self.parked and not self.sent


@dataclass(eq=False)
class Item:
    """One owed entry."""

    entry: Entry
    line: Line
    invalid_times: int = 0


@dataclass
class Pace:
    """A lane that said busy: nothing goes there until ``held_until``, then one report to ask, until it takes one."""

    held_until: float = 0.0
    times: int = 0
