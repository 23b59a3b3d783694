"""Is what the clients saw possible? A pure checker of a recorded history against the model of one register an instance.

The model: an instance's reports are applied in the order in which its agent made them, each at most once, folded ones
never; what was answered durably stays; what a reader was shown once is never older again; each row's changes form one
chain of notifications; a command of an older owner or generation is refused. What timed out may or may not have
happened.
"""

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from loadtest.chaos.history import (
    RESULT,
    Answer,
    Command,
    Domain,
    Event,
    Fault,
    Operation,
    Read,
    Report,
)
from zcompute.objects.report import FINAL_VERDICTS, VERDICT_ALREADY_THERE, VERDICT_APPLIED, VERDICT_STALE

LOST = "lost"
REPEATED = "repeated"
INVERTED = "inverted"
STALE_WRITER = "stale_writer"
DEAD_OWNER_OBEYED = "dead_owner_obeyed"
UNSEEN = "unseen"
NOTIFICATION = "notification"
FAILED = "failed"

UNSEEN_S = 5.0
AFTER_FAULT_S = 1.0
DURABLE = frozenset({VERDICT_APPLIED, VERDICT_ALREADY_THERE, VERDICT_STALE})

REPEATABLE = frozenset({"instance.exists", "instance.events_folded"})  # what a server may be told of several times

State = tuple[str | None, ...]  # vm_state, task_state, power_state, as notifications name them


@dataclass(frozen=True)
class Violation:
    """One thing that cannot be."""

    kind: str
    subject: str
    detail: str
    t: float = 0.0


@dataclass(frozen=True)
class Row:
    """An instance in the database at the end."""

    value: int
    deleted: bool
    state: State


@dataclass(frozen=True)
class Note:
    """A notification in the database at the end; ``before`` and ``after`` are those of instance.update."""

    partition: int
    n: int
    event_type: str
    uuid: str
    before: State = ()
    after: State = ()


@dataclass(frozen=True)
class Final:
    """What is in the database once all is at rest. ``last_n`` by partition; ``actions``: (uuid, action) that happens
    once."""

    rows: Mapping[str, Row]
    notes: Sequence[Note] = ()
    last_n: Mapping[int, int] = field(default_factory=dict)
    actions: Sequence[tuple[str, str]] = ()


def check(events: Sequence[Event], final: Final) -> list[Violation]:
    """Every violation, in the order of the checks. ``events`` in the order of their times."""
    reports = [event for event in events if isinstance(event, Report)]
    answers = [event for event in events if isinstance(event, Answer)]
    reads = [event for event in events if isinstance(event, Read)]
    operations = [event for event in events if isinstance(event, Operation)]
    faults = [event for event in events if isinstance(event, Fault)]
    values = value_by_name(reports)
    return [
        *_sequences(reports),
        *_lost(reports, answers, values, final),
        *_applied_twice(answers, values),
        *_inverted(reads, reports, answers, values, operations),
        *_commands(event for event in events if isinstance(event, Command)),
        *_domains(event for event in events if isinstance(event, Domain)),
        *_unseen(reports, answers, values, faults, final),
        *_operations(operations, final),
        *_notifications(final),
    ]


Name = tuple[str, int]  # an agent and a sequence of its outbox


def value_by_name(reports: Iterable[Report]) -> dict[Name, Report]:
    """The report behind (agent, sequence)."""
    return {(report.agent, report.seq): report for report in reports}


def _sequences(reports: Iterable[Report]) -> Iterable[Violation]:
    """An outbox that survives never gives a sequence twice, but for one whose giver was killed as it gave it."""
    seen: dict[Name, Report] = {}
    last: dict[str, Report] = {}
    for report in reports:
        name = (report.agent, report.seq)
        former = seen.get(name)
        if former is not None and last[report.agent] is not former:
            yield Violation(LOST, report.uuid, f"{report.agent} gave sequence {report.seq} twice", report.t)
        seen[name] = last[report.agent] = report


def _lost(
    reports: Sequence[Report], answers: Iterable[Answer], values: Mapping[Name, Report], final: Final
) -> Iterable[Violation]:
    """Acknowledged and not in the database; owed, never folded, and never answered."""
    answered: set[Name] = set()
    for answer in answers:
        name = (answer.agent, answer.seq)
        if answer.verdict in FINAL_VERDICTS:
            answered.add(name)
        report, row = values.get(name), final.rows.get(answer.uuid)
        if answer.verdict not in DURABLE or report is None or report.kind == RESULT:
            continue
        if row is None:
            yield Violation(LOST, answer.uuid, "acknowledged, and the instance is not in the database", answer.t)
        elif not row.deleted and row.value < report.value:
            detail = f"value {report.value} was acknowledged by {answer.peer}, the database has {row.value}"
            yield Violation(LOST, answer.uuid, detail, answer.t)
    folded = {(report.agent, report.folds) for report in reports if report.folds}
    lives = last_of_life(reports)
    for report in reports:
        name = (report.agent, report.seq)
        row = final.rows.get(report.uuid)
        if name in answered or name in folded or lives[report.agent, report.life] is report:
            continue
        if report.kind != RESULT and (row is None or row.deleted):
            continue  # taken back with the instance
        detail = f"{report.kind} {report.seq} of {report.agent} was owed, was not folded, and was never answered"
        yield Violation(LOST, report.uuid, detail, report.t)


