"""Asking schedulers: the least busy linked one, another within the deadline when it does not answer."""

import logging
import random
import time
from collections import Counter

from zcompute.bus import Endpoint, Link
from zcompute.bus.errors import BusError, Unavailable
from zcompute.objects.errors import SchedulerStale
from zcompute.objects.messages.hosts import SelectReply, SelectRequest
from zcompute.objects.methods import SELECT_DESTINATIONS

log = logging.getLogger(__name__)


class Schedulers:
    """``select`` asks one scheduler after the other. Load is measured by the calls of this conductor under way."""

    def __init__(self, endpoint: Endpoint, cell: str) -> None:
        self._endpoint = endpoint
        self._cell = cell
        self._under_way: Counter[str] = Counter()

    def links(self) -> list[Link]:
        """Linked schedulers, the least busy first, equals in random order."""
        links = self._endpoint.links(role="scheduler", cell=self._cell)
        random.shuffle(links)
        return sorted(links, key=lambda link: self._under_way[link.name])

    def select(self, request: SelectRequest, *, timeout_ms: int, one_ms_max: int) -> SelectReply:
        """Hosts for the request. Raises Unavailable when no linked scheduler has answered within the deadline."""
        deadline = time.monotonic() + timeout_ms / 1000
        links = self.links()
        last = "none is linked"
        for link in links:
            left_ms = int((deadline - time.monotonic()) * 1000)
            if left_ms <= 0:
                break
            self._under_way[link.name] += 1
            try:
                reply: SelectReply = link.call(SELECT_DESTINATIONS, request, timeout_ms=min(left_ms, one_ms_max))
                return reply
            except (BusError, SchedulerStale) as error:
                last = f"{link.name}: {type(error).__name__}: {error}"
            finally:
                self._finished(link.name)
        raise Unavailable(f"of {len(links)} linked schedulers none has answered: {last}")

    def _finished(self, name: str) -> None:
        self._under_way[name] -= 1
        if self._under_way[name] <= 0:
            del self._under_way[name]
