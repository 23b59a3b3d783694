"""What the cell owes the root: rows written with the change itself, sent until acknowledged, then deleted."""

import logging
import random
from collections import deque
from collections.abc import Iterator

import gevent
import msgspec

from zcompute.bus.context import request_id
from zcompute.bus.errors import BusError, Busy, InvalidRequest, NotOwner
from zcompute.cells.router import PartitionRouter
from zcompute.conductor.cell.resizing import Settling
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.change import Change, Keys
from zcompute.conductor.env import ConductorEnv
from zcompute.conductor.tasks.build_walk import OUTBOX_REFUSED, refusal_pending
from zcompute.conductor.tasks.charge import OUTBOX_RESIZED
from zcompute.conductor.tasks.delete_walk import OUTBOX_DELETED
from zcompute.conductor.tasks.imaging import OUTBOX_IMAGED
from zcompute.db.errors import StoreError
from zcompute.db.tables import INSTANCES, ROOT_OUTBOX
from zcompute.failpoints import failpoint
from zcompute.log import REPEATED
from zcompute.measure import Measure
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.errors import ServiceError
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.messages.images import ImageUpdateRequest
from zcompute.objects.messages.region import MappingReleaseRequest
from zcompute.objects.methods import IMAGE_UPDATE, MAPPING_DELETED, MAPPING_REFUSED
from zcompute.objects.partition import partition_of

log = logging.getLogger(__name__)

KINDS = frozenset({OUTBOX_DELETED, OUTBOX_REFUSED, OUTBOX_RESIZED, OUTBOX_IMAGED})

EntryKey = tuple[str, str, int]


def key_of(entry: OutboxEntry) -> EntryKey:
    """The row's key."""
    return (entry.instance_uuid, entry.kind, entry.generation)


def handed_back(instance: Instance | None, generation: int, now_us: int) -> Instance | None:
    """A refused instance after the root's acknowledgement: deleted. None when there is nothing to change. Pure.

    The row stays as a tombstone, so that a build request of the same generation that was still on its way finds it
    and builds nothing.
    """
    if instance is None or instance.mapping_generation != generation or not refusal_pending(instance):
        return None
    return msgspec.structs.replace(
        instance,
        vm_state=VM_DELETED,
        task_state=None,
        deleted_at_us=now_us,
        updated_at_us=now_us,
        decided=instance.decided + 1,
    )


