"""Calls that are handed on to the owner, bounded: what waits for another conductor never holds all workers."""

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from gevent.lock import BoundedSemaphore

from zcompute.bus.errors import Busy
from zcompute.cells.router import PartitionRouter
from zcompute.objects.interface import Method
from zcompute.objects.partition import partition_of


@dataclass(frozen=True)
class ForwardSettings:
    """``at_once_max`` is half of the workers of the pool ``calls`` (bus.Limits.calls_workers): the other half always
    gets on, since what it does (a commit, an answer) waits for no other conductor."""

    at_once_max: int = 128
    call_ms_max: int = 30_000
    busy_retry_ms: int = 50


class Owning(Protocol):
    """What forwarding asks of the ledger."""

    def owns(self, partition: int) -> bool: ...


class Forwarding:
    """Hands calls on to the owner of a key: once, so a fellow conductor's call is not handed on again.

    A forwarded call waits in a worker here for a worker there. Were all workers allowed to wait so, two conductors
    full of one another's calls would stand still until the deadline.
    """

    def __init__(
        self, router: PartitionRouter, ledger: Owning, cell: str, settings: ForwardSettings = ForwardSettings()
    ) -> None:
        self._router = router
        self._ledger = ledger
        self._cell = cell
        self._settings = settings
        self._slots = BoundedSemaphore(settings.at_once_max)

    def needed(self, key: str, context: Any) -> bool:
        """Whether the key's partition is another's, and the caller is no fellow conductor, who has handed it on."""
        if self._ledger.owns(partition_of(key)):
            return False
        peer = context.peer
        return (peer.role, peer.cell) != ("conductor", self._cell)

    def call(self, key: str, method: Method, request: msgspec.Struct, context: Any, *, lasts_ms: int = 0) -> Any:
        """The owner's answer, within the caller's deadline. ``lasts_ms``: what it takes by its nature. Raises Busy at
        once when ``at_once_max`` calls are under way, and what the router raises."""
        if not self._slots.acquire(blocking=False):
            raise Busy(
                f"at_once_max ({self._settings.at_once_max}) calls are being handed on here: try again, at the owner",
                retry_after_ms=self._settings.busy_retry_ms,
            )
        try:
            timeout_ms = max(1, min(self._settings.call_ms_max, context.remaining_ms()))
            return self._router.call(key, method, request, timeout_ms=timeout_ms, lasts_ms=lasts_ms)
        finally:
            self._slots.release()