def last_of_life(reports: Iterable[Report]) -> dict[tuple[str, int], Report]:
    """The last report of each life of each agent: a kill may have come between the record and the outbox."""
    return {(report.agent, report.life): report for report in reports}


def _applied_twice(answers: Iterable[Answer], values: Mapping[Name, Report]) -> Iterable[Violation]:
    """A report takes effect once: two conductors that say so are an owner and a former one."""
    by: dict[Name, str] = {}
    for answer in answers:
        name = (answer.agent, answer.seq)
        if answer.verdict != VERDICT_APPLIED or name not in values:
            continue
        former = by.setdefault(name, answer.peer)
        if former != answer.peer:
            detail = f"sequence {answer.seq} was applied by {former} and by {answer.peer}"
            yield Violation(STALE_WRITER, answer.uuid, detail, answer.t)
        elif former == answer.peer and (answer.agent, -answer.seq) in by:
            yield Violation(REPEATED, answer.uuid, f"sequence {answer.seq} was applied twice by {former}", answer.t)
        by[(answer.agent, -answer.seq)] = answer.peer


class _Rising:
    """The highest value known until a time."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._highest: list[int] = []

    def add(self, t: float, value: int) -> None:
        """Times must rise."""
        self._times.append(t)
        self._highest.append(max(value, self._highest[-1] if self._highest else 0))

    def at(self, t: float) -> int:
        """The highest value of those added at or before ``t``."""
        place = bisect_right(self._times, t)
        return self._highest[place - 1] if place else 0


def _inverted(
    reads: Sequence[Read],
    reports: Iterable[Report],
    answers: Iterable[Answer],
    values: Mapping[Name, Report],
    operations: Iterable[Operation],
) -> Iterable[Violation]:
    """A read shows at least what was acknowledged, and what any earlier read had shown, before it was asked.

    But for a server that is deleted while the read goes on: the root may have been asked when its hand-off was not
    settled yet, the cell when it was gone. It is shown as the root had it then, with nothing reported.
    """
    known: dict[str, set[int]] = defaultdict(lambda: {0})
    for report in reports:
        known[report.uuid].add(report.value)
    facts = [
        (answer.t, answer.uuid, values[answer.agent, answer.seq].value)
        for answer in answers
        if answer.verdict in DURABLE and (answer.agent, answer.seq) in values
    ]
    facts += [(read.ended, uuid, value) for read in reads for uuid, value in read.values.items()]
    floors: dict[str, _Rising] = defaultdict(_Rising)
    for t, uuid, value in sorted(facts):
        floors[uuid].add(t, value)
    deletes: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.name == "delete":
            deletes[operation.uuid].append(operation)
    for read in reads:
        for uuid, value in read.values.items():
            floor = floors[uuid].at(read.t)
            goes = any(each.t <= read.ended and each.ended >= read.t for each in deletes[uuid])
            if value < floor and not (goes and value == 0):
                yield Violation(INVERTED, uuid, f"a read shows {value} after {floor} was known", read.t)
            if value not in known[uuid]:
                yield Violation(INVERTED, uuid, f"a read shows {value}, which nobody has reported", read.t)


def _commands(commands: Iterable[Command]) -> Iterable[Violation]:
    epochs: dict[tuple[str, int], int] = {}
    generations: dict[tuple[str, str], int] = {}
    for command in commands:
        if not command.obeyed:
            continue
        place, owner = (command.host, command.uuid), (command.agent, command.partition)
        newest, epoch = generations.get(place, 0), max(epochs.get(owner, 0), command.known_epoch)
        if command.generation < newest or command.owner_epoch < epoch:
            detail = (
                f"{command.name} of epoch {command.owner_epoch}, generation {command.generation} was obeyed on "
                f"{command.host} after epoch {epoch}, generation {newest}"
            )
            yield Violation(DEAD_OWNER_OBEYED, command.uuid, detail, command.t)
        generations[place] = max(newest, command.generation)
        epochs[owner] = max(epoch, command.owner_epoch)


def _domains(domains: Iterable[Domain]) -> Iterable[Violation]:
    """An instance is made once, and never again once it was removed on purpose."""
    made: Counter[str] = Counter()
    newest: dict[tuple[str, str], int] = {}
    for domain in domains:
        place = (domain.host, domain.uuid)
        if domain.generation < newest.get(place, 0):
            detail = f"{domain.op} of generation {domain.generation} on {domain.host} after {newest[place]}"
            yield Violation(DEAD_OWNER_OBEYED, domain.uuid, detail, domain.t)
        newest[place] = max(newest.get(place, 0), domain.generation)
        made[domain.uuid] += domain.op == "spawn"
        if domain.op == "spawn" and made[domain.uuid] > 1:
            yield Violation(REPEATED, domain.uuid, f"spawned {made[domain.uuid]} times", domain.t)


def waits(
    reports: Iterable[Report], answers: Iterable[Answer], values: Mapping[Name, Report]
) -> list[tuple[Report, float]]:
    """Each observation with the time when it, or a newer one of its instance, was durable (infinity for never)."""
    ends: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for answer in answers:
        report = values.get((answer.agent, answer.seq))
        if report is not None and report.kind != RESULT and answer.verdict in FINAL_VERDICTS:
            ends[answer.uuid].append((report.value, answer.t))
    earliest: dict[str, tuple[list[int], list[float]]] = {}
    for uuid, found in ends.items():
        found.sort()
        times = [t for _, t in found]
        for place in range(len(times) - 2, -1, -1):
            times[place] = min(times[place], times[place + 1])
        earliest[uuid] = ([value for value, _ in found], times)
    result = []
    for report in reports:
        if report.kind != RESULT:
            known, times = earliest.get(report.uuid, ([], []))
            place = bisect_right(known, report.value - 1)
            result.append((report, times[place] if place < len(times) else float("inf")))
    return result


def _unseen(
    reports: Sequence[Report],
    answers: Sequence[Answer],
    values: Mapping[Name, Report],
    faults: Iterable[Fault],
    final: Final,
) -> Iterable[Violation]:
    windows = [(fault.t, fault.over + AFTER_FAULT_S) for fault in faults]
    lives = last_of_life(reports)
    for report, durable_at in waits(reports, answers, values):
        row = final.rows.get(report.uuid)
        if durable_at <= report.t + UNSEEN_S or row is None or row.deleted:
            continue
        if durable_at == float("inf") and lives[report.agent, report.life] is report:
            continue
        if not any(begin <= report.t + UNSEEN_S and report.t <= end for begin, end in windows):
            detail = f"sequence {report.seq} of {report.agent} was not durable after {UNSEEN_S} s without a fault"
            yield Violation(UNSEEN, report.uuid, detail, report.t)


def _operations(operations: Sequence[Operation], final: Final) -> Iterable[Violation]:
    """What was answered is so, and nothing fails for a fault."""
    ended = {(operation.name, operation.uuid): operation.outcome for operation in operations}
    for operation in operations:
        if operation.outcome not in ("", "ok"):
            subject = operation.uuid or "(no server)"
            yield Violation(FAILED, subject, f"{operation.name}: {operation.outcome}", operation.t)
        if operation.outcome != "ok":
            continue
        row = final.rows.get(operation.uuid)
        if operation.name == "boot" and row is None:
            yield Violation(LOST, operation.uuid, "booted, and not in the database", operation.t)
        elif operation.name == "boot" and row is not None and row.deleted:
            if ("delete", operation.uuid) not in ended:
                yield Violation(LOST, operation.uuid, "booted, and deleted though nobody asked", operation.t)
        elif operation.name == "delete" and row is not None and not row.deleted:
            yield Violation(LOST, operation.uuid, "deleted, and not so in the database", operation.t)


def _notifications(final: Final) -> Iterable[Violation]:
    numbers: dict[int, list[int]] = defaultdict(list)
    at: dict[str, tuple[State, State]] = {}
    phases: Counter[tuple[str, str]] = Counter()
    for note in sorted(final.notes, key=lambda note: (note.partition, note.n)):
        numbers[note.partition].append(note.n)
        if not note.before:
            phases[note.uuid, note.event_type] += note.event_type not in REPEATABLE
            continue
        former = at.get(note.uuid)
        if former is not None and former[1] != note.before:
            kind = REPEATED if former == (note.before, note.after) else NOTIFICATION
            detail = f"n {note.n} tells of {note.before} to {note.after}, it was {former[1]}"
            yield Violation(kind, note.uuid, detail)
        at[note.uuid] = (note.before, note.after)
    for partition, last_n in final.last_n.items():
        if numbers[partition] != list(range(1, last_n + 1)):
            found = len(numbers[partition])
            yield Violation(NOTIFICATION, f"partition {partition}", f"{found} notifications, numbered to {last_n}")
    for (uuid, event_type), count in phases.items():
        if uuid and count > 1:
            yield Violation(REPEATED, uuid, f"{event_type} {count} times")
    if final.notes:
        for uuid, row in final.rows.items():
            told = at[uuid][1] if uuid in at else None
            if told != row.state:
                yield Violation(NOTIFICATION, uuid, f"the last tells of {told}, the row is {row.state}")
    for action, count in Counter(final.actions).items():
        if count > 1:
            yield Violation(REPEATED, action[0], f"history has {action[1]} {count} times")
