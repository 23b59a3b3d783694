"""What the agent still owes the owners of its instances: durable, bounded, in order.

Two sorts of entries. Observations: the newest per (host, instance) only, an older one is folded into it, and a power
state that so goes untold is counted in it (docs/decisions/0016). Step results: all of them, never folded. Both take
their sequence from one counter of the agent, so the sequences of one instance rise in the order in which things
happened, over restarts too.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from zcompute.compute.errors import ObservationsFull, RecordInvalid, ResultsFull
from zcompute.compute.journal import Journal
from zcompute.compute.settings import Settings
from zcompute.objects.instance import POWER_NOSTATE
from zcompute.objects.report import Observation, ReportBody, StepResult


class Entry(msgspec.Struct, frozen=True):
    """One report that is owed: ``key`` is the instance's uuid, ``host`` who speaks, ``payload`` the encoded body."""

    seq: int
    key: str
    host: str
    payload: bytes


class _Put(msgspec.Struct, tag="put", array_like=True):
    seq: int
    payload: bytes


class _Drop(msgspec.Struct, tag="drop", array_like=True):
    seqs: list[int]


class _Last(msgspec.Struct, tag="last", array_like=True):
    """The highest sequence ever given, for a file whose entries are gone."""

    seq: int


class _Passing(msgspec.Struct, frozen=True):
    """An observation that was folded while it was on its way: ``untold`` states are told after all if it arrives."""

    host: str
    seq: int
    power_state: int
    untold: int

    def says(self, later: Observation) -> bool:
        """Whether the later observation, not sent, says nothing that this one does not."""
        return (self.host, self.power_state, self.untold) == (later.host, _power(later), later.folded)


ResultKey = tuple[str, str, int, str, str, int]

_ENCODER = msgspec.msgpack.Encoder()
_BODY: msgspec.msgpack.Decoder[ReportBody] = msgspec.msgpack.Decoder(ReportBody)
_RECORD: msgspec.msgpack.Decoder[_Put | _Drop | _Last] = msgspec.msgpack.Decoder(_Put | _Drop | _Last)


def _result_key(result: StepResult) -> ResultKey:
    return (
        result.host,
        result.instance_uuid,
        result.generation,
        result.task_id,
        result.step,
        result.attempt,
    )


def _power(observation: Observation) -> int:
    """What a change of is an event, and told."""
    return POWER_NOSTATE if observation.gone else observation.power_state


