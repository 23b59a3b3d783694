"""Which report goes to which owner, and when: pure, time is passed in (seconds of a monotonic clock).

Per instance one report is unanswered at a time, per owner and lane of the owner one frame: what comes meanwhile waits,
and folds in the outbox, and goes with the next. A lane that is slow, or says busy, holds up its own instances only. A
report without a verdict (the frame or its answer was lost) goes again after ``answer_ms_max``, later and later;
``busy`` and ``not_owner`` put the instance back for a while, ``not_yet`` the report alone. A frame that waits for
stragglers longer than ``straggler_ms`` does not hold back the rest of its lane.

An owner that no link leads to is reached over a relay (``peer``): its answers count as the owner's. As one report of an
instance is unanswered at a time, there are two ways for an instance only after a time-out or a loss, and then the
owner's watermark (generation, epoch, sequence) refuses the older that comes behind the newer.
"""

import heapq
from collections.abc import Callable, Iterable
from itertools import count, islice

from zcompute.bus import Ack
from zcompute.compute.line import Frame, Item, Line, Pace
from zcompute.compute.outbox import Entry
from zcompute.compute.settings import Settings
from zcompute.objects.report import (
    FINAL_VERDICTS,
    VERDICT_BUSY,
    VERDICT_INVALID,
    VERDICT_NOT_OWNER,
)

DOUBLINGS_MAX = 10
ROOM_MAX = 1_000_000


