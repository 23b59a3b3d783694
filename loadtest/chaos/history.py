"""What the clients saw, one JSON object a line and a file a process. Times are ``time.monotonic()`` of one machine.

``value`` is what a report says of its instance beside the power state: it rises with each report of the instance,
over restarts of the agent too, and is shown to readers as the server's progress.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

QUIET_FILE = "quiet"  # beside the histories: once it is there, the agents change nothing any more
PAUSE_FILE = "pause"  # likewise, while it is there
OBSERVATION, RESULT = "observation", "result"


class Report(msgspec.Struct, kw_only=True, tag="report", omit_defaults=True):
    """The agent owes this from now on. ``folds``: the sequence that it replaces, 0 for none."""

    t: float
    agent: str
    life: int
    uuid: str
    seq: int
    kind: str = OBSERVATION
    value: int = 0
    power: int = 0
    folds: int = 0


class Answer(msgspec.Struct, kw_only=True, tag="answer", omit_defaults=True):
    """A verdict on a report arrived from conductor ``peer``."""

    t: float
    agent: str
    life: int
    uuid: str
    seq: int
    verdict: str
    peer: str


class Command(msgspec.Struct, kw_only=True, tag="command", omit_defaults=True):
    """A conductor's command arrived; ``obeyed`` unless the agent refused it."""

    t: float
    agent: str
    host: str
    uuid: str
    name: str
    partition: int
    owner_epoch: int
    generation: int
    task_id: str
    step: str
    attempt: int
    known_epoch: int = 0  # of the partition, as the agent knew it when the command arrived
    obeyed: bool


class Domain(msgspec.Struct, kw_only=True, tag="domain", omit_defaults=True):
    """The driver made (``spawn``) or removed (``destroy``) a machine."""

    t: float
    host: str
    uuid: str
    op: str
    generation: int


class Read(msgspec.Struct, kw_only=True, tag="read", omit_defaults=True):
    """One list of servers: asked at ``t``, answered at ``ended``; uuid to value."""

    t: float
    ended: float
    values: dict[str, int]


class Operation(msgspec.Struct, kw_only=True, tag="operation", omit_defaults=True):
    """A boot or a delete through the API. ``outcome`` "" = nobody knows (it timed out), "ok", or what was answered."""

    t: float
    ended: float
    name: str
    uuid: str
    outcome: str = ""


class Asked(msgspec.Struct, kw_only=True, tag="asked", omit_defaults=True):
    """An action or a move of a server, under an Idempotency-Key. ``accepted``, ``refused`` (its state, or what it is,
    does not allow it), or ``unknown`` (it timed out); ``outcome``: what was answered where none of these was to be."""

    t: float
    ended: float
    name: str
    uuid: str
    key: str = ""
    accepted: bool = False
    refused: bool = False
    unknown: bool = False
    outcome: str = ""


class Fault(msgspec.Struct, kw_only=True, tag="fault", omit_defaults=True):
    """A fault was done at ``t``, undone at ``undone`` (the process started again), over at ``over`` (all is whole)."""

    t: float
    name: str
    victim: str
    undone: float = 0.0
    over: float = 0.0


Event = Report | Answer | Command | Domain | Read | Operation | Asked | Fault

_encode = msgspec.json.Encoder().encode
_DECODER: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class History:
    """Appends events; each is in the kernel's hands when ``write`` returns, so SIGKILL of its writer loses none."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, event: Event) -> None:
        """One line in one write."""
        os.write(self._descriptor, _encode(event) + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_history(directory: Path) -> list[Event]:
    """All events of a directory in the order of their times."""
    return sorted((event for path in directory.glob("*.jsonl") for event in _lines(path)), key=lambda event: event.t)


def _lines(path: Path) -> Iterator[Event]:
    for line in path.read_bytes().splitlines():
        yield _DECODER.decode(line)
