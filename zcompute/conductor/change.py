"""What a decide function sees and does (Change), and what its caller waits for (Ticket)."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gevent.event import Event

from zcompute.conductor.cache import Entry, RowKey
from zcompute.conductor.errors import LedgerMisuse, NotLoaded, WrongPartition, deadline_exceeded
from zcompute.db.batch import HandOver, Purge
from zcompute.db.tables import Key, TableCodec
from zcompute.objects.base import VersionedObject
from zcompute.objects.notification import Notification

log = logging.getLogger(__name__)

T = TypeVar("T", bound=VersionedObject)
Keys = Sequence[tuple[TableCodec[Any], Key]]

QUEUED = 0
DECIDED = 1
SETTLED = 2  # its batch has committed, its verdict is on the way
DONE = 3


class Put:
    """One row's change by one decision: what it was before (``former``), what it becomes (None = deleted)."""

    __slots__ = ("former", "former_revision", "image", "revision", "row", "rowkey", "size_bytes", "table")

    def __init__(self, table: TableCodec[Any], rowkey: RowKey, former: Any | None, former_revision: int) -> None:
        self.table = table
        self.rowkey = rowkey
        self.former = former
        self.former_revision = former_revision
        self.image: Any | None = None
        self.revision = former_revision
        self.row: tuple[Any, ...] | None = None
        self.size_bytes = 0


class Note:
    """A notification of a decision, packed. Its number is given when its batch is built: what is taken back before
    leaves no gap."""

    __slots__ = ("body", "created_at_us", "event_type", "instance_uuid")

    def __init__(self, notification: Notification, body: bytes) -> None:
        self.created_at_us = notification.created_at_us
        self.event_type = notification.event_type
        self.instance_uuid = notification.instance_uuid
        self.body = body


class Change:
    """The newest decided rows of one partition, for one decide function, which must not yield.

    Rows are immutable by agreement: put a copy (``msgspec.structs.replace``), never the object that ``get`` returned.
    ``request_id`` names the client's request that is carried out, for whoever tells of the change.
    """

    __slots__ = (
        "_rows",
        "appended",
        "notifications",
        "now_us",
        "owner_epoch",
        "partition",
        "purged",
        "puts",
        "request_id",
        "touched",
    )

    def __init__(self, partition: int, owner_epoch: int, now_us: int, rows: Callable[[RowKey], Entry | None]) -> None:
        self.partition = partition
        self.owner_epoch = owner_epoch
        self.now_us = now_us
        self._rows = rows
        self.puts: dict[RowKey, Put] = {}
        self.appended: list[Put] = []
        self.notifications: list[Notification] = []
        self.purged: list[Purge] = []
        self.request_id = ""
        self.touched: set[RowKey] = set()

    def loaded(self, table: TableCodec[Any], key: Key) -> bool:
        """Whether ``get`` may be asked for this row."""
        return self._rows((table.name, key)) is not None

    def get(self, table: TableCodec[T], key: Key) -> T | None:
        """The newest row, None when there is none. Raises NotLoaded for a key that was not named at submit."""
        rowkey = (table.name, key)
        put = self.puts.get(rowkey)
        if put is not None:
            staged: T | None = put.image
            return staged
        row: T | None = self._entry(rowkey).row
        return row

    def put(self, table: TableCodec[T], obj: T) -> None:
        """Insert or update. Sets ``obj.revision`` to one above the former row's (1 for a new one)."""
        key = table.key_of(obj)
        put = self._staged(table, (table.name, key))
        if obj is put.former:
            raise LedgerMisuse(
                f"{table.name} {key}: put a copy (msgspec.structs.replace), not the row that get returned"
            )
        self._check_home(table, key, obj)
        if has_revision(table):
            put.revision = put.former_revision + 1
            obj.revision = put.revision  # type: ignore[attr-defined]  # not every table has one: checked above
        put.image = obj

    def delete(self, table: TableCodec[Any], key: Key) -> None:
        """Delete the row; deleting a row that is not there changes nothing."""
        put = self._staged(table, (table.name, key))
        put.image = None
        put.revision = put.former_revision

    def append(self, table: TableCodec[T], obj: T) -> None:
        """Insert a row of a table that is only ever inserted into, without having read whether it is there.

        For keys that are new by the decision itself; one that is there all the same fails the change alone.
        """
        if table.update_columns:
            raise LedgerMisuse(f"{table.name} has rows that change: read, then put")
        key = table.key_of(obj)
        self._check_home(table, key, obj)
        if self.loaded(table, key):
            raise LedgerMisuse(f"{table.name} {key} was read: put it")
        put = Put(table, (table.name, key), None, 0)
        put.image = obj
        self.appended.append(put)

    def notify(self, notification: Notification) -> None:
        """Tell of this change, in its own transaction, behind what earlier decisions of the partition told."""
        self.notifications.append(notification)

    def purge(self, first: int, last: int) -> None:
        """Delete the partition's notifications from ``first`` to ``last``."""
        self.purged.append(Purge(self.partition, first, last))

    def _check_home(self, table: TableCodec[T], key: Key, obj: T) -> None:
        home = table.home_of(obj)
        if home != self.partition:
            raise WrongPartition(f"{table.name} {key} belongs to partition {home}, the change is of {self.partition}")

    def _entry(self, rowkey: RowKey) -> Entry:
        entry = self._rows(rowkey)
        if entry is None:
            raise NotLoaded(f"{rowkey[0]} {rowkey[1]} was not named when the change was submitted: name it in keys")
        self.touched.add(rowkey)
        return entry

    def _staged(self, table: TableCodec[Any], rowkey: RowKey) -> Put:
        put = self.puts.get(rowkey)
        if put is None:
            entry = self._entry(rowkey)
            put = self.puts[rowkey] = Put(table, rowkey, entry.row, entry.revision)
        return put


