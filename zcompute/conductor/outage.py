"""The database away, told once: when it goes, and when it is back with how long it took, whoever noticed how often."""

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class Outage:
    """Shared by the parts of one incarnation that go on trying until the database answers: each says by name when it
    fails and when it gets on again. Over when the last of them does."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._failing: set[str] = set()
        self._since_s = 0.0

    def lost(self, part: str, error: Exception) -> None:
        """The part has failed, perhaps once more."""
        if not self._failing:
            self._since_s = self._clock_s()
            log.warning("database lost part=%s error=%s", part, error)
        elif part not in self._failing:
            log.info("database lost for another part=%s error=%s", part, error)
        self._failing.add(part)

    @property
    def lasting_s(self) -> float:
        """How long some part has been without the database; 0.0 when all are well."""
        return self._clock_s() - self._since_s if self._failing else 0.0

    def back(self, part: str) -> None:
        """The part has got on. Cheap when nothing was lost."""
        if not self._failing:
            return
        self._failing.discard(part)
        if not self._failing:
            log.warning("database is back after_ms=%d", (self._clock_s() - self._since_s) * 1000)
