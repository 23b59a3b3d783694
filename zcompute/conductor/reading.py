"""Clients' reads at a conductor: current ones only while it is certain that its primary is the primary."""

import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from zcompute.bus.errors import Unavailable
from zcompute.db.replicas.need import CURRENT, Kind, Need
from zcompute.db.replicas.reading import Reading
from zcompute.db.view import Joined, View

R = TypeVar("R")
K = TypeVar("K", bound=Hashable)
A = TypeVar("A")

READ_S_MAX = 30.0  # for a caller that names no deadline


class ClientReads:
    """What handlers read for clients. What the ledger needs to decide is read at the primary, not here.

    Reads raise StoreError when they cannot be answered, and Unavailable without a held lease: a primary that was
    replaced elsewhere has had no beat of ours that began in the last ``lease_ms``, for which a promotion waits.
    """

    def __init__(self, reading: Reading, lease_held: Callable[[], bool]) -> None:
        self._reading = reading
        self._lease_held = lease_held

    def read(self, context: Any, work: Callable[[View], R], need: Need = CURRENT) -> R:
        """Run ``work`` on a View that shows what is needed; all of it on one server."""
        self._check(need)
        found = self._reading.read(need, _ends_at_s(context), work)
        self._check(need)
        return found

    def get(self, context: Any, joined: Joined[K, A], key: K, need: Need = CURRENT) -> A | None:
        """One answer by its key, which is not to be changed: others may have the same object."""
        self._check(need)
        found = self._reading.get(need, _ends_at_s(context), joined, key)
        self._check(need)
        return found

    def _check(self, need: Need) -> None:
        if need.kind is not Kind.STALE and not self._lease_held():
            raise Unavailable("this conductor's lease is in doubt, so its reads may not be current: ask another")


def _ends_at_s(context: Any) -> float:
    deadline = getattr(context, "deadline", None)
    latest = time.monotonic() + READ_S_MAX
    return latest if deadline is None else min(latest, float(deadline))
