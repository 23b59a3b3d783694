"""What a resize owes its project's quota: the root is asked before anything is done, and told when it comes to less."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from zcompute.bus.errors import BusError, Busy, DeadlineExceeded, LinkDown, LinkReset, NotOwner, Unavailable
from zcompute.cells.router import PartitionRouter
from zcompute.conductor.cell.settings import CellSettings
from zcompute.conductor.change import Change, Keys, Ticket
from zcompute.conductor.env import ConductorEnv
from zcompute.conductor.ledger import Ledger
from zcompute.conductor.tasks.charge import OUTBOX_RESIZED, charged, largest, resized
from zcompute.conductor.tasks.decision import Decision, Snapshot, apply, owe
from zcompute.db.tables import INSTANCES, ROOT_OUTBOX, TASKS, Key
from zcompute.failpoints import failpoint
from zcompute.objects.cell import OutboxEntry
from zcompute.objects.flavor import Flavor
from zcompute.objects.instance import VM_DELETED, Instance
from zcompute.objects.messages.quotas import ServerAmount
from zcompute.objects.methods import QUOTA_RAISE, QUOTA_SETTLE
from zcompute.objects.partition import partition_of
from zcompute.objects.quota import Amount

log = logging.getLogger(__name__)

TASKS_READ_MAX = 3

R = TypeVar("R")

_AWAY = (DeadlineExceeded, LinkDown, LinkReset, Unavailable, NotOwner)


def amount_with(instance: Instance, flavor: Flavor) -> Amount | None:
    """What the server is to be charged while it becomes of this flavor; None when that is no more than it is. Pure."""
    present = charged(instance, None)
    together = largest([instance.flavor, flavor])
    wanted = Amount(instances=1, cores=max(present.cores, together.cores), ram_mb=max(present.ram_mb, together.ram_mb))
    return None if wanted == present else wanted


def words_of(cell: str, instance: Instance, amount: Amount) -> ServerAmount:
    """As the cell tells the root. Pure."""
    return ServerAmount(
        uuid=instance.uuid,
        project_id=instance.project_id,
        cell=cell,
        generation=instance.mapping_generation,
        decided=instance.decided,
        cores=amount.cores,
        ram_mb=amount.ram_mb,
    )


class Raising:
    """So many questions to the root at once and no more: a root that does not answer holds nothing else up."""

    def __init__(
        self,
        env: ConductorEnv,
        root_router: PartitionRouter,
        owed: Callable[[OutboxEntry], None],
        settings: CellSettings,
    ) -> None:
        self._env = env
        self._root_router = root_router
        self._owed = owed
        self._settings = settings
        self._asking = 0

    def ask(self, instance: Instance, amount: Amount, context: Any) -> None:
        """Have the server charged this much from now on. Raises QuotaExceeded, Busy, and Unavailable where the root
        does not answer: nothing has been done then but, perhaps, the raise, which the caller gives back."""
        if self._asking >= self._settings.raises_max:
            raise Busy(
                f"raises_max ({self._settings.raises_max}) resizes wait for the root cell: try again",
                retry_after_ms=self._settings.outbox_busy_ms,
            )
        self._asking += 1
        try:
            failpoint("resize.before_raise")
            timeout_ms = max(1, min(self._settings.raise_ms_max, context.remaining_ms()))
            request = words_of(self._env.cell, instance, amount)
            self._root_router.call(instance.project_id, QUOTA_RAISE, request, timeout_ms=timeout_ms)
            failpoint("resize.after_raise")
        except _AWAY as error:
            raise Unavailable(
                f"the root cell, which keeps the project's quota, does not answer: {type(error).__name__}; "
                "the server was not resized"
            ) from error
        finally:
            self._asking -= 1

    def give_back(self, asked: Instance, request_id: str) -> None:
        """A resize was not taken in, or may not have been: the root is owed the word of what the server is charged.

        By a decision of its own, so that the word is newer than the raise. Where that fails the root's reconciler puts
        it right.
        """
        key = (INSTANCES, (asked.uuid,))

        def decide(change: Change) -> OutboxEntry | None:
            instance = change.get(*key)
            if instance is None or instance.mapping_generation != asked.mapping_generation:
                return None
            decided = apply(change, Snapshot(instance, None), Decision(instance=instance)).instance or instance
            entry = resized(decided, request_id, change.now_us)
            owe(change, entry)
            return entry

        try:
            outbox = (ROOT_OUTBOX, (asked.uuid, OUTBOX_RESIZED, asked.mapping_generation))
            ticket = self._env.ledger.submit(partition_of(asked.uuid), [key, outbox], decide)
            ticket.on_done(self._committed)
            ticket.wait(self._settings.commit_ms_max)
        except BusError as error:
            log.warning("raise not given back, left to the reconciler uuid=%s error=%s: %s", asked.uuid,
                        type(error).__name__, error)  # fmt: skip

    def _committed(self, ticket: Ticket) -> None:
        if ticket.error is None and ticket.result is not None:
            self._owed(ticket.result)


@dataclass(frozen=True)
class Word:
    """What the root is told of a server, and the task that was under way when that was read; None: nothing to tell."""

    amount: ServerAmount | None
    task_id: str | None = None


class Settling:
    """What is owed is what the rows say when it is sent: a later change of them is owed once more."""

    def __init__(self, ledger: Ledger, root_router: PartitionRouter, cell: str, settings: CellSettings) -> None:
        self._ledger = ledger
        self._root_router = root_router
        self._cell = cell
        self._settings = settings

    def send(self, entry: OutboxEntry) -> Word:
        """Tell the root, until it has committed it. Raises the bus' errors."""
        word = self._word(entry)
        if word.amount is not None:
            timeout_ms = self._settings.outbox_send_ms_max
            self._root_router.call(entry.project_id, QUOTA_SETTLE, word.amount, timeout_ms=timeout_ms)
        return word

    def forget(self, entry: OutboxEntry, key: Key, word: Word) -> bool:
        """Acknowledged: the row goes. False where the rows say something else by now: it is to be sent again."""

        def decide(change: Change) -> bool:
            if change.get(ROOT_OUTBOX, key) is None:
                return True
            if self._read(change, entry, word.task_id) != word:
                return False
            change.delete(ROOT_OUTBOX, key)
            return True

        keys = [(ROOT_OUTBOX, key), *_keys(entry.instance_uuid, word.task_id)]
        return self._commit(entry, keys, decide)

    def _word(self, entry: OutboxEntry) -> Word:
        task_id: str | None = None
        for _ in range(TASKS_READ_MAX):
            keys = _keys(entry.instance_uuid, task_id)
            word = self._commit(entry, keys, partial(self._read, entry=entry, task_id=task_id))
            if word.task_id == task_id:
                return word
            task_id = word.task_id
        raise Busy(f"instance {entry.instance_uuid} keeps changing its task: try again", retry_after_ms=0)

    def _read(self, change: Change, entry: OutboxEntry, task_id: str | None) -> Word:
        instance = change.get(INSTANCES, (entry.instance_uuid,))
        if instance is None or instance.vm_state == VM_DELETED or instance.mapping_generation != entry.generation:
            return Word(None, task_id)
        if instance.task_id != task_id:
            return Word(None, instance.task_id)
        task = change.get(TASKS, (task_id,)) if task_id is not None else None
        return Word(words_of(self._cell, instance, charged(instance, task)), task_id)

    def _commit(self, entry: OutboxEntry, keys: Keys, decide: Callable[[Change], R]) -> R:
        partition = partition_of(entry.instance_uuid)
        return self._ledger.commit(partition, keys, decide, timeout_ms=self._settings.commit_ms_max)


def _keys(uuid: str, task_id: str | None) -> Keys:
    return [(INSTANCES, (uuid,)), *([(TASKS, (task_id,))] if task_id is not None else [])]
