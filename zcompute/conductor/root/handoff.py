"""The hand-off: each build request goes to its cell until the cell has acknowledged it, whatever happens between.

Idempotent by uuid and generation, so it is repeated with back-off and carried on by the next owner. Silence never
chooses another cell: only a cell's definite refusal does (placement.py), or a conductor that knows that it has not
sent the request yet.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import gevent
import msgspec
from gevent.event import Event

from zcompute.bus import Link
from zcompute.bus.context import request_id
from zcompute.bus.errors import BusError, Busy, NotOwner, Unavailable
from zcompute.conductor.change import Change
from zcompute.conductor.root.charging import Key
from zcompute.conductor.root.grouping import Chooser, group_keys
from zcompute.conductor.root.handoff_queue import HandOffQueue, Item
from zcompute.conductor.root.intake import server_keys
from zcompute.conductor.root.placement import assign_cell, current_request, settle_deleted, settle_handed
from zcompute.conductor.root.settings import HandOffLimits
from zcompute.failpoints import failpoint
from zcompute.objects.build_request import BuildRequest
from zcompute.objects.errors import InstanceNotFound, ServiceError
from zcompute.objects.interface import Method
from zcompute.objects.messages.instances import BuildRequestMessage, InstanceDeleteRequest
from zcompute.objects.methods import INSTANCE_BUILD, INSTANCE_DELETE

log = logging.getLogger(__name__)

HOLD_RETRY_MS = 50
STOP_S_MAX = 1.0

R = TypeVar("R")


class Commits(Protocol):
    """What the hand-off wants of the ledger."""

    def commit(self, partition: int, keys: Sequence[Key], decide: Callable[[Change], R], *, timeout_ms: int) -> R: ...


class Links(Protocol):
    """What the hand-off wants of the bus' endpoint."""

    def links(
        self, *, role: str | None = None, cell: str | None = None, service_id: str | None = None
    ) -> list[Link]: ...


class Closings(Protocol):
    """What the hand-off wants to know of cells."""

    def closed(self) -> set[str]: ...

    def deleted(self, name: str) -> bool: ...

    def why_closed(self) -> str: ...


