"""What the load generator is told, and what it answers: one JSON line each."""

import msgspec


class Order(msgspec.Struct, kw_only=True):
    """Keep ``connections`` requests in flight for ``seconds`` after ``warm_up_s``, or ``per_second`` of them evenly.

    ``targets`` are taken in turn. A body is right when it has ``rows`` servers, in this order where ``uuids`` says
    which, each of this ``status`` where details are asked for.
    """

    port: int
    tokens: list[str]
    targets: list[str]
    connections: int
    seconds: float
    warm_up_s: float = 0.0
    per_second: float = 0.0
    rows: int | None = None  # None: one server by its id
    uuids: list[list[str]] = []
    status: str = ""
    ports: list[int] = []  # more processes of the API


class Outcome(msgspec.Struct, kw_only=True):
    """Answers within the measured seconds, how long each took, the load generator's CPU for them."""

    answers: int = 0
    all_answers: int = 0  # those of the warm-up too
    seconds: float = 0.0
    cpu_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    bytes_each: int = 0
    read_whole: int = 0  # bodies that were decoded and compared row by row; every other one was counted through
    wrong: str = ""  # the first answer that was not right
