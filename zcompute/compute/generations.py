"""What was commanded for each instance on each host: command generations, steps and outcomes, grants, tombstones.

Durable, so that a command that comes again after a restart is recognised. A record is kept until its task's
``forget``; the grant of a running instance stays. Decisions are made in memory, one journal record per change.
"""

import logging
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import msgspec

from zcompute.compute.errors import CommandsFull, RecordInvalid
from zcompute.compute.journal import Journal
from zcompute.compute.settings import Settings
from zcompute.objects.command import Order
from zcompute.objects.messages.hosts import Grant

log = logging.getLogger(__name__)

COMMAND_SPAWN = "spawn"
COMMAND_DESTROY = "destroy"


class Step(msgspec.Struct, array_like=True):
    """One (task, step, attempt) under the record's generation. ``outcome`` "" = not known yet.

    ``command`` is spawn, destroy or a verb; ``grant`` the reporter generation that it brought; ``answer`` what a verb
    has to say to the next step.
    """

    command: str
    task_id: str
    step: str
    attempt: int
    grant: int = 0
    outcome: str = ""
    message: str = ""
    power_state: int = 0
    answer: dict[str, str] = msgspec.field(default_factory=dict)

    def is_of(self, order: Order) -> bool:
        return (self.task_id, self.step, self.attempt) == (order.task_id, order.step, order.attempt)


class Record(msgspec.Struct, array_like=True):
    """One instance on one host. ``grant`` > 0: this host reports the instance under that reporter generation.

    ``task_id`` is the newest task that commanded it, ``steps`` those of the present generation, oldest first, and
    ``known`` the newest whose outcome is known, of an earlier generation too (what ``adopt`` answers).
    """

    host: str
    uuid: str
    generation: int
    task_id: str
    steps: list[Step]
    grant: int = 0
    forgotten: bool = False
    known: Step | None = None


class _Gone(msgspec.Struct, tag="gone", array_like=True):
    host: str
    uuid: str


class _Kept(msgspec.Struct, tag="kept", array_like=True):
    record: Record


class Finding(Enum):
    """What an order is to this agent."""

    NEW = "new"
    REPEAT = "repeat"
    STALE = "stale"


Key = tuple[str, str]

_ENCODER = msgspec.msgpack.Encoder()
_RECORD: msgspec.msgpack.Decoder[_Kept | _Gone] = msgspec.msgpack.Decoder(_Kept | _Gone)


