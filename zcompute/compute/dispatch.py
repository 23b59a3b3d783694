"""Which report goes to which owner, and when: pure, time is passed in (seconds of a monotonic clock).

Per owner at most one frame is unanswered; what comes meanwhile goes with the next. A report without a verdict (the
frame or its answer was lost) goes again after ``answer_ms_max``; ``not_yet`` and ``not_owner`` put it back for a while.
A frame that waits for stragglers longer than ``straggler_ms`` does not hold back the rest.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from zcompute.compute.outbox import Entry
from zcompute.compute.settings import Settings
from zcompute.objects.report import FINAL_VERDICTS, VERDICT_INVALID, VERDICT_NOT_OWNER


@dataclass
class _Item:
    entry: Entry
    owner: str
    due: float | None = None  # None: queued; else not before, or in flight until
    refused_times: int = 0
    invalid_times: int = 0


@dataclass
class _Frame:
    """What is unanswered at one owner."""

    seqs: set[int]
    sent_at: float


class Dispatch:
    """The state of every owed report. ``owner_of`` maps an instance's uuid to a service id ("" = nobody)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._owner_of: Callable[[str], str] = lambda _: ""
        self._items: dict[int, _Item] = {}
        self._queues: dict[str, dict[int, None]] = {}
        self._frames: dict[str, _Frame] = {}
        self._timers: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, entry: Entry) -> None:
        """A new entry of the outbox."""
        item = _Item(entry, self._owner_of(entry.key))
        self._items[entry.seq] = item
        self._queue(item)

    def discard(self, seq: int) -> None:
        """An entry that was folded or retracted."""
        item = self._items.pop(seq, None)
        if item is not None and item.due is None:
            del self._queues[item.owner][seq]

    def remap(self, owner_of: Callable[[str], str]) -> None:
        """A new map: whatever changed its owner goes to the new one at once."""
        self._owner_of = owner_of
        for item in self._items.values():
            owner = owner_of(item.entry.key)
            if owner != item.owner:
                if item.due is None:
                    del self._queues[item.owner][item.entry.seq]
                item.owner, item.refused_times = owner, 0
                self._queue(item)

    def take(self, owner: str, now: float, room: int) -> list[Entry]:
        """The next frame for this owner, at most ``room`` reports; they count as sent at ``now``."""
        queue = self._queues.get(owner)
        if not queue or room <= 0 or not self._gate_open(owner, now):
            return []
        seqs = sorted(queue)[: min(room, self._settings.frame_reports_max)]
        self._frames[owner] = _Frame(set(seqs), now)
        taken = []
        for seq in seqs:
            del queue[seq]
            item = self._items[seq]
            self._wait(item, now + self._settings.answer_ms_max / 1000)
            taken.append(item.entry)
        return taken

    def untake(self, owner: str, entries: Iterable[Entry]) -> None:
        """The link did not take these after all."""
        frame = self._frames.get(owner)
        for entry in entries:
            if frame is not None:
                frame.seqs.discard(entry.seq)
            item = self._items.get(entry.seq)
            if item is not None and item.due is not None and item.owner == owner:
                self._queue(item)

    def answered(self, owner: str, seq: int, verdict: str, now: float) -> bool:
        """A verdict came. True: it is final, the outbox may forget the entry. Unknown sequences are no news."""
        frame = self._frames.get(owner)
        if frame is not None:
            frame.seqs.discard(seq)
        item = self._items.get(seq)
        if item is None:
            return False
        if verdict == VERDICT_INVALID:
            # The bus may have resent it over a link whose epochs the peer had not seen again yet.
            item.invalid_times += 1
        if verdict in FINAL_VERDICTS and (
            verdict != VERDICT_INVALID or item.invalid_times >= self._settings.invalid_times_max
        ):
            self.discard(seq)
            return True
        if item.owner == owner:
            if item.due is None:
                del self._queues[owner][seq]
            self._wait(item, now + self._delay_s(item, verdict))
        return False

    def link_lost(self, owner: str) -> None:
        """The owner's process is another now: nothing that was sent to it will be answered."""
        frame = self._frames.pop(owner, None)
        for seq in frame.seqs if frame is not None else ():
            item = self._items.get(seq)
            if item is not None and item.owner == owner and item.due is not None:
                self._queue(item)

    def tick(self, now: float) -> float | None:
        """Queue what is due; answers when to come again (None: nothing waits)."""
        while self._timers and self._timers[0][0] <= now:
            due, seq = heapq.heappop(self._timers)
            item = self._items.get(seq)
            if item is not None and item.due == due:
                self._queue(item)
        nexts = [self._timers[0][0]] if self._timers else []
        nexts += [
            frame.sent_at + self._settings.straggler_ms / 1000
            for owner, frame in self._frames.items()
            if frame.seqs and self._queues.get(owner) and not self._gate_open(owner, now)
        ]
        return min(nexts, default=None)

    def owners(self) -> list[str]:
        """Owners for whom something is queued."""
        return [owner for owner, queue in self._queues.items() if queue and owner]

    # -- states ----------------------------------------------------------------------------------------------------

    def _gate_open(self, owner: str, now: float) -> bool:
        frame = self._frames.get(owner)
        return frame is None or not frame.seqs or now - frame.sent_at >= self._settings.straggler_ms / 1000

    def _queue(self, item: _Item) -> None:
        item.due = None
        self._queues.setdefault(item.owner, {})[item.entry.seq] = None

    def _wait(self, item: _Item, due: float) -> None:
        item.due = due
        heapq.heappush(self._timers, (due, item.entry.seq))

    def _delay_s(self, item: _Item, verdict: str) -> float:
        settings = self._settings
        if verdict not in (VERDICT_NOT_OWNER, VERDICT_INVALID):
            return settings.not_yet_ms / 1000
        delay_ms = min(settings.refused_ms_max, settings.refused_ms_min << min(item.refused_times, 10))
        item.refused_times += 1
        return delay_ms / 1000
