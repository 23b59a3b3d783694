"""One decision: run it upon the newest decided rows, and keep what it put for the batch that will carry it.

The hot path of a conductor: thousands of times a second, without a yield. What a decision leaves behind until its
commit are its ticket, its puts and little else.
"""

from collections.abc import Callable, Mapping, Sequence

from zcompute.conductor.cache import Entry, RowKey, Rows
from zcompute.conductor.change import Change, Note, Put, Ticket
from zcompute.conductor.errors import LedgerMisuse, invalid_row
from zcompute.conductor.rendering import render_put
from zcompute.conductor.settings import LedgerLimits
from zcompute.objects.base import pack
from zcompute.objects.notification import Notification
from zcompute.objects.stored import Pack, pack_at


class Decider:
    """``decide`` runs a ticket's decision; ``listeners`` are called with every change that put rows."""

    def __init__(self, cell: str, limits: LedgerLimits, now_us: Callable[[], int]) -> None:
        self.listeners: list[Callable[[Change], None]] = []
        self.deciding = False
        self.decisions = 0
        self._limits = limits
        self._now_us = now_us
        self._publisher = f"conductor:{cell}"
        self._release = ""
        self._packed: Pack = pack

    def write_at(self, release: str) -> None:
        """What is decided from now on is stored as this release level has it ("": as it is here)."""
        if release != self._release:
            self._release, self._packed = release, pack_at(release)

    def decide(
        self, ticket: Ticket, partition: int, owner_epoch: int, rows: Rows, named: Mapping[RowKey, Entry]
    ) -> None:
        """Fill in the ticket: its result or error, and what it writes. The rows in memory are its images from now on.

        ``rows`` are all that are in memory of the partition, ``named`` those that the ticket names. Never yields.
        """
        change = Change(partition, owner_epoch, self._now_us(), rows.get, named, self._packed, ticket)
        decide = ticket.decide
        if decide is None:
            raise LedgerMisuse("a ticket was decided twice")
        puts: Sequence[Put] = ()
        self.deciding = True
        try:
            ticket.result = decide(change)
            if change.puts:
                for listener in self.listeners:
                    listener(change)
            puts = self._rendered(change)
            if change.notifications:
                ticket.notes = [self._note(notification, change) for notification in change.notifications]
        except Exception as error:  # noqa: BLE001  # whatever decide raises is the verdict of its caller
            ticket.error, ticket.result = error, None
            change.appended = change.purged = puts = ()
        finally:
            self.deciding = False
        self._keep(ticket, change, puts)

    def _keep(self, ticket: Ticket, change: Change, puts: Sequence[Put]) -> None:
        size_bytes = 0
        for put in puts:
            entry = put.entry
            if entry is not None:
                entry.row, entry.revision = put.image, put.revision
                entry.pins += 1
            size_bytes += put.size_bytes
        if change.appended:
            size_bytes += sum([put.size_bytes for put in change.appended])
            puts = [*puts, *change.appended]
        notes = ticket.notes
        if notes:
            size_bytes += sum([len(note.body) for note in notes])
        ticket.puts = puts
        ticket.purges = change.purged
        ticket.touched = change.touched
        ticket.rows, ticket.size_bytes = len(puts) + len(notes), size_bytes
        self.decisions += 1

    def _rendered(self, change: Change) -> list[Put]:
        """The changes as rows. Raises InvalidRequest for values that no row can hold, or too many of them."""
        puts = [put for put in change.puts.values() if put.image is not None or put.former is not None]
        rows = [*puts, *change.appended] if change.appended else puts
        for put in rows:
            try:
                render_put(put, change.partition, self._packed)
            except Exception as error:
                raise invalid_row(put.table.name, f"{type(error).__name__}: {error}") from error
        limits = self._limits
        if len(rows) == 1 and rows[0].size_bytes <= limits.batch_bytes_max:
            return puts
        if len(rows) > limits.decision_rows_max:
            raise invalid_row(rows[0].table.name, f"{len(rows)} rows in one change, at most {limits.decision_rows_max}")
        size_bytes = sum(put.size_bytes for put in rows)
        if size_bytes > limits.batch_bytes_max:
            limit = limits.batch_bytes_max
            raise invalid_row(rows[0].table.name, f"{size_bytes} bytes in one change, at most {limit}")
        return puts

    def _note(self, notification: Notification, change: Change) -> Note:
        """A change is never refused for what is told of it: a payload over the limit is left out, and that is said."""
        notification.created_at_us = change.now_us
        notification.publisher_id = notification.publisher_id or self._publisher
        body = self._packed(notification)
        if len(body) > self._limits.notification_bytes_max:
            notification.payload, notification.truncated = b"", True
            body = self._packed(notification)
        return Note(notification.created_at_us, notification.event_type, notification.instance_uuid, body)