class Outbox:
    """Entries by sequence, in memory and in ``path``. Raises RecordInvalid, JournalUnsupported at start."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._settings = settings
        self._entries: dict[int, Entry] = {}
        self._observed: dict[tuple[str, str], int] = {}
        self._results: dict[ResultKey, int] = {}
        self._bodies: dict[int, ReportBody] = {}
        self._told: dict[tuple[str, str], int] = {}  # the power state of the newest that was answered for good
        self._passing: dict[str, _Passing] = {}  # by instance, of which one report is on its way
        self.last_seq = 0
        self.events_folded = 0  # since the start, those that were told as such
        self.journal = Journal(path, self._snapshot, settings)
        for record in self.journal.records:
            self._replay(record)
        self.journal.loaded()

    # -- adding ----------------------------------------------------------------------------------------------------

    def observe(self, observation: Observation, on_its_way: int = 0) -> tuple[Entry, int | None]:
        """Owe the newest state of an instance. Answers the entry and the sequence that it folds, if any.

        ``on_its_way`` is the sequence of the instance's report that was sent and is not answered, 0 for none.
        Raises ObservationsFull for one instance more than ``observations_max``.
        """
        folded = self._observed.get((observation.host, observation.instance_uuid))
        if folded is None and len(self._observed) >= self._settings.observations_max:
            raise ObservationsFull(
                f"the outbox holds observations of {len(self._observed)} instances, the most it may: "
                "their owners must acknowledge some first"
            )
        if folded is not None:
            observation = self._counted(folded, observation, on_its_way)
        return self._put(observation), folded

    def _counted(self, folded: int, observation: Observation, on_its_way: int) -> Observation:
        """The observation, with the states that it leaves untold."""
        former = self._bodies[folded]
        if not isinstance(former, Observation):
            return observation
        told_before = not former.folded and self._told.get((former.host, former.instance_uuid)) == _power(former)
        untold = former.folded + (_power(former) != _power(observation) and not told_before)
        passing = self._passing.get(former.instance_uuid)
        if folded == on_its_way:
            self._passing[former.instance_uuid] = _Passing(former.host, folded, _power(former), untold)
        elif passing is not None and passing.says(former):
            self._passing[former.instance_uuid] = msgspec.structs.replace(passing, untold=untold)
        if not untold:
            return observation
        return msgspec.structs.replace(observation, folded=untold)

    def told(self, uuid: str, seq: int, on_its_way: int = 0) -> tuple[Entry, int] | None:
        """An owner has taken this report: had it been folded on its way, what it told is no longer untold.

        Answers the entry that says so, and the one that it replaces, which must not have been sent yet: what went out
        under a sequence never changes.
        """
        passing = self._passing.get(uuid)
        if passing is None or passing.seq != seq:
            return None
        del self._passing[uuid]
        self._know_told((passing.host, uuid), passing.power_state)
        owed = self._observed.get((passing.host, uuid), on_its_way)
        body = self._bodies.get(owed)
        if owed == on_its_way or not isinstance(body, Observation) or not passing.untold:
            return None
        return self._put(msgspec.structs.replace(body, folded=max(0, body.folded - passing.untold))), owed

    def add_result(self, result: StepResult) -> Entry | None:
        """Owe a step result. None: this very result is owed already. Raises ResultsFull."""
        if _result_key(result) in self._results:
            return None
        if not self.results_room():
            raise ResultsFull(f"the outbox holds {len(self._results)} step results, the most it may")
        return self._put(result)

    def _put(self, body: ReportBody) -> Entry:
        entry = Entry(self.last_seq + 1, body.instance_uuid, body.host, _ENCODER.encode(body))
        self._keep(entry, body)
        self.journal.write(_ENCODER.encode(_Put(entry.seq, entry.payload)))
        return entry

    # -- taking away -----------------------------------------------------------------------------------------------

    def forget(self, seqs: list[int]) -> None:
        """These were answered for good."""
        for seq in seqs:
            self._answered(seq)
        known = [seq for seq in seqs if self._remove(seq)]
        if known:
            self.journal.write(_ENCODER.encode(_Drop(known)))

    def _answered(self, seq: int) -> None:
        body = self._bodies.get(seq)
        if isinstance(body, Observation):
            self.events_folded += body.folded
            self._know_told((body.host, body.instance_uuid), _power(body))

    def _know_told(self, key: tuple[str, str], power_state: int) -> None:
        """The newest, and as many as may be owed: of one that is forgotten a fold too many may be counted."""
        self._told.pop(key, None)
        if len(self._told) >= self._settings.observations_max:
            del self._told[next(iter(self._told))]
        self._told[key] = power_state

    def retract(self, host: str, uuid: str) -> int | None:
        """The instance is no longer this host's to observe. Answers the sequence that is owed no more."""
        seq = self._observed.get((host, uuid))
        if seq is not None:
            self.forget([seq])
        self._told.pop((host, uuid), None)
        return seq

    # -- looking ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, seq: int) -> Entry:
        return self._entries[seq]

    def body(self, seq: int) -> ReportBody:
        """What an entry says."""
        return self._bodies[seq]

    def entries(self) -> Iterator[Entry]:
        """All that is owed, oldest first."""
        return iter(sorted(self._entries.values(), key=lambda entry: entry.seq))

    def results(self) -> list[StepResult]:
        """The step results that are owed, oldest first."""
        bodies = (self._bodies[seq] for seq in sorted(self._results.values()))
        return [body for body in bodies if isinstance(body, StepResult)]

    def results_room(self) -> int:
        """How many more results fit."""
        return max(0, self._settings.results_max - len(self._results))

    # -- memory and journal ----------------------------------------------------------------------------------------

    def _keep(self, entry: Entry, body: ReportBody) -> None:
        self.last_seq = max(self.last_seq, entry.seq)
        if isinstance(body, Observation):
            former = self._observed.get((body.host, body.instance_uuid))
            self._observed[(body.host, body.instance_uuid)] = entry.seq
            if former is not None and former != entry.seq:
                self._remove(former)
        else:
            self._results[_result_key(body)] = entry.seq
        self._entries[entry.seq] = entry
        self._bodies[entry.seq] = body

    def _remove(self, seq: int) -> bool:
        if self._entries.pop(seq, None) is None:
            return False
        body = self._bodies.pop(seq)
        if isinstance(body, Observation):
            if self._observed.get((body.host, body.instance_uuid)) == seq:
                del self._observed[(body.host, body.instance_uuid)]
                self._passing.pop(body.instance_uuid, None)
        elif self._results.get(_result_key(body)) == seq:
            del self._results[_result_key(body)]
        return True

    def _replay(self, data: bytes) -> None:
        try:
            record = _RECORD.decode(data)
            if isinstance(record, _Put):
                body = _BODY.decode(record.payload)
                self._keep(Entry(record.seq, body.instance_uuid, body.host, record.payload), body)
            elif isinstance(record, _Drop):
                for seq in record.seqs:
                    self._remove(seq)
            else:
                self.last_seq = max(self.last_seq, record.seq)
        except msgspec.DecodeError as error:
            raise RecordInvalid(f"an outbox record of {len(data)} bytes is not one: {error}") from error

    def _snapshot(self) -> Iterator[bytes]:
        yield _ENCODER.encode(_Last(self.last_seq))
        for entry in self.entries():
            yield _ENCODER.encode(_Put(entry.seq, entry.payload))

    def close(self) -> None:
        self.journal.close()
