"""From a committed batch to its callers: rows may leave the cache, notifications are told, verdicts leave the house."""

import logging
from collections import deque
from collections.abc import Callable, Sequence

import gevent

from zcompute.conductor.cache import RowKey
from zcompute.conductor.change import SETTLED, Note, Put, Ticket

log = logging.getLogger(__name__)

ToldCallback = Callable[[int, int, Sequence[Note]], None]


class Verdicts:
    """``settled`` and ``undo`` are what lanes call; ``listeners`` hear of notifications of partitions that are still
    ``held`` here."""

    def __init__(self, held: Callable[[int], bool]) -> None:
        self.listeners: list[ToldCallback] = []
        self._held = held
        self._waiting: deque[list[Ticket]] = deque()
        self._delivering = False

    def settled(self, tickets: list[Ticket]) -> None:
        """A lane's batch has committed. Never yields."""
        for ticket in tickets:
            if ticket.state < SETTLED:
                ticket.state = SETTLED
            for put in ticket.puts:
                if put.entry is not None:
                    put.entry.pins -= 1
        self._waiting.append(tickets)
        if not self._delivering:
            self._delivering = True
            gevent.spawn(self._deliver)

    def undo(self, partition: int, puts: Sequence[Put], spoilt: set[RowKey]) -> None:
        """A decision was refused: its rows are again what they were before it, unless an older refusal undid them."""
        for put in puts:
            entry = put.entry
            if entry is None:
                continue
            entry.pins -= 1
            if put.rowkey not in spoilt:
                entry.row, entry.revision = put.former, put.former_revision

    def _deliver(self) -> None:
        """Beside the lane, so that the next batch is under way while callbacks run."""
        try:
            while self._waiting:
                for ticket in self._waiting.popleft():
                    if ticket.notes:
                        self._tell(ticket)
                    ticket.finish()
        finally:
            self._delivering = False

    def _tell(self, ticket: Ticket) -> None:
        if not self._held(ticket.partition):
            return
        for listener in self.listeners:
            try:
                listener(ticket.partition, ticket.first_n, ticket.notes)
            except Exception:  # one listener's mistake must not keep verdicts back
                log.exception("notifications not passed on partition=%s", ticket.partition)
