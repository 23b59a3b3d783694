"""What must hold of tasks, whatever failed: pure. An operation that was accepted is done, or told as failed; nothing is
stuck; no server ran on two hosts at once."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loadtest.chaos.check import FAILED, LOST, Final, Violation
from loadtest.chaos.history import Asked, Event, Fault
from loadtest.tasks.hosts import on_two_hosts
from zcompute.compute.virt.fake_log import DomainLine
from zcompute.objects.history import RESULT_SUCCESS

STUCK, TWO_COPIES = "stuck", "two_copies"
ONCE = ("instance.create.end", "instance.create.error", "instance.delete.")
"""Told once of a server. A build's start is told for each host that it is tried on, all else as often as asked for."""

OFTEN = "instance.exists"
OWN = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|c1-\S*\d")


@dataclass(frozen=True)
class Ended:
    """An operation in its server's history: ``finished`` or not, its result, and the message of one that failed."""

    action: str
    finished: bool
    result: str
    message: str


@dataclass(frozen=True)
class Tasks:
    """What is in the database at the end. ``left``: tasks, a sentence each; ``busy``: servers with a task_state.
    ``operations`` by (server, operation id)."""

    left: Sequence[str] = ()
    busy: Sequence[str] = ()
    operations: Mapping[tuple[str, str], Ended] = field(default_factory=dict)
    lines: Sequence[tuple[str, DomainLine]] = ()


def once_only(final: Final) -> Final:
    """For loadtest.chaos.check: what a server may be told of several times is told apart no further."""
    notes = [
        note if note.before or note.event_type.startswith(ONCE) else replace(note, event_type=OFTEN)
        for note in final.notes
    ]
    return replace(final, notes=notes)


def check_tasks(events: Iterable[Event], tasks: Tasks, operation_id: Mapping[str, str]) -> list[Violation]:
    """Every violation. ``operation_id`` by the key that the client gave."""
    found = [Violation(STUCK, "task", text) for text in tasks.left]
    found += [Violation(STUCK, uuid, "it has a task_state, and nothing is under way") for uuid in tasks.busy]
    found += [Violation(TWO_COPIES, text.split()[0], text) for text in on_two_hosts(tasks.lines)]
    for asked in (event for event in events if isinstance(event, Asked)):
        if asked.outcome:
            found.append(Violation(FAILED, asked.uuid, f"{asked.name}: {asked.outcome}", asked.t))
        if not asked.accepted:
            continue
        ended = tasks.operations.get((asked.uuid, operation_id[asked.key]))
        if ended is None:
            found.append(Violation(LOST, asked.uuid, f"{asked.name} was accepted, its history has none", asked.t))
        elif not ended.finished:
            found.append(Violation(STUCK, asked.uuid, f"{asked.name} was accepted and has not ended", asked.t))
        elif ended.result != RESULT_SUCCESS and not ended.message:
            found.append(Violation(FAILED, asked.uuid, f"{asked.name} failed, and nobody knows why", asked.t))
    return found


def reasons(events: Iterable[Event], tasks: Tasks, operation_id: Mapping[str, str]) -> Counter[str]:
    """What accepted operations were told to have failed for, with what is a server's or a host's own left out."""
    asked = [event for event in events if isinstance(event, Asked) and event.accepted]
    ends = ((event.name, tasks.operations.get((event.uuid, operation_id[event.key]))) for event in asked)
    failed = [(name, end.message) for name, end in ends if end is not None and end.result != RESULT_SUCCESS]
    return Counter(f"{name}: {OWN.sub('_', message)}" for name, message in failed)


def metrics_of_tasks(events: Sequence[Event], tasks: Tasks, operation_id: Mapping[str, str]) -> dict[str, float]:
    """How much was asked for, and what came of it."""
    asked = [event for event in events if isinstance(event, Asked) and event.key]
    accepted = [event for event in asked if event.accepted]
    ends = [tasks.operations.get((event.uuid, operation_id[event.key])) for event in accepted]
    faults = Counter(event.name for event in events if isinstance(event, Fault))
    return {
        "asked": len(asked),
        "accepted": len(accepted),
        "done": sum(end is not None and end.result == RESULT_SUCCESS for end in ends),
        "told_failed": sum(end is not None and end.result != RESULT_SUCCESS for end in ends),
        "refused": sum(event.refused for event in asked),
        "unanswered": sum(event.unknown for event in asked),
        "faults": sum(faults.values()),
        **{f"accepted_{name}": count for name, count in sorted(Counter(event.name for event in accepted).items())},
        **{f"faults_{name}": count for name, count in sorted(faults.items())},
    }