class Dispatch:
    """The state of every owed report. ``owner_of`` maps an instance's uuid to a service id ("" = nobody)."""

    def __init__(self, settings: Settings, lane_of: Callable[[str, str], int] = lambda owner, key: 0) -> None:
        self._settings = settings
        self._lane_of = lane_of
        self._owner_of: Callable[[str], str] = lambda _: ""
        self._items: dict[int, Item] = {}
        self._lines: dict[str, Line] = {}
        self._queues: dict[str, dict[int, dict[str, Line]]] = {}  # by owner, lane and key
        self._frames: dict[tuple[str, int], Frame] = {}
        self._paces: dict[tuple[str, int], Pace] = {}
        self._timers: list[tuple[float, int, Line]] = []
        self._given_up: list[tuple[str, str, int]] = []
        self._timer_numbers = count()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, entry: Entry) -> None:
        """A new entry of the outbox."""
        line = self._lines.get(entry.key)
        if line is None:
            line = self._lines[entry.key] = Line(entry.key, self._owner_of(entry.key))
        self._items[entry.seq] = Item(entry, line)
        line.add(entry.seq)
        self._settle(line)

    def on_its_way(self, key: str) -> int:
        """The sequence of the instance's report that is unanswered, 0 for none."""
        line = self._lines.get(key)
        return 0 if line is None else line.sent

    def discard(self, seq: int) -> None:
        """An entry that was folded or retracted. If it is on its way, its line still waits for the answer."""
        item = self._items.pop(seq, None)
        if item is not None:
            item.line.remove(seq)
            self._settle(item.line)

    def remap(self, owner_of: Callable[[str], str]) -> None:
        """A new map: whatever changed its owner goes to the new one at once, in the order of its line."""
        self._owner_of = owner_of
        for line in list(self._lines.values()):
            owner = owner_of(line.key)
            if owner != line.owner:
                self._unqueue(line)
                self._give_up(line)
                line.owner, line.refused_times = owner, 0
                for seq in list(line.parked):
                    self._unpark(line, seq)
                self._settle(line)

    def take(
        self,
        owner: str,
        now: float,
        room: int,
        lane_room: Callable[[int], int] = lambda lane: ROOM_MAX,
        peer: str = "",
    ) -> list[Entry]:
        """The next reports for this owner, at most ``room`` and ``lane_room`` of each lane; sent at ``now`` to ``peer``
        (the owner, unless it is a relay)."""
        taken: list[Entry] = []
        lanes = self._queues.get(owner, {})
        for lane in list(lanes):
            if room <= len(taken):
                break
            if not self._gate_open(owner, lane, now):
                continue
            most = min(room - len(taken), self._settings.frame_reports_max, lane_room(lane))
            if (owner, lane) in self._paces:
                most = min(most, 1)
            if most > 0:
                lines = list(islice(lanes[lane].values(), most))
                taken += self._send(owner, lane, lines, now, peer or owner)
                if lane in lanes:  # another is first the next time
                    lanes[lane] = lanes.pop(lane)
        return taken

    def _send(self, owner: str, lane: int, lines: list[Line], now: float, peer: str) -> list[Entry]:
        frame = self._frames[owner, lane] = Frame({line.waiting[0] for line in lines}, now)
        entries = []
        for line in lines:
            self._unqueue(line)
            line.sent, line.frame, line.peer = line.waiting[0], frame, peer
            again_ms = self._settings.answer_ms_max << min(line.sent_times, DOUBLINGS_MAX)
            line.sent_times += 1
            self._wait(line, now + min(again_ms, self._settings.answer_again_ms_max) / 1000)
            entries.append(self._items[line.sent].entry)
        return entries

    def untake(self, owner: str, entries: Iterable[Entry]) -> None:
        """The link did not take these after all."""
        for entry in entries:
            line = self._lines.get(entry.key)
            if line is not None and line.owner == owner and line.sent == entry.seq:
                line.sent_times -= 1
                self._unsend(line)
                self._settle(line)

    def relayed_for(self, peer: str, ack: Ack) -> str:
        """The owner for whom this peer was a relay when it was sent what this answers; "" when it was none."""
        line = self._lines.get(ack.key)
        sent = line is not None and line.sent == ack.seq and line.peer == peer
        return line.owner if line is not None and sent and line.owner != peer else ""

    def answered(self, peer: str, ack: Ack, now: float) -> bool:
        """An answer came. True: it is final, the outbox may forget the entry. Unknown sequences are no news."""
        line = self._lines.get(ack.key)
        if line is None:
            return False
        was_sent = bool(line.sent) and line.peer == peer and line.sent == ack.seq
        owner = line.owner if was_sent else peer
        if line.owner == owner:
            self._pace(owner, ack.lane or line.lane, ack, now)
        if was_sent:
            self._unsend(line)
            line.sent_times = 0
        final = self._judged(line, owner, ack, now, was_sent)
        self._settle(line)
        return final

    def _judged(self, line: Line, owner: str, ack: Ack, now: float, was_sent: bool) -> bool:
        item = self._items.get(ack.seq)
        if item is None or item.line is not line:
            return False
        if ack.verdict == VERDICT_INVALID:
            # The bus may have resent it over a link whose epochs the peer had not seen again yet.
            item.invalid_times += 1
        if ack.verdict in FINAL_VERDICTS and (
            ack.verdict != VERDICT_INVALID or item.invalid_times >= self._settings.invalid_times_max
        ):
            line.refused_times = 0
            self.discard(ack.seq)
            return True
        if line.owner != owner or not was_sent or ack.verdict == VERDICT_BUSY:
            return False  # another's word, or a late one; a busy lane holds all its lines itself
        if ack.verdict in (VERDICT_NOT_OWNER, VERDICT_INVALID):
            settings = self._settings
            delay_ms = min(settings.refused_ms_max, settings.refused_ms_min << min(line.refused_times, DOUBLINGS_MAX))
            line.refused_times += 1
            self._wait(line, now + delay_ms / 1000)
        else:
            due = now + self._settings.not_yet_ms / 1000
            line.waiting.remove(ack.seq)
            line.parked[ack.seq] = due
            self._push(due, line)
        return False

    def given_up(self) -> list[tuple[str, str, int]]:
        """(peer, key, sequence) of what was sent and will not be offered there again. Told once."""
        given_up, self._given_up = self._given_up, []
        return given_up

    def link_lost(self, owner: str) -> None:
        """The owner's process is another now: nothing that was sent to it will be answered, its lanes are others."""
        for name in [name for name in self._paces if name[0] == owner]:
            del self._paces[name]
        for line in list(self._lines.values()):
            if line.owner == owner:
                if line.sent and line.peer == owner:
                    self._unsend(line)
                line.sent_times = 0
                self._settle(line)

    def way_changed(self, owner: str, peer: str) -> None:
        """From now on the owner is reached over this peer: what went a way that is gone goes again, and what slowed
        that way down says nothing of this one. What a relay was given is the relay's while its link is up."""
        for name in [name for name in self._paces if name[0] == owner]:
            del self._paces[name]
        if peer != owner:
            self._send_again(line for line in self._lines.values() if line.owner == owner and line.peer == owner)

    def relay_lost(self, peer: str) -> None:
        """The link with this peer is down: what it was to hand on goes again, by another way."""
        self._send_again(line for line in self._lines.values() if line.peer == peer and line.owner != peer)

    def _send_again(self, lines: Iterable[Line]) -> None:
        for line in [line for line in lines if line.sent]:
            self._give_up(line)
            line.sent_times = 0
            self._settle(line)

    def tick(self, now: float) -> float | None:
        """Queue what is due; answers when to come again (None: nothing waits)."""
        while self._timers:
            due, _, line = self._timers[0]
            waits = due == line.due or due in line.parked.values()
            if waits and due > now:
                break
            heapq.heappop(self._timers)
            if waits:
                self._come_due(line, now)
        nexts = [self._timers[0][0]] if self._timers else []
        for owner, lanes in self._queues.items():
            for lane in lanes:
                opens = self._opens_at(owner, lane)
                if opens > now:
                    nexts.append(opens)
        return min(nexts, default=None)

    def owners(self) -> list[str]:
        """Owners for whom something is queued."""
        return [owner for owner, lanes in self._queues.items() if lanes and owner]

    # -- states ----------------------------------------------------------------------------------------------------

    def _opens_at(self, owner: str, lane: int) -> float:
        """When something may go to this lane, as far as its frame and its pace are concerned."""
        frame, pace = self._frames.get((owner, lane)), self._paces.get((owner, lane))
        by_frame = frame.sent_at + self._settings.straggler_ms / 1000 if frame is not None and frame.seqs else 0.0
        return max(by_frame, pace.held_until) if pace is not None else by_frame

    def _gate_open(self, owner: str, lane: int, now: float) -> bool:
        return now >= self._opens_at(owner, lane)

    def _pace(self, owner: str, lane: int, ack: Ack, now: float) -> None:
        """Busy slows the lane down, more each time it is asked in vain; anything else says that it works."""
        if ack.verdict != VERDICT_BUSY:
            self._paces.pop((owner, lane), None)
            return
        pace = self._paces.setdefault((owner, lane), Pace())
        if now >= pace.held_until:  # else another report of the same frame
            delay_ms = (ack.retry_after_ms or self._settings.busy_ms_min) << min(pace.times, DOUBLINGS_MAX)
            pace.held_until = now + min(delay_ms, self._settings.busy_ms_max) / 1000
            pace.times += 1

    def _settle(self, line: Line) -> None:
        """Have the line in the queue where it belongs, or in none; a line that is over is forgotten."""
        if line.queued and not (line.ready and line.lane == self._lane_of(line.owner, line.key)):
            self._unqueue(line)
        if line.ready and not line.queued:
            line.lane = self._lane_of(line.owner, line.key)
            line.queued = True
            self._queues.setdefault(line.owner, {}).setdefault(line.lane, {})[line.key] = line
        elif line.over and self._lines.get(line.key) is line:  # its timer may outlive it, and meet the next of its key
            del self._lines[line.key]

    def _unqueue(self, line: Line) -> None:
        if line.queued:
            line.queued = False
            lanes = self._queues[line.owner]
            del lanes[line.lane][line.key]
            if not lanes[line.lane]:
                del lanes[line.lane]
            if not lanes:
                del self._queues[line.owner]

    def _unsend(self, line: Line) -> None:
        """Nothing of it is on its way (any more), and nothing keeps it waiting."""
        frame, line.frame, line.due = line.frame, None, None
        if frame is not None:
            frame.seqs.discard(line.sent)
            if not frame.seqs and self._frames.get((line.owner, line.lane)) is frame:
                del self._frames[line.owner, line.lane]
        line.sent = 0

    def _unpark(self, line: Line, seq: int) -> None:
        del line.parked[seq]
        line.add(seq)

    def _wait(self, line: Line, due: float) -> None:
        line.due = due
        self._push(due, line)

    def _push(self, due: float, line: Line) -> None:
        heapq.heappush(self._timers, (due, next(self._timer_numbers), line))

    def _come_due(self, line: Line, now: float) -> None:
        for seq in [seq for seq, due in line.parked.items() if due <= now]:
            self._unpark(line, seq)
        if line.due is not None and line.due <= now:
            if line.sent in self._items:
                self._unsend(line)
            else:
                self._give_up(line)
        self._settle(line)

    def _give_up(self, line: Line) -> None:
        """What is on its way is waited for no more: it was folded, goes another way, or another owns the instance."""
        if line.sent:
            self._given_up.append((line.peer, line.key, line.sent))
        self._unsend(line)