class Generations:
    """Records by (host, uuid), in memory and in ``path``. Raises RecordInvalid, JournalUnsupported at start."""

    def __init__(self, path: Path, settings: Settings, now: float) -> None:
        self._settings = settings
        self._records: dict[Key, Record] = {}
        self._changed_at: dict[Key, float] = {}  # monotonic, oldest first; since when a tombstone is one
        self._granted = 0
        self.journal = Journal(path, self._snapshot, settings)
        for record in self.journal.records:
            self._replay(record)
        self.journal.loaded()
        self._changed_at = dict.fromkeys(self._records, now)

    # -- looking ---------------------------------------------------------------------------------------------------

    def get(self, host: str, uuid: str) -> Record | None:
        return self._records.get((host, uuid))

    def records(self) -> list[Record]:
        return list(self._records.values())

    def granted(self, host: str | None = None) -> list[Record]:
        """Records of instances that this agent reports, of one host or of all."""
        return [r for r in self._records.values() if r.grant and (host is None or r.host == host)]

    def find(self, order: Order) -> tuple[Finding, Step | None]:
        """What this order is: stale (older generation), a repeat (with the step as recorded), or new."""
        record = self._records.get((order.host, order.instance_uuid))
        if record is None or order.generation > record.generation:
            return Finding.NEW, None
        if order.generation < record.generation:
            return Finding.STALE, None
        for step in record.steps:
            if step.is_of(order):
                return Finding.REPEAT, step
        return Finding.NEW, None

    def is_current(self, order: Order) -> bool:
        """Whether no later generation has come since this order was recorded."""
        record = self._records.get((order.host, order.instance_uuid))
        return record is not None and record.generation == order.generation

    def granted_count(self) -> int:
        return self._granted

    # -- changes ---------------------------------------------------------------------------------------------------

    def raise_to(self, order: Order, now: float) -> bool:
        """Record the order's generation (adopt). Raises CommandsFull. False: not on disk."""
        return self._save(self._record_for(order, now))

    def begin(self, order: Order, command: str, now: float) -> bool:
        """Record a new command before it is answered. Raises CommandsFull. False: not on disk."""
        record = self._record_for(order, now)
        if len(record.steps) >= self._settings.steps_max:
            self._drop_oldest_destroy(record)
        record.steps.append(Step(command, order.task_id, order.step, order.attempt, order.reporter_generation))
        return self._save(record)

    def finish(self, order: Order, ended: Step, grant: int | None = None) -> None:
        """Record how a step ended; it stays the newest known one when the generation rose meanwhile.

        ``grant`` None leaves as it is who reports the instance, 0 takes the grant away, a number gives it unless a
        later one is there.
        """
        record = self._records.get((order.host, order.instance_uuid))
        if record is None:
            return
        if record.generation == order.generation:
            record.steps = [ended if step.is_of(order) else step for step in record.steps]
        record.known = ended
        if grant is not None:
            self._grant(record, max(grant, record.grant) if grant else 0)
        self._settle(record)

    def grant(self, host: str, uuid: str, grant: int) -> None:
        """Change who reports: 0 takes the grant away. A forgotten record without a grant goes."""
        record = self._records.get((host, uuid))
        if record is not None and record.grant != grant:
            self._grant(record, grant)
            self._settle(record)

    def regrant(self, host: str, grant: Grant, now: float) -> bool:
        """An owner's word on what it granted before this epoch; what was commanded since is newer. True: it is news.

        The record is as after its task's forget.
        """
        record = self._records.get((host, grant.instance_uuid))
        if record is not None:
            older = record.generation > grant.generation or record.grant >= grant.reporter_generation
            if older or (record.generation == grant.generation and record.steps):
                return False
        elif self._granted >= self._settings.observations_max:
            log.error("instance not granted anew, at observations_max instance=%s host=%s", grant.instance_uuid, host)
            return False
        else:
            record = Record(host, grant.instance_uuid, grant.generation, "", [], forgotten=True)
            self._records[(host, grant.instance_uuid)] = record
            self._changed_at[(host, grant.instance_uuid)] = now
        if record.generation < grant.generation:
            record.generation, record.steps = grant.generation, []
        self._grant(record, grant.reporter_generation)
        self._save(record)
        return True

    def forget(self, order: Order) -> None:
        """The order's task has ended: its commands need not be recognised any more. Another task's stay."""
        record = self._records.get((order.host, order.instance_uuid))
        if record is not None and record.task_id == order.task_id and order.generation >= record.generation:
            record.forgotten = True
            self._settle(record)

    # -- memory and journal ----------------------------------------------------------------------------------------

    def _record_for(self, order: Order, now: float) -> Record:
        key = (order.host, order.instance_uuid)
        record = self._records.get(key)
        self._changed_at.pop(key, None)
        self._changed_at[key] = now
        if record is None:
            if len(self._records) - self._granted >= self._settings.tombstones_max and not self._evict(now):
                del self._changed_at[key]
                raise CommandsFull(
                    f"{self._settings.tombstones_max} instances wait for their task's forget, the most there may be"
                )
            record = Record(order.host, order.instance_uuid, order.generation, order.task_id, [])
            self._records[key] = record
        elif order.generation > record.generation:
            record.generation, record.steps = order.generation, []
        record.task_id, record.forgotten = order.task_id, False
        return record

    def _drop_oldest_destroy(self, record: Record) -> None:
        """A destroy that is retried makes room for itself: running one twice does no harm, as with no other step."""
        oldest = next((s for s in record.steps if s.command == COMMAND_DESTROY and s.outcome), None)
        if oldest is None:
            raise CommandsFull(
                f"instance {record.uuid} has had {len(record.steps)} commands in generation {record.generation}"
            )
        record.steps.remove(oldest)

    def _evict(self, now: float) -> bool:
        """Make room: a task's forget is sent once and may be lost. No command of such an age is still on its way."""
        for key, changed_at in self._changed_at.items():
            if now - changed_at < self._settings.tombstone_s_min:
                return False
            record = self._records[key]
            if not record.grant and all(step.outcome for step in record.steps):
                log.info("tombstone dropped, its forget never came host=%s instance=%s", *key)
                self._drop(key)
                self.journal.write(_ENCODER.encode(_Gone(*key)))
                return True
        return False

    def _drop(self, key: Key) -> None:
        self._changed_at.pop(key, None)
        former = self._records.pop(key, None)
        self._granted -= bool(former is not None and former.grant)

    def _grant(self, record: Record, grant: int) -> None:
        self._granted += bool(grant) - bool(record.grant)
        record.grant = grant

    def _settle(self, record: Record) -> None:
        """A forgotten record keeps its generation and grant while its instance is reported, else it goes."""
        if not record.forgotten or any(not step.outcome for step in record.steps):
            self._save(record)
        elif record.grant:
            record.steps, record.known = [], None
            self._save(record)
        else:
            self._drop((record.host, record.uuid))
            self.journal.write(_ENCODER.encode(_Gone(record.host, record.uuid)))

    def _save(self, record: Record) -> bool:
        return self.journal.write(_ENCODER.encode(_Kept(record)))

    def _replay(self, data: bytes) -> None:
        try:
            found = _RECORD.decode(data)
        except msgspec.DecodeError as error:
            raise RecordInvalid(f"a command record of {len(data)} bytes is not one: {error}") from error
        if isinstance(found, _Kept):
            former = self._records.get((found.record.host, found.record.uuid))
            self._granted += bool(found.record.grant) - bool(former is not None and former.grant)
            self._records[(found.record.host, found.record.uuid)] = found.record
        else:
            self._drop((found.host, found.uuid))

    def _snapshot(self) -> Iterator[bytes]:
        for record in self._records.values():
            yield _ENCODER.encode(_Kept(record))

    def close(self) -> None:
        self.journal.close()
