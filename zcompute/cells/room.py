"""Room for the rows of all lists under way in a process: what does not fit waits its turn, for a bounded time."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from gevent.event import Event

from zcompute.bus.errors import Busy
from zcompute.measure import Measure


class Room:
    """So many rows at once, of so many lists; first come, first served."""

    def __init__(self, rows_max: int, lists_max: int, wait_ms_max: int, retry_after_ms: int) -> None:
        self.rows = 0
        self.lists = 0
        self.refused = 0
        self._rows_max = rows_max
        self._lists_max = lists_max
        self._wait_ms_max = wait_ms_max
        self._retry_after_ms = retry_after_ms
        self._waiting: deque[tuple[int, Event]] = deque()

    @contextmanager
    def held(self, rows: int, timeout_ms: int) -> "Iterator[Share]":
        """Room for one list. Raises Busy when there is none in time."""
        share = Share(self, min(rows, self._rows_max))
        self._enter(share.rows, min(timeout_ms, self._wait_ms_max))
        try:
            yield share
        finally:
            self.lists -= 1
            self.give_back(share.rows)

    def _enter(self, rows: int, timeout_ms: int) -> None:
        if not self._waiting and self._fits(rows):
            self._take(rows)
            return
        came_in = Event()
        turn = (rows, came_in)
        self._waiting.append(turn)
        try:
            came_in.wait(timeout_ms / 1000)
        except BaseException:
            if came_in.is_set():
                self.lists -= 1
                self.give_back(rows)
            else:
                self._waiting.remove(turn)
                self._let_in()
            raise
        if not came_in.is_set():
            self._waiting.remove(turn)
            self.refused += 1
            self._let_in()
            raise Busy("too many lists are under way", retry_after_ms=self._retry_after_ms)

    def measures(self) -> Iterable[Measure]:
        """How full it is."""
        yield Measure("lists_in_flight", "Lists of servers under way", float(self.lists))
        yield Measure("list_rows_in_flight", "Rows that they hold or have asked for", float(self.rows))
        yield Measure("lists_refused", "Lists that found no room and were told Busy", self.refused, counter=True)

    def give_back(self, rows: int) -> None:
        """Rows that are held no more."""
        self.rows -= rows
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            rows, came_in = self._waiting.popleft()
            self._take(rows)
            came_in.set()

    def _fits(self, rows: int) -> bool:
        return self.lists < self._lists_max and self.rows + rows <= self._rows_max

    def _take(self, rows: int) -> None:
        self.rows += rows
        self.lists += 1


class Share:
    """What one list holds."""

    __slots__ = ("_room", "rows")

    def __init__(self, room: Room, rows: int) -> None:
        self._room = room
        self.rows = rows

    def shrink_to(self, rows: int) -> None:
        """It needs no more than this."""
        if rows < self.rows:
            spare, self.rows = self.rows - rows, rows
            self._room.give_back(spare)
