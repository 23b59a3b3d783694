"""The file that is a fake host: an append-only log of what was done to its domains, one JSON object a line."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zcompute.objects.command import (
    VERB_ACTIVATE,
    VERB_MIGRATE,
    VERB_PAUSE,
    VERB_PREPARE,
    VERB_REBOOT,
    VERB_REBUILD,
    VERB_REOPEN,
    VERB_RESCUE,
    VERB_RESIZE,
    VERB_RESUME,
    VERB_SEND,
    VERB_SNAPSHOT,
    VERB_START,
    VERB_STOP,
    VERB_SUSPEND,
    VERB_UNPAUSE,
    VERB_UNRESCUE,
)
from zcompute.objects.flavor import Amounts
from zcompute.objects.instance import POWER_RUNNING

OP_SPAWN = "spawn"
OP_DESTROY = "destroy"
OP_ARRIVE = "arrive"  # of a live move, written by the source's driver

COMES = frozenset({OP_SPAWN, OP_ARRIVE, VERB_ACTIVATE})
"""A domain begins to be here."""
GOES = frozenset({OP_DESTROY, VERB_MIGRATE})
ELSEWHERE = frozenset({VERB_PREPARE, VERB_SNAPSHOT})
"""What leaves the domains as they are."""
CHANGES = frozenset(
    {
        VERB_START, VERB_STOP, VERB_REBOOT, VERB_PAUSE, VERB_UNPAUSE, VERB_SUSPEND, VERB_RESUME, VERB_RESCUE,
        VERB_UNRESCUE, VERB_REBUILD, VERB_RESIZE, VERB_SEND, VERB_REOPEN,
    }
)  # fmt: skip
OPS = COMES | GOES | ELSEWHERE | CHANGES


class DomainLine(msgspec.Struct, kw_only=True):
    """One line. ``pid`` is the agent's process, ``at`` the time in UTC microseconds, ``power_state`` the domain's from
    then on."""

    op: str
    uuid: str
    task_id: str = ""
    step: str = ""
    attempt: int = 0
    generation: int = 0
    pid: int = 0
    at: int = 0
    amounts: Amounts = Amounts()
    power_state: int = POWER_RUNNING


@dataclass(frozen=True)
class DomainLog:
    """A fake host's history: how often each uuid was spawned and destroyed, and what is there now."""

    spawns: Mapping[str, int]
    destroys: Mapping[str, int]
    running: frozenset[str]
    unreadable_lines: int = 0


_LINE = msgspec.json.Decoder(DomainLine)


def domain_log_path(directory: str | Path, host: str) -> Path:
    """Where a fake host's domains live."""
    return Path(directory) / f"{host}.domains.jsonl"


def parse_lines(data: bytes) -> tuple[list[DomainLine], int, int]:
    """(lines, bytes that whole lines take, unreadable lines). A last line without its newline is not there yet."""
    end = data.rfind(b"\n") + 1
    lines: list[DomainLine] = []
    unreadable = 0
    for raw in data[:end].splitlines():
        try:
            line = _LINE.decode(raw)
        except msgspec.DecodeError:
            unreadable += 1
            continue
        if line.op in OPS:
            lines.append(line)
        else:
            unreadable += 1
    return lines, end, unreadable


def read_domain_log(path: str | Path) -> DomainLog:
    """Read a fake host's file, for the audit and tests. A file that is not there is a host that never ran anything."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        data = b""
    lines, _, unreadable = parse_lines(data)
    running: set[str] = set()
    for line in lines:
        if line.op in COMES:
            running.add(line.uuid)
        elif line.op in GOES:
            running.discard(line.uuid)
    return DomainLog(
        spawns=Counter(line.uuid for line in lines if line.op == OP_SPAWN),
        destroys=Counter(line.uuid for line in lines if line.op == OP_DESTROY),
        running=frozenset(running),
        unreadable_lines=unreadable,
    )
