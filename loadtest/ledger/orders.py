"""What the driver tells the agents' processes, and what they answer: one JSON line each."""

import msgspec


class Place(msgspec.Struct):
    """A conductor, or a contender's process."""

    service_id: str
    address: str
    public_key: str


class Begin(msgspec.Struct, tag="begin"):
    """Who you are: agents ``first`` to ``first + len(keys)``. An instance belongs to agent (its number mod agents)."""

    first: int
    agents: int
    instances: int
    keys: list[tuple[str, str]]


class Connect(msgspec.Struct, tag="connect"):
    """Leave whomever you are linked to, and link every agent to each of these; ``owners`` by partition."""

    places: list[Place]
    owners: list[str]


class Closed(msgspec.Struct, tag="closed"):
    """Each agent keeps ``window`` updates in flight, in one frame, the conductors in turn; times are monotonic seconds.

    ``sweep``: until every instance has been updated once, whatever the time says. ``zipf``: popular instances.
    """

    window: int
    measured_from: float
    ends_at: float
    sweep: bool = False
    zipf: bool = False


class Paced(msgspec.Struct, tag="paced"):
    """So many updates a second of this process, evenly, whatever comes back; latency counts from when one is due."""

    per_second: float
    measured_from: float
    ends_at: float


class Dump(msgspec.Struct, tag="dump"):
    """Write what must be in the database to a file (msgpack: [number, epoch, seq, power_state, progress])."""

    path: str


Order = Begin | Connect | Closed | Paced | Dump


class Outcome(msgspec.Struct):
    """What became of an order: updates acknowledged as applied in the measured time, and in all; those of other final
    verdicts; those put off (busy, not_owner); and how long each measured ack took."""

    measured: int = 0
    applied: int = 0
    refused: int = 0
    put_off: int = 0
    unacked: int = 0
    transitions: int = 0
    links_lost: int = 0
    lasted_s: float = 0.0
    taken_ms: list[float] = []
    said: str = ""


_ORDER = msgspec.json.Decoder(Order)
_OUTCOME = msgspec.json.Decoder(Outcome)


def to_line(message: Order | Outcome) -> str:
    """One line."""
    return msgspec.json.encode(message).decode()


def to_order(line: str) -> Order:
    """The order of a line."""
    order: Order = _ORDER.decode(line)
    return order


def to_outcome(line: str) -> Outcome:
    """The outcome of a line."""
    return _OUTCOME.decode(line)
