"""One answer for many: who comes while a question is under way shares the next one. No timer, no idle latency."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

import gevent
from gevent.event import AsyncResult

from zcompute.db.errors import DatabaseBusy

K = TypeVar("K", bound=Hashable)
A = TypeVar("A")

WAITERS_MAX = 10_000


class _Round(Generic[K, A]):
    """Those who share one question, and what each of them asks for."""

    __slots__ = ("answer", "ends_at_s", "keys", "waiters")

    def __init__(self) -> None:
        self.keys: dict[K, None] = {}
        self.waiters = 0
        self.ends_at_s = 0.0  # of time.monotonic(): when the last of them goes
        self.answer: AsyncResult = AsyncResult()


class Gathering(Generic[K, A]):
    """Joins keys into questions of at most ``keys_max``, ``flights_max`` of them at once.

    A question is sent after all who share it have come, so its answer is as new as each of them may ask for. ``ask``
    returns the answers by key; a key without one has None. It is told when the last who waits goes: nobody needs an
    answer after that.
    """

    def __init__(
        self, ask: Callable[[list[K], float], Mapping[K, A]], *, keys_max: int, flights_max: int = 1,
        waiters_max: int = WAITERS_MAX,
    ) -> None:  # fmt: skip
        self._ask = ask
        self._keys_max = keys_max
        self._flights_max = flights_max
        self._waiters_max = waiters_max
        self._rounds: list[_Round[K, A]] = []
        self._flying: dict[gevent.Greenlet, _Round[K, A]] = {}
        self._waiting = 0
        self.asked = 0  # questions so far
        self.shared = 0  # those who had their answers from them

    @property
    def waiting(self) -> int:
        """Who waits for an answer now."""
        return self._waiting

    def get(self, key: K, timeout_s: float) -> A | None:
        """The answer for this key. Raises gevent.Timeout when there is none in time, DatabaseBusy at the limit, and
        what ``ask`` raises."""
        if self._waiting >= self._waiters_max:
            raise DatabaseBusy(f"{self._waiters_max} reads wait for the database already")
        mine = self._join(key, time.monotonic() + timeout_s)
        self._waiting += 1
        try:
            answers: Mapping[K, A] = mine.answer.get(timeout=timeout_s)
        finally:
            self._waiting -= 1
            mine.waiters -= 1
        return answers.get(key)

    def fail(self, error: Exception) -> None:
        """Everybody who waits gets this error now; what is under way is given up."""
        flying, self._flying = self._flying, {}
        rounds, self._rounds = [*flying.values(), *self._rounds], []
        for each in rounds:
            each.answer.set_exception(error)
        gevent.killall(list(flying), block=False)

    def _join(self, key: K, ends_at_s: float) -> _Round[K, A]:
        rounds = self._rounds
        if not rounds or (len(rounds[-1].keys) >= self._keys_max and key not in rounds[-1].keys):
            rounds.append(_Round())
        mine = rounds[-1]
        mine.keys[key] = None
        mine.waiters += 1
        mine.ends_at_s = max(mine.ends_at_s, ends_at_s)
        self.shared += 1
        if len(self._flying) < self._flights_max:
            flight = gevent.spawn(self._fly)
            self._flying[flight] = mine
        return mine

    def _fly(self) -> None:
        """Ask round after round until nobody is left; those of whom all have gone are not asked for."""
        me = gevent.getcurrent()
        try:
            while self._rounds and me in self._flying:
                current = self._flying[me] = self._rounds.pop(0)
                if not current.waiters:
                    continue
                self.asked += 1
                try:
                    current.answer.set(self._ask(list(current.keys), current.ends_at_s))
                except BaseException as error:
                    current.answer.set_exception(error)  # it belongs to those who asked
                    if not isinstance(error, Exception):
                        raise
        finally:
            self._flying.pop(me, None)
