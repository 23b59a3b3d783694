"""What the root keeps and requests need again and again: kept for a while, so that a boot costs no call for it."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from zcompute.api.deadline import Deadline

T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    found: T | None
    read_at_s: float


class Known(Generic[T]):
    """Answers by id, None for what there is not. At most ``kept_max``, the longest unused goes first; what was found is
    believed for ``age_s``, what was not for ``absent_age_s``. When that is over one request asks, the others go on with
    what is known until it is answered."""

    def __init__(
        self,
        ask: Callable[[str, Deadline], T | None],
        *,
        kept_max: int,
        age_s: float,
        absent_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask = ask
        self._kept_max = kept_max
        self._age_s = age_s
        self._absent_age_s = absent_age_s
        self._clock = clock
        self._entries: OrderedDict[str, _Entry[T]] = OrderedDict()

    def get(self, key: str, deadline: Deadline) -> T | None:
        """Raises what asking raises; what was known then stays to be asked for."""
        entry = self._entries.get(key)
        now_s = self._clock()
        if entry is None:
            found = self._ask(key, deadline)
            self._entries[key] = _Entry(found, self._clock())
            if len(self._entries) > self._kept_max:
                self._entries.popitem(last=False)
            return found
        self._entries.move_to_end(key)
        if now_s - entry.read_at_s < (self._absent_age_s if entry.found is None else self._age_s):
            return entry.found
        former_s, entry.read_at_s = entry.read_at_s, now_s
        try:
            entry.found = self._ask(key, deadline)
        except BaseException:
            entry.read_at_s = former_s
            raise
        return entry.found

    def drop(self, key: str) -> None:
        """It has changed: ask the next time."""
        self._entries.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)
