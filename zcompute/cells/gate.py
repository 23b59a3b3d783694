"""Whether a cell is asked at all: one that has not answered gets no more questions until a probe of ours comes back.

Without it each list would wait for a hung cell until its deadline, and so many greenlets, open calls and pages of the
other cells would wait with it as requests arrive in that time. Pure: the time is passed in.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from zcompute.measure import Measure

OPEN_MAX = 256  # questions to one cell at once
DOUBT_QUESTIONS = 8  # so many questions since the last answer,
DOUBT_S = 1.0  # the first of them so long ago, and the cell is probed before their time is over
LATE_S_MIN = 0.9  # a question with less time than this says nothing about the cell


@dataclass
class Gate:
    """One cell. ``silent``: it is not asked. ``refused`` and ``late`` count questions for ever."""

    open: int = 0
    silent: bool = False
    silent_since_s: float = 0.0
    refused: int = 0
    late: int = 0
    _unanswered: int = 0
    _unanswered_since_s: float = 0.0
    _heard_s: float = float("-inf")

    def enter(self, now_s: float) -> bool:
        """A question is about to go out; False when it is not to."""
        if self.silent or self.open >= OPEN_MAX:
            self.refused += 1
            return False
        if not self._unanswered:
            self._unanswered_since_s = now_s
        self._unanswered += 1
        self.open += 1
        return True

    def in_doubt(self, now_s: float) -> bool:
        """Whether it is time for a probe: many questions, and no answer to any. They may all be heavy ones."""
        waits_s = now_s - self._unanswered_since_s
        return not self.silent and self._unanswered >= DOUBT_QUESTIONS and waits_s >= DOUBT_S

    def leave(self) -> None:
        """The question is over, whatever came of it."""
        self.open -= 1
        self._unanswered = min(self._unanswered, self.open)

    def answered(self, now_s: float) -> bool:
        """The cell has said something, if only an error of its own. True when it was silent before."""
        self._heard_s = now_s
        self._unanswered = 0
        was_silent, self.silent = self.silent, False
        return was_silent

    def was_late(self, asked_at_s: float, now_s: float) -> bool:
        """A question was not answered in its time. True when the cell thereby falls silent: it has not answered
        another one meanwhile."""
        self.late += 1
        return self.was_not_answered(asked_at_s, now_s)

    def was_not_answered(self, asked_at_s: float, now_s: float) -> bool:
        """The same of a probe, which is no question of a client's."""
        if self.silent or self._heard_s >= asked_at_s or now_s - asked_at_s < LATE_S_MIN:
            return False
        self.silent = True
        self.silent_since_s = now_s
        return True

    def measures(self, cell: str) -> Iterable[Measure]:
        """What is known of the cell, by its name."""
        labels = {"cell": cell}
        yield Measure("cell_unreachable", "1: the cell does not answer", float(self.silent), labels=labels)
        yield Measure("cell_open", "Questions to the cell without an answer", float(self.open), labels=labels)
        yield Measure("cell_late", "Questions not answered in time", self.late, counter=True, labels=labels)
        yield Measure("cell_refused", "Questions that were not asked", self.refused, counter=True, labels=labels)
