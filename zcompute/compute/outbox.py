"""What the agent still owes the owners of its instances: durable, bounded, in order.

Two sorts of entries. Observations: the newest per (host, instance) only, an older one is folded into it. Step results:
all of them, never folded. Both take their sequence from one counter of the agent, so the sequences of one instance
rise in the order in which things happened, over restarts too.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from zcompute.compute.errors import ObservationsFull, RecordInvalid, ResultsFull
from zcompute.compute.journal import Journal
from zcompute.compute.settings import Settings
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


class Outbox:
    """Entries by sequence, in memory and in ``path``. Raises RecordInvalid, JournalUnsupported at start."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._settings = settings
        self._entries: dict[int, Entry] = {}
        self._observed: dict[tuple[str, str], int] = {}
        self._results: dict[ResultKey, int] = {}
        self._bodies: dict[int, ReportBody] = {}
        self.last_seq = 0
        self.journal = Journal(path, self._snapshot, settings)
        for record in self.journal.records:
            self._replay(record)
        self.journal.loaded()

    # -- adding ----------------------------------------------------------------------------------------------------

    def observe(self, observation: Observation) -> tuple[Entry, int | None]:
        """Owe the newest state of an instance. Answers the entry and the sequence that it folds, if any.

        Raises ObservationsFull for one instance more than ``observations_max``.
        """
        folded = self._observed.get((observation.host, observation.instance_uuid))
        if folded is None and len(self._observed) >= self._settings.observations_max:
            raise ObservationsFull(
                f"the outbox holds observations of {len(self._observed)} instances, the most it may: "
                "their owners must acknowledge some first"
            )
        return self._put(observation), folded

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
        known = [seq for seq in seqs if self._remove(seq)]
        if known:
            self.journal.write(_ENCODER.encode(_Drop(known)))

    def retract(self, host: str, uuid: str) -> int | None:
        """The instance is no longer this host's to observe. Answers the sequence that is owed no more."""
        seq = self._observed.get((host, uuid))
        if seq is not None:
            self.forget([seq])
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
            if former is not None and former != entry.seq:
                self._remove(former)
            self._observed[(body.host, body.instance_uuid)] = entry.seq
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