class RootOutbox:
    """Bounded senders over one queue; a row that was not acknowledged is queued again after a growing pause."""

    def __init__(self, env: ConductorEnv, root_router: PartitionRouter, settings: CellSettings) -> None:
        self._env = env
        self._root_router = root_router
        self._settings = settings
        self._settling = Settling(env.ledger, root_router, env.cell, settings)
        self._known: dict[EntryKey, OutboxEntry] = {}
        self._queue: deque[EntryKey] = deque()
        self._left: set[int] = set()  # partitions of which rows did not fit
        self._refused = 0
        self._senders: set[gevent.Greenlet] = set()
        self._stopped = False

    def stop(self) -> None:
        """End all senders; the rows stay for the next owner."""
        self._stopped = True
        gevent.killall(list(self._senders), block=False)

    def check_room(self, under_way: int) -> None:
        """Before work is taken in that will owe the root a row; ``under_way`` such works may still owe theirs. So the
        rows that wait never pass ``outbox_rows_max``, but by those of partitions that were taken over. Raises Busy."""
        rows_max = self._settings.outbox_rows_max
        if not self._left and len(self._known) + under_way < rows_max:
            return
        self._refused += 1
        raise Busy(
            f"outbox_rows_max ({rows_max}) words are owed to the root cell, which does not answer: try again later",
            retry_after_ms=self._settings.outbox_busy_ms,
        )

    def measures(self, now_us: int) -> Iterator[Measure]:
        """What waits for the root here."""
        oldest = next(iter(self._known.values()), None)
        age_s = max(0.0, (now_us - oldest.created_at_us) / 1_000_000) if oldest is not None else 0.0
        yield Measure("root_outbox_rows", "Words owed to the root", len(self._known))
        yield Measure("root_outbox_rows_max", "At so many nothing more is taken in", self._settings.outbox_rows_max)
        yield Measure("root_outbox_oldest_seconds", "Age of the oldest of these", age_s)
        yield Measure("root_outbox_refused", "Builds and deletes refused at the limit", self._refused, counter=True)

    def owed(self, entry: OutboxEntry) -> None:
        """A committed row. One of a kind that is not known here waits for an owner of the release that wrote it."""
        key = key_of(entry)
        if entry.kind not in KINDS:
            log.error("owed to the root, and not known here: left uuid=%s kind=%s", key[0], entry.kind, extra=REPEATED)
            return
        if self._stopped or key in self._known:
            return
        if len(self._known) >= self._settings.outbox_rows_max:
            log.error("outbox_rows_max=%s reached, left in the database for now uuid=%s", len(self._known), key[0])
            self._left.add(partition_of(key[0]))
            return
        self._known[key] = entry
        self._push(key)

    def lost(self, partitions: list[int]) -> None:
        """The new owners send these."""
        gone = set(partitions)
        for key in [key for key in self._known if partition_of(key[0]) in gone]:
            del self._known[key]

    def __len__(self) -> int:
        return len(self._known)

    def _push(self, key: EntryKey) -> None:
        self._queue.append(key)
        if len(self._senders) < self._settings.outbox_senders_max and not self._stopped:
            self._senders.add(gevent.spawn(self._run_sender))

    def _run_sender(self) -> None:
        """It is discarded in the turn in which it finds the queue empty, or a push might count on it in vain."""
        try:
            self._send_all()
        finally:
            self._senders.discard(gevent.getcurrent())

    def _send_all(self) -> None:
        """Until the queue is empty; each sender pauses by itself while the root does not answer."""
        failures = 0
        while self._queue:
            key = self._queue.popleft()
            entry = self._known.get(key)
            if entry is None:
                continue
            request_id.set(entry.request_id or "-")
            try:
                if not self._tell(key, entry):
                    self._queue.append(key)
                    continue
            except NotOwner:
                pass  # the new owner sends it again; should it be us, the gain brings it back
            except Exception as error:  # noqa: BLE001  # the row is durable: whatever went wrong, it is sent again
                failures += 1
                expected = isinstance(error, BusError | ServiceError)
                log.log(
                    logging.INFO if expected else logging.ERROR, "root not told yet uuid=%s kind=%s error=%s: %s",
                    entry.instance_uuid, entry.kind, type(error).__name__, error,
                )  # fmt: skip
                self._queue.append(key)
                self._pause(failures)
                continue
            failures = 0
            if self._known.get(key) is entry:
                del self._known[key]
            if self._left and len(self._known) <= self._settings.outbox_rows_max // 2:
                self._take_up_left()

    def _tell(self, key: EntryKey, entry: OutboxEntry) -> bool:
        """Until the root has committed it; False when there is another word of it by now. Raises what goes wrong."""
        failpoint("outbox.before_send")
        word = self._settling.send(entry) if entry.kind == OUTBOX_RESIZED else None
        if word is None:
            self._send(entry)
        failpoint("outbox.after_send")
        told = word is None or self._settling.forget(entry, key, word)
        if word is None:
            self._delete(entry)
        failpoint("outbox.after_delete")
        return told

    def _take_up_left(self) -> None:
        """There is room again for what was left at outbox_rows_max: read it from the database."""
        left, self._left = self._left, set()
        partitions = [partition for partition in left if self._env.ledger.owns(partition)]
        after: EntryKey | None = None
        rows = self._settings.scan_rows
        while partitions and not self._left:
            try:
                page = self._env.store.scan(ROOT_OUTBOX, partitions=partitions, limit=rows, after=after)
            except StoreError as error:
                log.info("rows owed to the root not read, trying again error=%s", error, extra=REPEATED)
                self._left.update(partitions)
                return
            for entry in page:
                self.owed(entry)
            if len(page) < rows:
                return
            after = key_of(page[-1])

    def _pause(self, failures: int) -> None:
        settings = self._settings
        pause_ms = min(settings.outbox_retry_ms_max, settings.outbox_retry_ms_min << min(failures, 10))
        gevent.sleep(pause_ms * random.uniform(0.5, 1.0) / 1000)

    def _send(self, entry: OutboxEntry) -> None:
        if entry.kind == OUTBOX_IMAGED:
            self._send_outcome(entry)
            return
        method = MAPPING_REFUSED if entry.kind == OUTBOX_REFUSED else MAPPING_DELETED
        request = MappingReleaseRequest(
            uuid=entry.instance_uuid,
            project_id=entry.project_id,
            cell=self._env.cell,
            generation=entry.generation,
            reason=entry.reason,
            build_request=entry.build_request,
        )
        self._root_router.call(entry.project_id, method, request, timeout_ms=self._settings.outbox_send_ms_max)

    def _send_outcome(self, entry: OutboxEntry) -> None:
        """To the image's owner. One that the root says cannot be is told once: it would refuse it ever again."""
        if entry.image is None:
            return
        request = ImageUpdateRequest(cell=self._env.cell, server_uuid=entry.instance_uuid, outcome=entry.image)
        try:
            image_id = entry.image.image_id
            self._root_router.call(image_id, IMAGE_UPDATE, request, timeout_ms=self._settings.outbox_send_ms_max)
        except InvalidRequest as error:
            log.error("word of an image refused uuid=%s image=%s error=%s", entry.instance_uuid, image_id, error)

    def _delete(self, entry: OutboxEntry) -> None:
        """Acknowledged: the row goes; with a refusal's, in the same commit, the instance ends here."""
        key = key_of(entry)
        uuid = entry.instance_uuid
        refused = entry.kind == OUTBOX_REFUSED
        keys: Keys = [(ROOT_OUTBOX, key), *([(INSTANCES, (uuid,))] if refused else [])]

        def decide(change: Change) -> None:
            if change.get(ROOT_OUTBOX, key) is None:
                return
            change.delete(ROOT_OUTBOX, key)
            if refused:
                instance = handed_back(change.get(INSTANCES, (uuid,)), entry.generation, change.now_us)
                if instance is not None:
                    change.put(INSTANCES, instance)

        self._env.ledger.commit(partition_of(uuid), keys, decide, timeout_ms=self._settings.commit_ms_max)