class HandOff:
    """Workers that bring build requests to their cells; started and stopped with the root role."""

    def __init__(
        self,
        ledger: Commits,
        endpoint: Links,
        choose: Chooser,
        cells: Closings,
        build_deadline_s: int,
        limits: HandOffLimits | None = None,
    ) -> None:
        self._ledger = ledger
        self._endpoint = endpoint
        self._choose = choose
        self._cells = cells
        self._build_deadline_us = build_deadline_s * 1_000_000
        self._limits = limits or HandOffLimits()
        self._queue = HandOffQueue(self._limits)
        self._wake = Event()
        self._dispatcher: gevent.Greenlet | None = None
        self._workers: dict[Item, gevent.Greenlet] = {}

    def start(self) -> None:
        self._dispatcher = gevent.spawn(self._dispatch)

    def stop(self) -> None:
        """End all workers; what they were doing is carried on by whoever owns the partitions next."""
        if self._dispatcher is not None:
            self._dispatcher.kill(timeout=STOP_S_MAX)
            self._dispatcher = None
        try:
            gevent.killall(list(self._workers.values()), timeout=STOP_S_MAX)
        except gevent.Timeout:  # raised by killall itself
            log.warning("hand-offs not ended within stop_s_max=%s", STOP_S_MAX)
        self._workers.clear()

    @property
    def room(self) -> int:
        """How many more servers may be accepted."""
        return self._limits.queue_max - len(self._queue)

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, build_requests: Iterable[BuildRequest], *, decided_here: bool) -> None:
        """Take up these build requests: ``decided_here`` by a commit of this conductor, or found in the database."""
        for build_request in build_requests:
            self._queue.put(build_request, decided_here=decided_here)
        self._wake.set()

    def drop(self, partitions: Iterable[int]) -> None:
        """Another conductor owns these now: send nothing more of them."""
        for item in self._queue.drop(set(partitions)):
            worker = self._workers.pop(item, None)
            if worker is not None:
                worker.kill(block=False)

    def hurry(self, cell: str) -> None:
        """A link to the cell came up: try again at once what waits for it."""
        self._queue.hurry(cell)
        self._wake.set()

    def hold(self, uuid: str, generation: int) -> Callable[[], None]:
        """While a refusal of this generation is decided it is not sent again: the cell, which has forgotten it, would
        take a repeat for a new one. Returns the release. Raises Busy while a call to the cell is open."""
        item = self._queue.get(uuid)
        if item is None or item.build_request.generation != generation:
            return lambda: None
        if item.sending:
            raise Busy(f"server {uuid} is just being handed over: repeat the refusal", retry_after_ms=HOLD_RETRY_MS)
        item.held = True

        def release() -> None:
            item.held = False
            item.checked = False

        return release

    def _dispatch(self) -> None:
        while True:
            self._wake.clear()
            now = time.monotonic()
            while (item := self._queue.take(now)) is not None:
                self._workers[item] = gevent.spawn(self._work, item)
            due = self._queue.next_due()
            idle_s = self._limits.idle_ms / 1000
            self._wake.wait(idle_s if due is None else min(idle_s, max(0.0, due - now)))

    def _work(self, item: Item) -> None:
        request_id.set(item.build_request.request_id or "-")
        try:
            if self._advance(item):
                self._queue.finish(item)
            else:
                self._queue.again(item, time.monotonic() + self._pause_s(item))
        except NotOwner:
            self._queue.finish(item)
        except (BusError, ServiceError) as error:
            log.warning("hand-off repeated uuid=%s cell=%s error=%s", item.build_request.uuid, item.cell, error)
            item.checked = False
            self._queue.again(item, time.monotonic() + self._pause_s(item))
        except Exception:
            log.exception("hand-off failed uuid=%s cell=%s", item.build_request.uuid, item.cell)
            item.checked = False
            self._queue.again(item, time.monotonic() + self._limits.retry_ms_max / 1000)
        finally:
            self._workers.pop(item, None)
            self._wake.set()

    def _pause_s(self, item: Item) -> float:
        """Exponential, with jitter."""
        item.attempts += 1
        limits = self._limits
        pause_ms: float = min(limits.retry_ms_max, limits.retry_ms_min * 2 ** min(item.attempts, 16))
        return pause_ms * random.uniform(0.5, 1.0) / 1000

    def _advance(self, item: Item) -> bool:
        """One attempt at all that is left to do. True when nothing is."""
        if not item.acknowledged:
            if not self._check(item):
                return True
            if not self._placed(item):
                return True
            failpoint("handoff.before_send")
            if item.build_request.cell is None or not self._send(item):
                return False
            item.acknowledged = True
            failpoint("handoff.after_send")
        uuid, generation = item.build_request.uuid, item.build_request.generation
        unwanted = self._commit(item, lambda change: settle_handed(change, uuid, generation))
        failpoint("handoff.after_settle")
        log.info("server handed over uuid=%s cell=%s generation=%s", uuid, item.cell, generation)
        if unwanted is None:
            return True
        if not self._delete(item):
            return False
        self._commit(item, lambda change: settle_deleted(change, uuid, generation))
        return True

    def _check(self, item: Item) -> bool:
        """See the row as the ledger does, where it comes from a scan or a decision's outcome is in doubt. False if
        nothing is to be handed off any more."""
        if item.checked:
            return True
        uuid = item.build_request.uuid
        current = self._commit(item, lambda change: current_request(change, uuid))
        if current is None:
            return False
        if (current.generation, current.cell) != (item.build_request.generation, item.build_request.cell):
            item.unsent = False
        item.build_request = current
        item.checked = True
        return True

    def _placed(self, item: Item) -> bool:
        """See that the request has a cell, another one where the first is out of reach and knows nothing of it yet.
        False when the request is no more."""
        build_request = item.build_request
        gone = self._cells.deleted(item.cell)  # whoever decided on it: no conductor of a deleted cell is heard
        unsent_to = build_request.cell if gone or (item.unsent and self._out_of_reach(item)) else None
        if build_request.cell is not None and unsent_to is None:
            return True
        uuid, generation = build_request.uuid, build_request.generation
        give_up_at_us = build_request.created_at_us + self._build_deadline_us
        nobody = self._cells.why_closed()
        placed = self._commit(
            item,
            lambda change: assign_cell(change, uuid, generation, unsent_to, self._choose, give_up_at_us, nobody),
        )
        if placed is None:
            return False
        if placed.cell != build_request.cell:
            log.info("cell chosen uuid=%s cell=%s generation=%s", uuid, placed.cell, placed.generation)
            item.unsent = True
            item.unreachable_since = None
        item.build_request = placed
        return True

    def _out_of_reach(self, item: Item) -> bool:
        if item.cell and item.cell in self._cells.closed():
            return True
        if self._links(item):
            item.unreachable_since = None
            return False
        now = time.monotonic()
        if item.unreachable_since is None:
            item.unreachable_since = now
        return now - item.unreachable_since >= self._limits.unreachable_ms_max / 1000

    def _links(self, item: Item) -> list[Link]:
        return self._endpoint.links(role="conductor", cell=item.cell) if item.cell else []

    def _call(self, item: Item, method: Method, message: msgspec.Struct) -> bool:
        """Ask any conductor of the cell, another one at each attempt. False when none is linked."""
        links = self._links(item)
        if not links:
            log.info("cell not linked, waiting uuid=%s cell=%s", item.build_request.uuid, item.cell)
            return False
        first = int(item.build_request.uuid[:8], 16)
        link = links[(first + item.attempts) % len(links)]
        try:
            link.call(method, message, timeout_ms=self._limits.call_ms_max)
        except NotOwner as error:  # of a partition of the cell: says nothing about this conductor
            raise Unavailable(f"cell {item.cell} found no owner: {error}") from error
        return True

    def _send(self, item: Item) -> bool:
        if item.held:
            return False
        item.unsent = item.unsent and not self._links(item)
        item.sending = True
        try:
            return self._call(item, INSTANCE_BUILD, BuildRequestMessage(build_request=item.build_request))
        finally:
            item.sending = False

    def _delete(self, item: Item) -> bool:
        build_request = item.build_request
        message = InstanceDeleteRequest(
            uuid=build_request.uuid,
            project_id=build_request.project_id,
            operation_id=f"delete-{build_request.uuid}-{build_request.generation}",
            administrator=True,  # it was accepted here, before any lock
            force=True,
        )
        try:
            return self._call(item, INSTANCE_DELETE, message)
        except InstanceNotFound:
            return True

    def _commit(self, item: Item, decide: Callable[[Change], R]) -> R:
        build_request = item.build_request
        keys: list[Any] = server_keys(build_request.uuid, build_request.project_id)
        keys += group_keys(build_request.spec.group)
        return self._ledger.commit(item.partition, keys, decide, timeout_ms=self._limits.commit_ms_max)
