"""What the benchmark asks of a client process, and what that answers. Standard library only."""

import json
from dataclasses import asdict, dataclass

CALLS, CASTS, PACED = "calls", "casts", "paced"
PACED_CALLS_PER_SECOND = 100
DRAIN_DEADLINE_S = 60.0


@dataclass(frozen=True)
class Order:
    """One stretch of work. `in_flight` counts callers for calls, for casts senders where there are several."""

    kind: str
    payload: str
    in_flight: int
    seconds: float


@dataclass(frozen=True)
class Done:
    """How much of it was done (casts: received by the server), in how long, and the latencies of paced calls."""

    count: int
    seconds: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0


def read_order(line: str) -> Order:
    """The order in a line of JSON."""
    return Order(**json.loads(line))


def to_line(thing: Order | Done) -> str:
    """One line of JSON."""
    return json.dumps(asdict(thing))


def paced(taken_s: list[float], seconds: float) -> Done:
    """The outcome of paced calls that took so long each."""
    ordered = sorted(taken_s)
    if not ordered:
        raise RuntimeError("no call was made")
    return Done(len(ordered), seconds, _rank(ordered, 50) * 1000, _rank(ordered, 99) * 1000)


def _rank(ordered: list[float], percent: int) -> float:
    return ordered[max(1, -(-len(ordered) * percent // 100)) - 1]
