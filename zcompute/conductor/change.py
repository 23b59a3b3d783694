"""What a decide function sees and does (Change), and what its caller waits for (Ticket)."""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from gevent.event import Event

from zcompute.conductor.cache import Entry, RowKey
from zcompute.conductor.errors import LedgerMisuse, NotLoaded, WrongPartition, deadline_exceeded
from zcompute.db.batch import HandOver, Purge
from zcompute.db.tables import Key, Row, TableCodec
from zcompute.objects.base import VersionedObject, pack
from zcompute.objects.notification import Notification
from zcompute.objects.stored import Pack

log = logging.getLogger(__name__)

T = TypeVar("T")
V = TypeVar("V", bound=VersionedObject)
Keys = Sequence[tuple[TableCodec[Any], Key]]

QUEUED = 0
DECIDED = 1
SETTLED = 2  # its batch has committed, its verdict is on the way
DONE = 3


class Put(msgspec.Struct, eq=False, gc=False):
    """One row's change by one decision: what it was before (``former``), what it becomes (None = deleted).

    As rendered (zcompute.conductor.rendering): an update has ``fields``, those that changed, and ``encoded``, the
    columns among them that are packed; anything else the whole ``row``. ``entry`` is the row's place in the cache,
    None for rows that are only appended.
    """

    table: TableCodec[Any]
    rowkey: RowKey
    former: Any | None
    former_revision: int
    entry: Entry | None = None
    image: Any | None = None
    revision: int = 0
    row: Row | None = None
    fields: tuple[str, ...] | None = None
    encoded: dict[str, Any] | None = None
    differs: tuple[str, ...] | None = None  # the fields that its decision says it changed
    packed: Pack = pack
    size_bytes: int = 0
    rewritten: tuple[str, ...] = ()  # fields that are written although they mean the same


class Note(msgspec.Struct, eq=False, gc=False):
    """A notification of a decision, packed. Its number is given when its batch is built: what is taken back before
    leaves no gap."""

    created_at_us: int
    event_type: str
    instance_uuid: str
    body: bytes


class Change:
    """The newest decided rows of one partition, for one decide function, which must not yield. ``rows`` finds any row
    that is in the cache, ``named`` has those that were named at submit.

    Rows are immutable by agreement: put a copy (``msgspec.structs.replace``), never the object that ``get`` returned.
    ``request_id`` names the client's request that is carried out, for whoever tells of the change; ``packed`` packs
    payloads at the level at which the change is stored; ``ticket`` is the one that is decided.

    What few changes have (rows appended, notifications, purges) is a list from its first element on: until then there
    is none, because thousands of changes wait for their commits, and the garbage collector walks them all.
    """

    __slots__ = (
        "_named",
        "_rows",
        "appended",
        "notifications",
        "now_us",
        "owner_epoch",
        "packed",
        "partition",
        "purged",
        "puts",
        "request_id",
        "ticket",
        "touched",
    )

    def __init__(
        self,
        partition: int,
        owner_epoch: int,
        now_us: int,
        rows: Callable[[RowKey], Entry | None],
        named: Mapping[RowKey, Entry] = MappingProxyType({}),
        packed: Pack = pack,
        ticket: Any = None,
    ) -> None:
        self.partition = partition
        self.packed = packed
        self.owner_epoch = owner_epoch
        self.now_us = now_us
        self._rows = rows
        self._named = named
        self.puts: dict[RowKey, Put] = {}
        self.appended: list[Put] | tuple[()] = ()
        self.notifications: list[Notification] | tuple[()] = ()
        self.purged: list[Purge] | tuple[()] = ()
        self.request_id = ""
        self.ticket = ticket
        self.touched: Collection[RowKey] = ()  # what was read: mostly one row

    def loaded(self, table: TableCodec[Any], key: Key) -> bool:
        """Whether ``get`` may be asked for this row."""
        return self._find((table.name, key)) is not None

    def _find(self, rowkey: RowKey) -> Entry | None:
        entry = self._named.get(rowkey)
        return self._rows(rowkey) if entry is None else entry

    def get(self, table: TableCodec[V], key: Key) -> V | None:
        """The newest row, None when there is none. Raises NotLoaded for a key that was not named at submit."""
        rowkey = (table.name, key)
        put = self.puts.get(rowkey) if self.puts else None
        if put is not None:
            staged: V | None = put.image
            return staged
        row: V | None = self._entry(rowkey).row
        return row

    def put(self, table: TableCodec[V], obj: V, differs: tuple[str, ...] | None = None) -> None:
        """Insert or update. Sets ``obj.revision`` to one above the former row's (1 for a new one).

        ``differs`` names every field in which a row that is there may differ from its former image, revision included,
        for who knows them: they are written whether they do or not, and no other is compared. Plain columns only.
        """
        key = table.key_of(obj)
        rowkey = (table.name, key)
        again = bool(self.puts) and rowkey in self.puts
        put = self._staged(table, rowkey)
        if obj is put.former:
            raise LedgerMisuse(
                f"{table.name} {key}: put a copy (msgspec.structs.replace), not the row that get returned"
            )
        self._check_home(table, key, obj, put.former)
        if table.revisioned:
            put.revision = put.former_revision + 1
            obj.revision = put.revision  # type: ignore[attr-defined]  # not every table has one: checked above
        put.image = obj
        put.differs = None if again else differs

    def rewrite(self, table: TableCodec[V], key: Key, fields: tuple[str, ...]) -> None:
        """Write these packed fields of a row anew, at the level at which changes are stored now."""
        row = self.get(table, key)
        if row is not None:
            self.put(table, msgspec.structs.replace(row))
            self.puts[(table.name, key)].rewritten = fields

    def delete(self, table: TableCodec[Any], key: Key) -> None:
        """Delete the row; deleting a row that is not there changes nothing."""
        put = self._staged(table, (table.name, key))
        put.image = put.differs = None
        put.revision = put.former_revision

    def append(self, table: TableCodec[V], obj: V) -> None:
        """Insert a row of a table that is only ever inserted into, without having read whether it is there.

        For keys that are new by the decision itself; one that is there all the same fails the change alone.
        """
        if table.update_columns:
            raise LedgerMisuse(f"{table.name} has rows that change: read, then put")
        key = table.key_of(obj)
        self._check_home(table, key, obj, None)
        if self.loaded(table, key):
            raise LedgerMisuse(f"{table.name} {key} was read: put it")
        put = Put(table, (table.name, key), None, 0)
        put.image = obj
        self.appended = _with(self.appended, put)

    def notify(self, notification: Notification) -> None:
        """Tell of this change, in its own transaction, behind what earlier decisions of the partition told."""
        self.notifications = _with(self.notifications, notification)

    def notify_first(self, notifications: Sequence[Notification]) -> None:
        """Tell these before what the decision told itself."""
        self.notifications = [*notifications, *self.notifications]

    def purge(self, first: int, last: int) -> None:
        """Delete the partition's notifications from ``first`` to ``last``."""
        self.purged = _with(self.purged, Purge(self.partition, first, last))

    def _check_home(self, table: TableCodec[V], key: Key, obj: V, former: V | None) -> None:
        of = table.partition_key
        if former is not None and of is not None and of(obj) == of(former):
            return  # as the row is at home here, so is its next image
        home = table.home_of(obj)
        if home != self.partition:
            raise WrongPartition(f"{table.name} {key} belongs to partition {home}, the change is of {self.partition}")

    def _entry(self, rowkey: RowKey) -> Entry:
        entry = self._named.get(rowkey) or self._rows(rowkey)
        if entry is None:
            raise NotLoaded(f"{rowkey[0]} {rowkey[1]} was not named when the change was submitted: name it in keys")
        touched = self.touched
        if not touched:
            self.touched = (rowkey,)
        elif isinstance(touched, set):
            touched.add(rowkey)
        elif rowkey not in touched:
            self.touched = {*touched, rowkey}
        return entry

    def _staged(self, table: TableCodec[Any], rowkey: RowKey) -> Put:
        put = self.puts.get(rowkey)
        if put is None:
            entry = self._entry(rowkey)
            put = self.puts[rowkey] = Put(table, rowkey, entry.row, entry.revision, entry, None, entry.revision)
        return put