_revisioned: dict[str, bool] = {}


def has_revision(table: TableCodec[Any]) -> bool:
    """Whether the table's objects carry a revision (claims do not: they are only inserted and deleted)."""
    known = _revisioned.get(table.name)
    if known is None:
        known = _revisioned[table.name] = "revision" in table.kind.__struct_fields__
    return known


class Ticket:
    """One submitted decision: done when its verdict may leave, or when it definitely or possibly failed.

    ``result`` is what decide returned; ``error`` what it raised, or NotOwner (outcome unknown), InvalidRequest (the
    database refused its rows), Busy (a change that it was decided upon was refused: submit again).
    """

    __slots__ = (
        "_callbacks",
        "_event",
        "asked_at_s",
        "decide",
        "error",
        "first_n",
        "hand_over",
        "keys",
        "notes",
        "partition",
        "purges",
        "puts",
        "result",
        "size_bytes",
        "state",
        "touched",
    )

    def __init__(
        self,
        partition: int,
        keys: Keys,
        decide: Callable[[Change], Any] | None,
    ) -> None:
        self.partition = partition
        self.keys = keys
        self.decide = decide
        self.state = QUEUED
        self.asked_at_s = time.monotonic()
        self.result: Any = None
        self.error: BaseException | None = None
        self.puts: Sequence[Put] = ()
        self.notes: Sequence[Note] = ()
        self.first_n = 0  # of the first note; given with the batch
        self.purges: Sequence[Purge] = ()
        self.touched: set[RowKey] = set()
        self.size_bytes = 0
        self.hand_over: HandOver | None = None
        self._event: Event | None = None
        self._callbacks: list[Callable[[Ticket], None]] | None = None

    @property
    def done(self) -> bool:
        return self.state == DONE

    @property
    def rows(self) -> int:
        """How many rows it changes, as far as batches are measured."""
        return len(self.puts) + len(self.notes)

    def on_done(self, callback: "Callable[[Ticket], None]") -> None:
        """Call ``callback(ticket)`` once it is done (at once if it is). Callbacks must not block."""
        if self.state == DONE:
            self._call(callback)
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def wait(self, timeout_ms: int) -> Any:
        """The result; raises the error, or DeadlineExceeded (the decision itself goes on)."""
        if self.state != DONE:
            if self._event is None:
                self._event = Event()
            if not self._event.wait(timeout_ms / 1000):
                raise deadline_exceeded(f"a change of partition {self.partition}", timeout_ms)
        if self.error is not None:
            raise self.error
        return self.result

    def finish(self, error: BaseException | None = None) -> None:
        """The ledger's word, once: later ones are ignored. ``error`` None keeps what decide said."""
        if self.state == DONE:
            return
        self.state = DONE
        if error is not None:
            self.error = error
            self.result = None
        self.decide = None
        self.puts = self.notes = self.purges = ()
        if self._event is not None:
            self._event.set()
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            self._call(callback)

    def _call(self, callback: "Callable[[Ticket], None]") -> None:
        try:
            callback(self)
        except Exception:  # one caller's mistake must not keep the others' verdicts back
            log.exception("ticket callback failed partition=%s", self.partition)