def _with(items: list[T] | tuple[()], item: T) -> list[T]:
    """The list with one more, begun with the first."""
    if isinstance(items, list):
        items.append(item)
        return items
    return [item]


class Ticket(msgspec.Struct, eq=False):
    """One submitted decision: done when its verdict may leave, or when it definitely or possibly failed.

    ``result`` is what decide returned; ``error`` what it raised, or NotOwner (outcome unknown), InvalidRequest (the
    database refused its rows), Busy (a change that it was decided upon was refused: submit again).

    Who submits thousands a second makes a kind of its own, which carries what its ``decide`` and its ``callback`` work
    on, in place of closures (``Ledger.take``).
    """

    partition: int
    keys: Keys
    decide: Callable[[Change], Any] | None
    state: int = QUEUED
    asked_at_s: float = msgspec.field(default_factory=time.monotonic)
    result: Any = None
    error: BaseException | None = None
    puts: Sequence[Put] = ()
    notes: Sequence[Note] = ()
    first_n: int = 0  # of the first note; given with the batch
    purges: Sequence[Purge] = ()
    touched: Collection[RowKey] = ()
    rows: int = 0  # how many it changes, as far as batches are measured
    size_bytes: int = 0
    hand_over: HandOver | None = None
    callback: "Callable[[Ticket], None] | None" = None  # the first of those to be called once it is done
    _event: Event | None = None
    _callbacks: "list[Callable[[Ticket], None]] | tuple[()]" = ()

    @property
    def done(self) -> bool:
        return self.state == DONE

    def on_done(self, callback: "Callable[[Ticket], None]") -> None:
        """Call ``callback(ticket)`` once it is done (at once if it is). Callbacks must not block."""
        if self.state == DONE:
            self._call(callback)
        elif self.callback is None:
            self.callback = callback
        else:
            self._callbacks = _with(self._callbacks, callback)

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
        callback = self.callback
        if callback is not None:
            self.callback = None
            try:  # as _call does, without a call for each of thousands of reports
                callback(self)
            except Exception:
                log.exception("ticket callback failed partition=%s", self.partition)
        if self._callbacks:
            callbacks, self._callbacks = self._callbacks, ()
            for each in callbacks:
                self._call(each)

    def _call(self, callback: "Callable[[Ticket], None]") -> None:
        try:
            callback(self)
        except Exception:  # one caller's mistake must not keep the others' verdicts back
            log.exception("ticket callback failed partition=%s", self.partition)
